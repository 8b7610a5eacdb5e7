package check

import (
	"database/sql"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/pgtest"
)

// site is an installation on PostgreSQL: the server "first", the server "second", which does not
// run yet, and a guarded service "notes", which gets the trust bundle of the first server over a
// line that a test can cut.
type site struct {
	database   *pgtest.Cluster
	uri        string
	masterKey  string
	password   string // the password of admin
	line       *line
	first      addresses
	notes      addresses
	secondHTTP string
	prometheus *prometheus
}

func newSite(t *testing.T) *site {
	t.Helper()
	program := tool(t, "prometheus", "prometheus")
	s := &site{database: pgtest.Start(t, pgtest.Options{}), masterKey: filepath.Join(t.TempDir(), "master.key"), secondHTTP: freeAddress(t)}
	s.uri = s.database.URI(t)
	output(t, s.command(t, "key", "create-master-key", s.masterKey))
	output(t, s.command(t, "migrate"))
	file := filepath.Join(t.TempDir(), "admin-password")
	serve := s.command(t, "serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--refresh-grace", "0s", "--refresh-repeats", "1")
	serve.Env = append(serve.Env, "WATCHWORD_INITIAL_PASSWORD_FILE="+file)
	s.first = startReplica(t, serve)
	s.password = strings.TrimSpace(read(t, file))
	s.line = newLine(t, s.first.grpc)
	s.notes = startGuarded(t, s.line.addr())
	s.prometheus = startPrometheus(t, program, map[string]map[string]string{
		"watchword": {"first": s.first.http, "second": s.secondHTTP},
		"services":  {"notes": s.notes.http},
	})
	return s
}

// command returns a command of the installation.
func (s *site) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(watchword(t), args...)
	cmd.Env = environment("WATCHWORD_DATASTORE_URI="+s.uri, "WATCHWORD_MASTER_KEY_FILE="+s.masterKey, "WATCHWORD_ISSUER=https://watchword.example")
	return cmd
}

// change runs a statement in the installation's database.
func (s *site) change(t *testing.T, statement string) {
	t.Helper()
	db, err := sql.Open("pgx", s.uri)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

// TestSlowPrometheusRaisesAlarms runs a real Prometheus with the alarms of the rules file on a
// real installation, and causes the faults that the alarms are for. Each alarm must be raised for
// each process with the fault and for no other process. An alarm about a state must end with the
// fault; an alarm about a counter lasts for ten minutes.
func TestSlowPrometheusRaisesAlarms(t *testing.T) {
	if os.Getenv("WATCHWORD_SLOW") == "" {
		t.Skip("make test-slow runs this test")
	}
	s := newSite(t)
	s.prometheus.await(t, "WatchwordDown second")
	s.callNotes(t)
	s.prometheus.awaitValue(t, `watchword_verifier_tokens_accepted_total{job="services", by="check"}`, "1")

	s.line.cut()
	s.prometheus.await(t, "WatchwordDown second", "WatchwordVerifierStale notes")
	s.line.mend()
	s.prometheus.await(t, "WatchwordDown second")

	second := s.startWithoutKey(t)
	cannotSign := []string{"WatchwordCannotSign second", "WatchwordKeySetDamaged first", "WatchwordKeySetDamaged second", "WatchwordNotReady second"}
	s.prometheus.await(t, cannotSign...)
	if _, err := s.login(t, second.grpc); status.Code(err) != codes.Internal {
		t.Errorf("Login without a signing key: %v, want INTERNAL", err)
	}
	s.prometheus.await(t, append(cannotSign, "WatchwordFault second")...)
	output(t, s.command(t, "datastore", "restored"))
	s.repeatRefresh(t)
	s.prometheus.await(t, "WatchwordFault second", "WatchwordKeySetDamaged first", "WatchwordKeySetDamaged second", "WatchwordRefreshTokenReused first")

	// These are the alarms about counters.
	s.prometheus.ignored = []string{"WatchwordFault", "WatchwordKeySetDamaged", "WatchwordRefreshTokenReused"}
	s.database.Pause()
	s.prometheus.await(t, "WatchwordDatabaseAway first", "WatchwordDatabaseAway second",
		"WatchwordFeedOld first", "WatchwordFeedOld second",
		"WatchwordVerifierStale first", "WatchwordVerifierStale notes", "WatchwordVerifierStale second")
	s.database.Resume()
	s.prometheus.await(t)
}

// startWithoutKey changes the row of the signing key by hand, and starts the second server.
func (s *site) startWithoutKey(t *testing.T) addresses {
	t.Helper()
	s.change(t, `UPDATE signing_keys SET signs_from = signs_from - 1 WHERE signs_from IS NOT NULL`)
	return startReplica(t, s.command(t, "serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", s.secondHTTP))
}

func (s *site) login(t *testing.T, addr string) (*watchwordv1.TokenPair, error) {
	t.Helper()
	resp, err := watchwordv1.NewAuthServiceClient(connect(t, addr)).Login(t.Context(), &watchwordv1.LoginRequest{Username: "admin", Password: s.password})
	return resp.GetTokens(), err
}

// repeatRefresh uses a refresh token of the first server again, after its successor was used.
func (s *site) repeatRefresh(t *testing.T) {
	t.Helper()
	pair, err := s.login(t, s.first.grpc)
	if err != nil {
		t.Fatal(err)
	}
	auth := watchwordv1.NewAuthServiceClient(connect(t, s.first.grpc))
	refresh := func(pair *watchwordv1.TokenPair) (*watchwordv1.TokenPair, error) {
		resp, err := auth.Refresh(t.Context(), &watchwordv1.RefreshRequest{RefreshToken: pair.GetRefreshToken()})
		return resp.GetTokens(), err
	}
	next, err := refresh(pair)
	if err == nil {
		_, err = refresh(next)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := refresh(pair); err == nil {
		t.Error("an old refresh token was accepted")
	}
}

// callNotes calls the guarded service with an access token of the admin.
func (s *site) callNotes(t *testing.T) {
	t.Helper()
	pair, err := s.login(t, s.first.grpc)
	if err != nil {
		t.Fatal(err)
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+pair.GetAccessToken())
	if _, err := healthv1.NewHealthClient(connect(t, s.notes.grpc)).Check(ctx, &healthv1.HealthCheckRequest{}); err != nil {
		t.Errorf("a guarded call: %v", err)
	}
}

func connect(t *testing.T, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}
