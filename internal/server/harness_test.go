package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	_ "modernc.org/sqlite"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/server"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/user"
)

// TestMain runs the tests, closes the server that they share, and then looks
// for goroutines that were left and for secrets in anything that was logged.
func TestMain(m *testing.M) {
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "OTEL_") {
			os.Unsetenv(name)
		}
	}
	goleak.VerifyTestMain(withCleanUp{m})
}

type withCleanUp struct{ *testing.M }

func (m withCleanUp) Run() int {
	code := pgtest.Main(m.M)
	if err := closeShared(); err != nil {
		fmt.Fprintln(os.Stderr, "closing the shared server:", err)
		code = 1
	}
	for _, complaint := range leaked(logged.String()) {
		fmt.Fprintln(os.Stderr, "FAIL: the log holds", complaint)
		code = 1
	}
	return code
}

// harness is a running server and its clients.
type harness struct {
	server   *server.Server
	conn     *grpc.ClientConn
	auth     watchwordv1.AuthServiceClient
	trust    watchwordv1.TrustServiceClient
	users    watchwordv1.UserServiceClient
	sessions watchwordv1.SessionServiceClient
	keys     watchwordv1.KeyServiceClient
	audit    watchwordv1.AuditServiceClient

	federation watchwordv1.FederationServiceClient

	folder, database string
	announced        string                       // the first admin's password
	admin            *account                     // an account with a live session
	stop             func() error                 // stops the server and closes everything
	stopServing      func() error                 // stops the server alone
	second           func() (*store.Store, error) // opens the server's database once more
}

// account is a user with a password and, after a login, tokens.
type account struct {
	id, name, password string
	audience           []string // the audience of the account's logins; none: the first audience of the server
	*watchwordv1.TokenPair
}

// as is a context that carries the account's access token.
func (a *account) as(ctx context.Context) context.Context { return bearing(ctx, a.GetAccessToken()) }

func bearing(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

var audiences = []string{"internal", "billing", "search"}

// config returns the defaults, on free ports and with a database in a folder. The bounds on
// guesses get in the way of no test.
func config(folder string) server.Config {
	cfg := server.DefaultConfig()
	cfg.GRPCAddr, cfg.HTTPAddr = "127.0.0.1:0", "127.0.0.1:0"
	cfg.DatastoreURI, cfg.Audience = "sqlite:"+filepath.Join(folder, "watchword.db"), audiences
	cfg.ThrottleFreeTries, cfg.ThrottleSourceRate = 1000, 0
	return cfg
}

// launch starts a server in a folder, and logs its admin in.
func launch(folder string, edits ...func(*server.Config)) (*harness, error) {
	cfg := config(folder)
	for _, edit := range edits {
		edit(&cfg)
	}
	var announced strings.Builder
	srv, err := server.New(context.Background(), cfg, slog.New(slog.NewJSONHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})), announceTo(&announced))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- srv.Run(ctx) }()
	conn, err := grpc.NewClient(srv.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(noteSecrets))
	if err != nil {
		cancel()
		return nil, err
	}
	h := &harness{
		server: srv, conn: conn, folder: folder, database: strings.TrimPrefix(cfg.DatastoreURI, "sqlite:"), announced: announced.String(),
		auth: watchwordv1.NewAuthServiceClient(conn), trust: watchwordv1.NewTrustServiceClient(conn),
		users: watchwordv1.NewUserServiceClient(conn), sessions: watchwordv1.NewSessionServiceClient(conn),
		keys: watchwordv1.NewKeyServiceClient(conn), audit: watchwordv1.NewAuditServiceClient(conn),
		federation: watchwordv1.NewFederationServiceClient(conn),
	}
	h.stopServing = sync.OnceValue(func() error {
		cancel()
		return <-ran
	})
	var second *store.Store
	h.second = sync.OnceValues(func() (_ *store.Store, err error) {
		second, err = store.Open(context.Background(), cfg.DatastoreURI)
		return second, err
	})
	h.stop = sync.OnceValue(func() error {
		conn.Close()
		if second != nil {
			second.Close()
		}
		err := h.stopServing()
		if closing := srv.Close(); err == nil {
			err = closing
		}
		return err
	})
	h.admin = &account{name: "admin", audience: []string{caller.AdminAudience}}
	if h.admin.password = h.announced; h.announced == "" {
		return h, errors.New("no password of a first admin was announced")
	}
	return h, h.login(h.admin)
}

// announceTo writes the first admin's password to w, and nothing else.
func announceTo(w io.StringWriter) func(password string) error {
	return func(password string) error {
		_, err := w.WriteString(password)
		return err
	}
}

// login starts a session of an account, and leaves its tokens there.
func (h *harness) login(a *account, audience ...string) error {
	if len(audience) == 0 {
		audience = a.audience
	}
	resp, err := h.auth.Login(context.Background(), &watchwordv1.LoginRequest{Username: a.name, Password: a.password, Audience: audience})
	if err != nil {
		return fmt.Errorf("logging %s in: %w", a.name, err)
	}
	a.TokenPair = resp.GetTokens()
	var claims jwt.RegisteredClaims // claims are read without a check, since a token that lives for a second may have expired
	if _, _, err := jwt.NewParser().ParseUnverified(a.GetAccessToken(), &claims); err != nil {
		return err
	}
	a.id = claims.Subject
	return nil
}

// start starts a server for one test.
func start(t *testing.T, edits ...func(*server.Config)) *harness {
	t.Helper()
	h, err := launch(t.TempDir(), edits...)
	if h != nil {
		t.Cleanup(func() {
			if err := h.stop(); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return h
}

var sharedServer struct {
	sync.Mutex
	*harness
}

// shared returns a server that several tests use: tests that change nothing which another test
// depends on.
func shared(t *testing.T) *harness {
	t.Helper()
	sharedServer.Lock()
	defer sharedServer.Unlock()
	if sharedServer.harness == nil {
		folder, err := os.MkdirTemp("", "watchword-test-")
		if err != nil {
			t.Fatal(err)
		}
		h, err := launch(folder)
		if err != nil {
			t.Fatal(err)
		}
		sharedServer.harness = h
	}
	return sharedServer.harness
}

// eachEngine runs a test on both kinds of database. on leads a server to a new one.
func eachEngine(t *testing.T, test func(t *testing.T, on func(*server.Config))) {
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) {
		uri, master := new(t), filepath.Join(t.TempDir(), "master")
		if _, err := seal.Create(master); err != nil {
			t.Fatal(err)
		}
		test(t, func(c *server.Config) { c.DatastoreURI, c.Issuer, c.MasterKeyFile = uri, "https://auth.test", master })
	})
}

func closeShared() error {
	if sharedServer.harness == nil {
		return nil
	}
	http.DefaultClient.CloseIdleConnections()
	err := sharedServer.stop()
	if removing := os.RemoveAll(sharedServer.folder); err == nil {
		err = removing
	}
	return err
}

var accounts int // the number of accounts made so far, for unique names

// make makes an account with roles, and logs it in.
func (h *harness) make(t *testing.T, roles ...string) *account {
	t.Helper()
	accounts++
	a := &account{name: fmt.Sprintf("user-%d", accounts), password: fmt.Sprintf("the password of user %d", accounts)}
	if slices.Contains(roles, caller.Admin) {
		a.audience = []string{caller.AdminAudience}
	}
	_, err := h.users.CreateUser(h.admin.as(t.Context()), &watchwordv1.CreateUserRequest{Username: a.name, Password: a.password, Roles: roles})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.login(a); err != nil {
		t.Fatal(err)
	}
	return a
}

// relogin gives an account a new session.
func (h *harness) relogin(t *testing.T, a *account) {
	t.Helper()
	if err := h.login(a); err != nil {
		t.Fatal(err)
	}
}

// verify returns the answer of Verify about a token: "ok" or a reason.
func (h *harness) verify(t *testing.T, accessToken string) string {
	t.Helper()
	_, err := h.auth.Verify(t.Context(), &watchwordv1.VerifyRequest{AccessToken: accessToken})
	return outcome(err)
}

// refresh returns the answer of Refresh about a token: "ok" or a reason.
func (h *harness) refresh(t *testing.T, refreshToken string) string {
	t.Helper()
	_, err := h.auth.Refresh(t.Context(), &watchwordv1.RefreshRequest{RefreshToken: refreshToken})
	return outcome(err)
}

// signer returns the key that the server signs with, so that a test can mint tokens that the
// server would never mint.
func (h *harness) signer(t *testing.T) *token.SigningKey {
	t.Helper()
	keys, err := seal.Load(h.database + ".master-key")
	if err != nil {
		t.Fatal(err)
	}
	var key *token.SigningKey
	h.behind(t, func(tx *feed.Tx) error {
		rows, err := tx.SigningKeys()
		for _, row := range rows {
			if err != nil || row.SignsFrom.IsZero() || !row.RevokedAt.IsZero() {
				continue
			}
			var private []byte
			if private, err = keys.Open("signing key", row.KID, row.SealedKey); err == nil {
				key, err = token.ParseSigningKey(private)
			}
		}
		return err
	})
	return key
}

// claims are those of an account's next token.
func (h *harness) claims(t *testing.T, a *account) *token.Claims {
	t.Helper()
	resp, err := h.auth.Verify(t.Context(), &watchwordv1.VerifyRequest{AccessToken: a.GetAccessToken()})
	if err != nil {
		t.Fatal(err)
	}
	p := resp.GetPrincipal()
	c := &token.Claims{
		Issuer: p.GetIssuer(), Subject: p.GetSubject(), Audience: p.GetAudience(), ID: "AAAAAAAAAAA", SessionID: p.GetSessionId(),
		Username: p.GetUsername(), Roles: p.GetRoles(), IssuedAt: p.GetIssuedAt().AsTime(), ExpiresAt: p.GetExpiresAt().AsTime(),
	}
	h.behind(t, func(tx *feed.Tx) error {
		u, err := tx.User(a.id)
		c.Version = u.Version
		return err
	})
	return c
}

func sign(t *testing.T, key *token.SigningKey, c *token.Claims) string {
	t.Helper()
	raw, err := token.Sign(key, c)
	if err != nil {
		t.Fatal(err)
	}
	secrets.add("access_token", raw)
	return raw
}

func ago(d time.Duration) time.Time { return time.Now().Add(-d) }

// behind works on the server's database as another process would.
func (h *harness) behind(t testing.TB, fn func(*feed.Tx) error) {
	t.Helper()
	s, err := h.second()
	if err != nil {
		t.Fatal(err)
	}
	if err := feed.Direct(s).Write(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// insertSessions adds sessions of a user without logins, and returns their ids.
func (h *harness) insertSessions(t *testing.T, userID string, n int) []string {
	t.Helper()
	ids := make([]string, n)
	h.behind(t, func(tx *feed.Tx) error {
		u, err := tx.User(userID)
		for i := range ids {
			ids[i] = user.NewID()
			if err == nil {
				err = tx.InsertSession(&store.Session{
					ID: ids[i], UserID: userID, BornVersion: u.Version, Audience: audiences,
					CreatedAt: tx.Now(), RefreshedAt: tx.Now(), Generations: store.Generations{Current: 1},
				})
			}
		}
		return err
	})
	return ids
}

// get asks the HTTP side.
func (h *harness) get(t *testing.T, method, path string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+h.server.HTTPAddr()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}
