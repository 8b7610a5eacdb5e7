package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// propagation bounds the time until a downstream service knows of a revocation. The usual
// time is some milliseconds; a machine under load takes longer.
const propagation = 5 * time.Second

// client joins the generated clients of all services.
type client struct {
	watchwordv1.AuthServiceClient
	watchwordv1.TrustServiceClient
	watchwordv1.UserServiceClient
	watchwordv1.SessionServiceClient
	conn *grpc.ClientConn
}

func dialConn(t *testing.T, addr string, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, append(keepErrors(), grpc.WithTransportCredentials(creds))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func dial(t *testing.T, addr string) *client {
	t.Helper()
	return dialWith(t, addr, insecure.NewCredentials())
}

func dialWith(t *testing.T, addr string, creds credentials.TransportCredentials) *client {
	t.Helper()
	return newClient(dialConn(t, addr, creds))
}

func newClient(conn *grpc.ClientConn) *client {
	return &client{
		watchwordv1.NewAuthServiceClient(conn), watchwordv1.NewTrustServiceClient(conn),
		watchwordv1.NewUserServiceClient(conn), watchwordv1.NewSessionServiceClient(conn), conn,
	}
}

// newPassword returns a random password that meets the policy.
func newPassword() string { return noteSecret("e2e-" + rand.Text()) }

// noteTokens adds both tokens to secrets, and returns the pair.
func noteTokens(pair *watchwordv1.TokenPair) *watchwordv1.TokenPair {
	noteSecret(pair.GetAccessToken())
	noteSecret(pair.GetRefreshToken())
	return pair
}

// login returns the tokens of a new session, for the server's first audience if audience is
// empty.
func (c *client) login(t *testing.T, username, password string, audience ...string) *watchwordv1.TokenPair {
	t.Helper()
	resp, err := c.Login(callCtx(t), &watchwordv1.LoginRequest{Username: username, Password: password, Audience: audience})
	if err != nil {
		t.Fatalf("login of %s: %v", username, err)
	}
	return noteTokens(resp.GetTokens())
}

func (c *client) refresh(t *testing.T, pair *watchwordv1.TokenPair) *watchwordv1.TokenPair {
	t.Helper()
	next, err := c.tryRefresh(callCtx(t), pair)
	if err != nil {
		t.Fatalf("refresh: %v", err)
	}
	return next
}

func (c *client) tryRefresh(ctx context.Context, pair *watchwordv1.TokenPair) (*watchwordv1.TokenPair, error) {
	resp, err := c.Refresh(ctx, &watchwordv1.RefreshRequest{RefreshToken: pair.GetRefreshToken()})
	return noteTokens(resp.GetTokens()), err
}

func (c *client) tryLogin(ctx context.Context, username, password string) error {
	_, err := c.Login(ctx, &watchwordv1.LoginRequest{Username: username, Password: password})
	return err
}

func (c *client) logout(ctx context.Context, pair *watchwordv1.TokenPair) error {
	_, err := c.Logout(ctx, &watchwordv1.LogoutRequest{RefreshToken: pair.GetRefreshToken()})
	return err
}

func (c *client) verify(ctx context.Context, pair *watchwordv1.TokenPair) (*watchwordv1.Principal, error) {
	resp, err := c.Verify(ctx, &watchwordv1.VerifyRequest{AccessToken: pair.GetAccessToken()})
	return resp.GetPrincipal(), err
}

func (c *client) create(t *testing.T, admin *watchwordv1.TokenPair, username, password string, roles ...string) *watchwordv1.User {
	t.Helper()
	resp, err := c.CreateUser(bearer(callCtx(t), admin), &watchwordv1.CreateUserRequest{Username: username, Password: password, Roles: roles})
	if err != nil {
		t.Fatalf("creating %s: %v", username, err)
	}
	return resp.GetUser()
}

// bearer returns a context that makes a call carry the pair's access token.
func bearer(ctx context.Context, pair *watchwordv1.TokenPair) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+pair.GetAccessToken())
}

// The functions below call methods of the downstream example. The example's generated code
// is in another module, so the functions use messages with the same form on the wire.

func listNotes(ctx context.Context, conn *grpc.ClientConn, pair *watchwordv1.TokenPair) error {
	return conn.Invoke(bearer(ctx, pair), "/notes.v1.NotesService/ListNotes", &emptypb.Empty{}, &emptypb.Empty{})
}

func addNote(ctx context.Context, conn *grpc.ClientConn, pair *watchwordv1.TokenPair, text string) error {
	return conn.Invoke(bearer(ctx, pair), "/notes.v1.NotesService/AddNote", wrapperspb.String(text), &emptypb.Empty{})
}

// codeOf maps each reason to the status code in error.proto.
var codeOf = map[string]codes.Code{
	"INVALID_REQUEST": codes.InvalidArgument, "PASSWORD_TOO_WEAK": codes.InvalidArgument,
	"INVALID_CREDENTIALS": codes.Unauthenticated,
	"TOKEN_MISSING":       codes.Unauthenticated, "TOKEN_INVALID": codes.Unauthenticated,
	"TOKEN_REVOKED": codes.Unauthenticated, "TOKEN_STALE": codes.Unauthenticated,
	"SESSION_REVOKED": codes.Unauthenticated, "REFRESH_TOKEN_INVALID": codes.Unauthenticated,
	"REFRESH_TOKEN_EXPIRED": codes.Unauthenticated,
	"AUDIENCE_MISMATCH":     codes.Unauthenticated,
	"BUNDLE_STALE":          codes.Unavailable,
	"STORE_UNAVAILABLE":     codes.Unavailable,
	"OVERLOADED":            codes.ResourceExhausted,
	"TOO_MANY_ATTEMPTS":     codes.ResourceExhausted,
	"USER_DISABLED":         codes.PermissionDenied, "ROLE_REQUIRED": codes.PermissionDenied,
	"CLIENT_CERTIFICATE_REQUIRED": codes.PermissionDenied,
	"SESSION_NOT_FOUND":           codes.NotFound,
	"USER_NOT_FOUND":              codes.NotFound, "USER_EXISTS": codes.AlreadyExists, "LAST_ADMIN": codes.FailedPrecondition,
	"UPGRADE_UNFINISHED": codes.FailedPrecondition,
	"ASSERTION_INVALID":  codes.Unauthenticated, "ASSERTION_UNBOUND": codes.Unauthenticated,
	"ISSUER_UNAVAILABLE": codes.Unavailable,
}

// checkRefusal returns an error unless err has the reason and the reason's status code.
func checkRefusal(err error, reason string) error {
	got := strings.TrimPrefix(authn.Reason(err).String(), "ERROR_REASON_")
	code := status.Code(err)
	switch {
	case code == codeOf[reason] && got == reason:
		return nil
	case err == nil:
		return fmt.Errorf("got no error, want %v %s", codeOf[reason], reason)
	}
	return fmt.Errorf("got %v %s (%w), want %v %s", code, got, err, codeOf[reason], reason)
}

func wantRefusal(t *testing.T, what string, err error, reason string) {
	t.Helper()
	if mismatch := checkRefusal(err, reason); mismatch != nil {
		t.Errorf("%s: %v", what, mismatch)
	}
}

func wantOK(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: got error %v, want success", what, err)
	}
}
