package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/keptlogin"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/transport"
)

// callTimeout bounds each call to a running server, including the time to connect, so that a
// command in a script ends. A login can wait some seconds for the password hashes of other
// logins.
const callTimeout = 30 * time.Second

// remote holds the flags of the commands that call a running server.
type remote struct {
	Addr string `default:"127.0.0.1:50051" help:"Address of the server's gRPC API."`
	connection
}

// connection holds the flags that say how to connect to a server.
type connection struct {
	CAFile     string `name:"ca-file" type:"path" help:"CA of the server's certificate, PEM. Default: the system's CAs."`
	ServerName string `help:"Name that the server's certificate must have. Default: the host in --addr."`
	Plaintext  bool   `help:"Connect without TLS to a server on this machine."`

	PlaintextToOtherHosts bool `help:"Connect without TLS to any machine. Everyone on the path can read the password and the tokens."`

	network []grpc.DialOption // further options of the connection, for tests; kong makes flags of exported fields alone
}

// with makes a connection to the server, and calls do. By default, the connection uses TLS. The
// calls of do can carry a password or a token, so without --plaintext-to-other-hosts no call
// leaves this machine without TLS.
func (r remote) with(ctx context.Context, do func(context.Context, grpc.ClientConnInterface) error, opts ...grpc.DialOption) error {
	path := &privatePath{anyHost: r.PlaintextToOtherHosts}
	err := r.connect(ctx, do, append(opts, grpc.WithPerRPCCredentials(path))...)
	if refused := path.refused.Load(); refused != nil {
		return usageError{*refused}
	}
	return err
}

// connect does what [remote.with] does, for calls without a secret, which can go over any
// connection.
func (r remote) connect(ctx context.Context, do func(context.Context, grpc.ClientConnInterface) error, opts ...grpc.DialOption) error {
	plaintext := r.Plaintext || r.PlaintextToOtherHosts
	for flag, value := range map[string]string{"--ca-file": r.CAFile, "--server-name": r.ServerName} {
		if plaintext && value != "" {
			return usageError{fmt.Errorf("--plaintext and %s contradict each other", flag)}
		}
	}
	creds := insecure.NewCredentials()
	if !plaintext {
		tls, err := authn.TLSFromFiles(authn.TLSFiles{CAFile: r.CAFile, ServerName: r.ServerName})
		if err != nil {
			return fmt.Errorf("--ca-file: %s", strings.TrimPrefix(err.Error(), "authn: CAFile: "))
		}
		defer tls.Close()
		creds = tls
	}
	if plaintext && !r.PlaintextToOtherHosts {
		opts = append(opts, grpc.WithNoProxy()) // without TLS, a proxy on this machine could pass a secret on to another machine
	}
	conn, err := grpc.NewClient(r.Addr, slices.Concat([]grpc.DialOption{
		grpc.WithTransportCredentials(creds), grpc.WithChainUnaryInterceptor(inTime)}, opts, r.network)...)
	if err != nil {
		return usageError{fmt.Errorf("--addr: %w", err)}
	}
	return errors.Join(r.cure(do(ctx, conn)), conn.Close())
}

// inTime is an interceptor of gRPC that bounds each call by callTimeout.
func inTime(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return invoke(ctx, method, req, reply, conn, opts...)
}

// cure adds to an error of the connection the name of the flag that mends the error, such as
// --ca-file. gRPC has no status code for such errors, so cure looks at the text of the error.
func (r remote) cure(err error) error {
	if hint, _ := r.hint(err); hint != "" {
		s := status.Convert(err)
		return status.Error(s.Code(), s.Message()+hint)
	}
	return err
}

// hint returns the text that [remote.cure] adds to an error of the connection, or "" for
// another error. certain reports that every attempt fails until the operator changes a flag.
// The error of a connection that closes before an answer is not certain: a proxy that cannot
// reach the server now causes that error too.
func (r remote) hint(err error) (hint string, certain bool) {
	s, ok := status.FromError(err)
	if err == nil || !ok || s.Code() != codes.Unavailable || refusal.Reason(err) != watchwordv1.ErrorReason_ERROR_REASON_UNSPECIFIED {
		return "", false
	}
	says := func(text string) bool { return strings.Contains(s.Message(), text) }
	switch plaintext := r.Plaintext || r.PlaintextToOtherHosts; {
	case says("does not look like a TLS handshake"):
		return "; the server has no TLS: give --plaintext if the server is on this machine", true
	case says("signed by unknown authority") && r.CAFile == "":
		return "; name the CA of the server's certificate by --ca-file", true
	case says("signed by unknown authority"):
		return "; the CA in --ca-file has not signed the server's certificate", true
	case says("certificate is valid for") || says("doesn't contain any IP SANs"):
		return "; give a name of the server's certificate by --server-name", true
	case plaintext && says("server preface"):
		return "; if the server has TLS, leave out --plaintext", false
	}
	return "", false
}

// outage tells a person at the terminal about a server or a database that is away, while a
// command goes on until Ctrl-C.
type outage struct {
	t    Terminal
	to   remote
	said string // the newest line on standard error; "" after an answer
	ever bool   // an answer has come
}

// newOutage returns an outage of the server or the database at which a command works.
func (p *place) newOutage(t Terminal) outage { return outage{t: t, to: remote{p.Addr, p.connection}} }

// over notes that an answer has come.
func (o *outage) over() { o.said, o.ever = "", true }

// tell writes to standard error why a call has failed, once for each reason. Errors: err, if
// trying again is no help.
func (o *outage) tell(err error) error {
	if _, wrongFlag := o.to.hint(err); wrongFlag && !o.ever || !mayPass(err) {
		return err
	}
	o.say(err)
	return nil
}

// say does what [outage.tell] does, for an error after which trying again helps.
func (o *outage) say(err error) {
	if text := explainError(o.to.cure(err)); text != o.said {
		o.said = text
		fmt.Fprintln(o.t.Err, "watchword: "+text+"; trying again")
	}
}

// mayPass reports whether a call that has failed can succeed later with the same flags: the
// server or the database is away or has too many calls, or the connection broke.
func mayPass(err error) bool {
	s, ok := status.FromError(err)
	if !ok {
		return errors.Is(err, store.ErrUnavailable)
	}
	switch s.Code() {
	case codes.Unavailable, codes.ResourceExhausted, codes.Canceled, codes.DeadlineExceeded, codes.Internal:
		return true
	}
	return false
}

// privatePath refuses calls over a connection that others can read: without TLS, to
// another machine. The peer's address decides, since a host name does not prove which machine
// answers. grpc-go asks a privatePath when a call has its connection, before the call sends
// anything.
type privatePath struct {
	anyHost bool // allows calls over every connection
	refused atomic.Pointer[error]
}

// RequireTransportSecurity returns false, so that grpc-go leaves the check of the connection to
// GetRequestMetadata.
func (p *privatePath) RequireTransportSecurity() bool { return false }

// GetRequestMetadata returns no metadata. Errors: UNAUTHENTICATED if others can read the
// connection; the field refused holds the text of the error for the operator.
func (p *privatePath) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	at, _ := peer.FromContext(ctx)
	if p.anyHost || transport.Protects(at, "", credentials.PrivacyAndIntegrity) {
		return nil, nil
	}
	err := fmt.Errorf("--plaintext: %s is another machine, and everyone on the path could read the password or the token: "+
		"connect with TLS, or give --plaintext-to-other-hosts if the network is protected by other means", transport.Name(at, ""))
	p.refused.Store(&err)
	return nil, status.Error(codes.Unauthenticated, err.Error())
}

type loginCmd struct {
	remote
	Name          string   `arg:"" help:"Username."`
	Audience      []string `help:"A service for the tokens; repeat the flag for more; watchword alone: to administer users, sessions and keys. Default: the server's first --audience."`
	PasswordStdin bool     `help:"Read the password from standard input."`
	Print         bool     `help:"Print the tokens as JSON for another program, and keep none."`
}

// Run logs in, and keeps the tokens for the commands that follow, or prints the tokens as
// JSON. Run keeps the refresh token even with --print: the next login sends the refresh token
// to show that the device is known.
func (c *loginCmd) Run(ctx context.Context, t Terminal) error {
	pw, err := t.readPassword(ctx, c.PasswordStdin, false)
	if err != nil {
		return err
	}
	logins := keptlogin.At(c.Addr)
	defer t.progress()()
	return c.with(ctx, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		auth, asked := watchwordv1.NewAuthServiceClient(conn), time.Now()
		resp, err := auth.Login(ctx, &watchwordv1.LoginRequest{
			Username: c.Name, Password: pw, Audience: c.Audience, PreviousRefreshToken: logins.Device(c.Name),
		})
		if err != nil {
			return err
		}
		pair := resp.GetTokens()
		g := keptlogin.Login{Username: c.Name, Admin: slices.Equal(c.Audience, []string{caller.AdminAudience}), Device: pair.GetRefreshToken()}
		if !c.Print {
			g.Refresh, g.Access, g.Until = pair.GetRefreshToken(), pair.GetAccessToken(), asked.Add(pair.GetExpiresIn().AsDuration())
		}
		err = logins.Put(ctx, g)
		switch {
		case err != nil && c.Print: // the refresh token could not be kept: the tokens are printed, since the user needs the tokens more than the known device
			fmt.Fprintf(t.Err, "watchword: the refresh token is not kept, and the next login counts as one from a new device: %v\n", err)
		case err != nil:
			_, ended := auth.Logout(ctx, &watchwordv1.LogoutRequest{RefreshToken: pair.GetRefreshToken()})
			return errors.Join(fmt.Errorf("the tokens cannot be kept, and the session has ended (login --print prints the tokens instead): %w", err), ended)
		case !c.Print && t.outIsTerminal():
			fmt.Fprintf(t.Out, "logged in as %s; watchword logout --addr %s ends the session\n", c.Name, c.Addr)
		}
		if c.Print {
			return t.printJSON(pair)
		}
		return nil
	})
}

type verifyCmd struct {
	remote
	Audience string `help:"The service that must be in the token. Default: any."`
}

// Run prints what a valid access token says about the user. For a token that is not valid the
// exit status is 1, and the error begins with the reason.
func (c *verifyCmd) Run(ctx context.Context, t Terminal) error {
	token, err := c.accessToken(ctx, t)
	if err != nil {
		return err
	}
	return c.with(ctx, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		resp, err := watchwordv1.NewAuthServiceClient(conn).Verify(ctx, &watchwordv1.VerifyRequest{
			AccessToken: token, Audience: c.Audience,
		})
		if err != nil {
			return err
		}
		return t.printJSON(resp.GetPrincipal())
	})
}

// accessToken reads an access token from standard input. If standard input is a terminal or the
// null device, accessToken returns the access token of the newest kept login.
func (r remote) accessToken(ctx context.Context, t Terminal) (string, error) {
	if t.inIsGiven() {
		return t.readToken(ctx, (*watchwordv1.TokenPair).GetAccessToken)
	}
	kept, err := r.kept(false)
	if err != nil {
		return "", err
	}
	return kept.token(ctx, "")
}

type logoutCmd struct{ remote }

// Run ends the session of a refresh token on standard input, and prints nothing. If standard
// input is a terminal or the null device, Run ends every session at the server that `watchword
// login` has kept.
func (c *logoutCmd) Run(ctx context.Context, t Terminal) error {
	if !t.inIsGiven() {
		if _, err := c.kept(false); err != nil {
			return err
		}
		return c.with(ctx, c.forget)
	}
	token, err := t.readToken(ctx, (*watchwordv1.TokenPair).GetRefreshToken)
	if err != nil {
		return err
	}
	return c.with(ctx, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		_, err := watchwordv1.NewAuthServiceClient(conn).Logout(ctx, &watchwordv1.LogoutRequest{RefreshToken: token})
		return err
	})
}

type healthcheckCmd struct{ remote }

// Run exits with status 0 if the server serves calls, and with status 1 otherwise. A container
// engine runs the command, since the container holds no other program that could ask the
// server.
func (c *healthcheckCmd) Run(ctx context.Context, _ Terminal) error {
	return c.connect(ctx, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		resp, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
		if err == nil && resp.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			err = fmt.Errorf("the server is %s", resp.GetStatus())
		}
		return err
	})
}

// readToken reads a token from standard input: the bare text, or the JSON that
// `watchword login --print` prints. of picks one token out of the JSON: the access token or the
// refresh token.
func (t Terminal) readToken(ctx context.Context, of func(*watchwordv1.TokenPair) string) (string, error) {
	text, err := await(ctx, t.readAll)
	if err != nil || !strings.HasPrefix(text, "{") {
		return text, err
	}
	pair := &watchwordv1.TokenPair{}
	if protojson.Unmarshal([]byte(text), pair) != nil || of(pair) == "" {
		return "", usageError{errors.New("standard input is JSON, but not the output of login --print")}
	}
	return of(pair), nil
}
