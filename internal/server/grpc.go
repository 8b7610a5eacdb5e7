package server

import (
	"context"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/internal/detach"
	"github.com/watchword-auth/watchword/internal/gate"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/rpc"
)

const (
	maxMessage = 64 << 10 // bytes; the largest request that makes sense, a user with 32 roles, has 4 KiB
	maxStreams = 100      // the largest number of calls at a time on one connection
	// maxHeaders bounds the headers that gRPC accepts, in bytes. Between 16 KiB and maxHeaders,
	// package gate refuses only the call with the headers, with INVALID_REQUEST. Above
	// maxHeaders, gRPC can end the connection with all its calls, and a proxy in front carries
	// the calls of many clients over one connection.
	maxHeaders = 64 << 10
	// window is how much a client can send on one stream before the server has read the data,
	// in bytes. A window of fixed size bounds the memory of a request that is still arriving.
	window = 64 << 10
	// buffer is the size of a connection's read buffer and of its write buffer, in bytes.
	// An idle connection keeps the read buffer alone.
	buffer = 8 << 10
	// streamWorkers is the number of goroutines that gRPC keeps for calls. The stack of a new
	// goroutine grows several times within one call, which takes a sixth of the processor time
	// of a small call; a goroutine that is kept has grown before. Each idle goroutine takes 2
	// to 8 KiB. A call for which no kept goroutine is free gets a new goroutine, so
	// streamWorkers does not bound the number of calls.
	streamWorkers = 64
	// maxIdle is how long a connection stays open after its last call. Clients connect again at
	// their next call.
	maxIdle = 5 * time.Minute
)

// grpcOptions returns the bounds and the interceptors of the gRPC server. The interceptors,
// outermost first: s.calls counts, for /metrics, unary calls from their arrival, and streams
// that package gate admits; recovery turns a panic into INTERNAL; package gate notes when a
// request has arrived; the edge of package rpc gives errors their status and counts refused
// calls for the security record; the verifier checks the access token; turns bound the number
// of calls that one user has in work. Before all interceptors, the tap of package gate admits a
// call by its headers. If the tap refuses a call, or a unary call loses its place in the gate
// before the request has arrived, the bound that refuses the call counts the call, and so does
// the security record.
//
// The keepalive pings close a connection to a client that has disappeared, within 40 seconds.
// Clients are allowed to ping every five seconds, even without a call: a verifier's stream is
// idle most of the time.
func (s *Server) grpcOptions() []grpc.ServerOption {
	panics := recovery.WithRecoveryHandlerContext(s.recovered)
	logUnary, logStream := s.logCalls()
	edge := rpc.NewEdge(s.audit, s.passwords.RetryAfter, s.logger)
	calls := s.limits.calls
	calls.Known = s.known
	s.gate = gate.New(s.proxies, calls, edge.Refused)
	creds := insecure.NewCredentials()
	if s.tls != nil {
		creds = credentials.NewTLS(s.tls.config("h2"))
	}
	opts := []grpc.ServerOption{
		grpc.ForceServerCodecV2(rpc.Codec()),
		grpc.InTapHandle(s.gate.Tap),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
		grpc.ReadBufferSize(buffer),
		grpc.WriteBufferSize(buffer),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second, MaxConnectionIdle: maxIdle}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.Creds(gate.Guard(creds)),
		grpc.ChainUnaryInterceptor(s.calls.Unary, logUnary, recovery.UnaryServerInterceptor(panics), edge.Unary),
		grpc.ChainStreamInterceptor(s.calls.Stream, logStream, recovery.StreamServerInterceptor(panics), s.drain.stream, s.gate.Stream, edge.Stream),
	}
	opts = append(opts, s.traces.ServerOptions()...)
	opts = append(opts, s.verifier.ServerOptions()...)
	return append(opts, grpc.ChainUnaryInterceptor(rpc.InTurn(s.known)))
}

// logCalls logs every call at level debug, for finding faults. logCalls leaves out health
// checks and reflection. The operator can change the level while the server runs. In ordinary
// use the metrics count the calls, and the security record holds the important calls.
func (s *Server) logCalls() (grpc.UnaryServerInterceptor, grpc.StreamServerInterceptor) {
	logs := logging.LoggerFunc(func(ctx context.Context, _ logging.Level, msg string, fields ...any) {
		s.logger.DebugContext(ctx, msg, fields...)
	})
	logged := func(ctx context.Context, method string) bool {
		return s.logger.Enabled(ctx, slog.LevelDebug) && !strings.HasPrefix(method, "/grpc.")
	}
	finish := []logging.Option{logging.WithLogOnEvents(logging.FinishCall), logging.WithErrorFields(func(err error) logging.Fields {
		return logging.Fields{"reason", refusal.Name(refusal.Reason(err))}
	})}
	unary, stream := logging.UnaryServerInterceptor(logs, finish...), logging.StreamServerInterceptor(logs, finish...)
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			if !logged(ctx, info.FullMethod) {
				return handler(ctx, req)
			}
			return unary(ctx, req, info, handler)
		}, func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			if !logged(ss.Context(), info.FullMethod) {
				return handler(srv, ss)
			}
			return stream(srv, ss, info, handler)
		}
}

// recovered logs a panic in a handler, and returns the error for the client, so that the
// process continues with the other calls.
func (s *Server) recovered(ctx context.Context, p any) error {
	s.logger.ErrorContext(ctx, "panic in a handler", "panic", p, "stack", string(debug.Stack()))
	return status.Error(codes.Internal, "internal error")
}

// drain ends streams when the server stops. Without drain, an idle stream (of a verifier, a
// health check or reflection) would block gRPC's GracefulStop for ever.
type drain struct {
	announced atomic.Bool   // true from the time at which readiness is turned off
	begun     chan struct{} // closed when the server stops
	logger    *slog.Logger
}

func (d *drain) announce() { d.announced.Store(true) }

func (d *drain) begin() {
	d.announce()
	close(d.begun)
}

// draining reports whether the server stops now, or will stop after --shutdown-delay.
func (d *drain) draining() bool { return d.announced.Load() }

// stream is an interceptor that returns when the server stops, although the handler may still
// block in Recv. After the return, gRPC ends the stream's context, and so the handler returns
// too.
func (d *drain) stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	call := detach.Go(func() error { return handler(srv, ss) })
	select {
	case <-call.Done():
		return call.Result()
	case <-d.begun:
		call.Leave(rpc.LogLate(d.logger))
		return status.Error(codes.Unavailable, "the server is stopping")
	}
}
