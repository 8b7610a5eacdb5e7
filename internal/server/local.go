package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	middleware "github.com/grpc-ecosystem/go-grpc-middleware/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/federation"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/roster"
	"github.com/watchword-auth/watchword/internal/rpc"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// LocalConfig holds the settings of a [Local]. A setting with the name of a flag of `serve`
// means the same as for `serve`.
type LocalConfig struct {
	DatastoreURI           string
	MasterKeyFile          string          // the file is read by the calls of KeyService and, with VerifyFor, by OpenLocal
	Policy                 password.Policy // the rules for new passwords
	RefreshTTL, SessionTTL time.Duration   // the lifetimes by which a session is live
	Operator               string          // the name in the operating system, for the security record
	Warn                   func(text string)
	// VerifyFor makes a Local also serve TrustService/GetKeySet, and AuthService/Verify for
	// tokens for these services. GetKeySet and Verify need the master key file. If VerifyFor is
	// empty, a Local serves neither GetKeySet nor Verify.
	VerifyFor []string
}

// Local serves UserService, SessionService, KeyService, AuditService and FederationService on a
// database, for the command line: to one client in this process, over a connection in memory.
// The client is the operator ([rpc.AsOperator]) and needs no token, since the operator can
// write the database anyway. Servers that run on the same database learn of the changes by
// polling, within a second.
type Local struct {
	conn     *grpc.ClientConn
	grpc     *grpc.Server
	ended    chan error // receives the error that Serve returns
	store    *store.Store
	verifier *authn.Verifier       // checks tokens for Verify; nil without LocalConfig.VerifyFor
	cause    atomic.Pointer[error] // the last error that a handler has returned
}

// OpenLocal opens an existing database, and serves the API on the database. The caller must
// call Close.
func OpenLocal(ctx context.Context, cfg LocalConfig) (*Local, error) {
	s, err := store.OpenExisting(ctx, cfg.DatastoreURI)
	if err != nil {
		return nil, err
	}
	l := &Local{store: s, ended: make(chan error, 1)}
	if err := l.serve(ctx, cfg); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// serve registers the gRPC services of a Local, and connects a client to the services.
func (l *Local) serve(ctx context.Context, cfg LocalConfig) error {
	s := l.store
	silent := slog.New(slog.DiscardHandler) // the person at the terminal sees the command's output
	record := audit.New(s, silent)
	passwords := password.NewPool(password.Config{Policy: cfg.Policy})
	users := user.New(s, feed.Direct(s), passwords, record)
	lifetimes := session.Lifetimes{Idle: session.IdleTTL(cfg.RefreshTTL), Max: session.MaxTTL(cfg.SessionTTL)}
	edge := rpc.NewEdge(record, passwords.RetryAfter, silent)
	l.grpc = grpc.NewServer(grpc.ChainUnaryInterceptor(asOperator(cfg.Operator), edge.Unary, l.keepCause),
		grpc.ChainStreamInterceptor(streamAsOperator(cfg.Operator), edge.Stream, l.keepStreamCause))
	watchwordv1.RegisterUserServiceServer(l.grpc, &rpc.Users{Users: users})
	watchwordv1.RegisterSessionServiceServer(l.grpc, &rpc.Sessions{Sessions: session.NewAdmin(lifetimes, s, feed.Direct(s), users, record)})
	keys := &localKeys{cfg: cfg, store: s, audit: record}
	watchwordv1.RegisterKeyServiceServer(l.grpc, keys)
	watchwordv1.RegisterAuditServiceServer(l.grpc, rpc.NewAudit(s, silent))
	watchwordv1.RegisterFederationServiceServer(l.grpc, &rpc.Federation{Registry: federation.NewRegistry(s, feed.Direct(s), record)})
	var err error
	if len(cfg.VerifyFor) > 0 {
		err = l.serveVerify(ctx, keys, cfg.VerifyFor)
	} else {
		watchwordv1.RegisterTrustServiceServer(l.grpc, &rpc.Watchers{Roster: roster.New(s, nil, roster.Self{}, silent)})
	}
	return errors.Join(err, l.connect())
}

// connect starts the server on a connection in memory, and makes the client's connection.
func (l *Local) connect() (err error) {
	memory := bufconn.Listen(buffer)
	go func() {
		err := l.grpc.Serve(memory)
		if errors.Is(err, grpc.ErrServerStopped) { // Close was called before Serve
			err = nil
		}
		l.ended <- err
	}()
	l.conn, err = grpc.NewClient("passthrough:///database", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return memory.DialContext(ctx) }),
		grpc.WithChainUnaryInterceptor(l.tellCause), grpc.WithChainStreamInterceptor(l.tellStreamCause))
	return err
}

// Conn returns the connection for the clients of the services. A call that fails by a fault
// of the database or of the master key returns the fault itself, and no status: the operator
// can mend the fault. Make one call at a time over the connection.
func (l *Local) Conn() grpc.ClientConnInterface { return l.conn }

// Close closes the connection and the database. The caller must not ignore the error: the error
// may tell that the last write failed.
func (l *Local) Close() error {
	var err error
	if l.conn != nil {
		err = l.conn.Close()
	}
	l.grpc.Stop()
	err = errors.Join(err, <-l.ended)
	if l.verifier != nil {
		err = errors.Join(err, l.verifier.Close())
	}
	return errors.Join(err, l.store.Close())
}

// asOperator returns an interceptor that makes the operator the caller of every call.
func asOperator(name string) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		return handler(rpc.AsOperator(ctx, name), req)
	}
}

// streamAsOperator returns an interceptor that makes the operator the caller of every stream.
func streamAsOperator(name string) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		return handler(srv, &middleware.WrappedServerStream{ServerStream: ss, WrappedContext: rpc.AsOperator(ss.Context(), name)})
	}
}

// keepCause intercepts the calls on the server's side, and keeps the error of the handler in
// l.cause, for tellCause on the client's side.
func (l *Local) keepCause(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := handler(ctx, req)
	if err != nil {
		l.cause.Store(&err)
	}
	return resp, err
}

// keepStreamCause intercepts streams on the server's side, and keeps the error of the handler
// in l.cause.
func (l *Local) keepStreamCause(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	err := handler(srv, ss)
	if err != nil {
		l.cause.Store(&err)
	}
	return err
}

// tellCause intercepts the calls on the client's side, and returns the fault that keepCause has
// kept, see [Local.causeOf].
func (l *Local) tellCause(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	l.cause.Store(nil)
	return l.causeOf(invoke(ctx, method, req, reply, conn, opts...))
}

// tellStreamCause intercepts streams on the client's side, and returns the fault that
// keepStreamCause has kept, see [Local.causeOf].
func (l *Local) tellStreamCause(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	l.cause.Store(nil)
	stream, err := open(ctx, desc, conn, method, opts...)
	return tellingStream{stream, l}, l.causeOf(err)
}

type tellingStream struct {
	grpc.ClientStream
	local *Local
}

// RecvMsg receives a message. If a fault of the database or of the master key has ended the
// stream, RecvMsg returns the fault in place of a status.
func (s tellingStream) RecvMsg(m any) error { return s.local.causeOf(s.ClientStream.RecvMsg(m)) }

// causeOf returns the fault behind a status, if the fault is of the database or of the master
// key, and err otherwise.
func (l *Local) causeOf(err error) error {
	if code := status.Code(err); code == codes.Internal || code == codes.Unavailable {
		if cause := l.cause.Load(); cause != nil {
			return *cause
		}
	}
	return err
}

// localKeys serves KeyService, and reads the master key file at each call.
type localKeys struct {
	watchwordv1.UnimplementedKeyServiceServer
	cfg   LocalConfig
	store *store.Store
	audit *audit.Log
}

// master loads the master keys from the master key file.
func (k *localKeys) master() (*seal.Keys, error) {
	path, err := MasterKeyPath(k.store, k.cfg.MasterKeyFile)
	if err != nil {
		return nil, err
	}
	return seal.Load(path)
}

// with returns the service of KeyService that uses master, the master keys that open the keys
// in the database.
func (k *localKeys) with(master *seal.Keys) *rpc.Keys {
	keys := issuer.NewKeySet(master, slog.New(slog.DiscardHandler))
	return &rpc.Keys{Keyring: issuer.NewKeyring(k.store, feed.Direct(k.store), keys, k.audit)}
}

// checked returns the service for calls that change keys, after a check of the master key file.
// Errors: errors of the master key file.
func (k *localKeys) checked(ctx context.Context) (*rpc.Keys, error) {
	master, err := k.master()
	if err == nil {
		err = CheckMaster(ctx, k.store, master)
	}
	if err != nil {
		return nil, err
	}
	return k.with(master), nil
}

// ListKeys lists all signing keys. With the master key file, a key that was added or changed
// without the master key is `untrusted`. Without the master key file, ListKeys warns that the
// keys are not checked.
func (k *localKeys) ListKeys(ctx context.Context, req *watchwordv1.ListKeysRequest) (*watchwordv1.ListKeysResponse, error) {
	master, unchecked := k.master()
	resp, err := k.with(master).ListKeys(ctx, req)
	if err == nil && unchecked != nil && len(resp.GetKeys()) > 0 {
		k.cfg.Warn("the keys are shown as the database has them, without a check by the master key: " + unchecked.Error())
	}
	return resp, err
}

// RotateKey serves KeyService/RotateKey, after a check of the master key file.
func (k *localKeys) RotateKey(ctx context.Context, req *watchwordv1.RotateKeyRequest) (*watchwordv1.RotateKeyResponse, error) {
	keys, err := k.checked(ctx)
	if err != nil {
		return nil, err
	}
	return keys.RotateKey(ctx, req)
}

// RevokeKey serves KeyService/RevokeKey, after a check of the master key file.
func (k *localKeys) RevokeKey(ctx context.Context, req *watchwordv1.RevokeKeyRequest) (*watchwordv1.RevokeKeyResponse, error) {
	keys, err := k.checked(ctx)
	if err != nil {
		return nil, err
	}
	return keys.RevokeKey(ctx, req)
}
