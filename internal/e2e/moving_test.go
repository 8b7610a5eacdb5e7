package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/pgtest"
)

// postgres holds the URI of a PostgreSQL database without the password, and the password in
// the form of an environment variable.
type postgres struct{ uri, password string }

func newPostgres(t *testing.T) postgres {
	t.Helper()
	uri := pgtest.URI(t)
	keepDatabase(t, func() string { return uri })
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	u.User = url.User(u.User.Username())
	return postgres{u.String(), "PGPASSWORD=" + password}
}

// migrated makes the schema, and returns p.
func (p postgres) migrated(t *testing.T) postgres {
	t.Helper()
	wantExit(t, 0, run(t, p.command(t, "migrate", "--datastore-uri", p.uri)))
	return p
}

func (p postgres) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := cliCommand(t, t.TempDir(), "", args...)
	cmd.Env = append(cmd.Env, p.password)
	return cmd
}

// masterKeyOf returns the path of the master key beside the database in a folder.
func masterKeyOf(dir string) string { return filepath.Join(dir, "watchword.db.master-key") }

// takeOver starts a server on p, at the addresses and with the master key of a stopped
// server.
func (p postgres) takeOver(t *testing.T, from *server, args ...string) *server {
	t.Helper()
	args = append([]string{"serve", "--grpc-addr", from.grpcAddr, "--http-addr", from.httpAddr,
		"--datastore-uri", p.uri, "--master-key-file", masterKeyOf(from.dir)}, args...)
	cmd := exec.Command(watchword(t), args...)
	cmd.Env = []string{p.password}
	return serveCommand(t, from.dir, cmd)
}

// TestMoveUnderLoad moves a server from SQLite to PostgreSQL while clients make calls. The
// test kills several copies, before a copy may finish. All acknowledged changes must hold,
// and every session must go on.
func TestMoveUnderLoad(t *testing.T) {
	const accounts, killed = 8, 5
	s, to := serve(t, t.TempDir(), longLifetimes...), newPostgres(t).migrated(t)
	all := newAccounts(t, dial(t, s.grpcAddr), s.admin, accounts)
	watching := watchRevoked(t, s, all)
	working := all.startWorking(t, s)

	working.awaitCalls(100)
	for range killed {
		if killCopy(t, s, to) {
			break // the copy has fenced the source, so only a complete copy can follow
		}
		working.awaitCalls(20)
	}
	began := time.Now()
	wantExit(t, 0, run(t, to.command(t, "datastore", "copy", database(s.dir), to.uri)))
	copied := time.Now()
	s.stop(t)
	s = to.takeOver(t, s, longLifetimes...)
	t.Logf("copied in %v; serving again after %v", copied.Sub(began), time.Since(began))
	if s.admin != "" {
		t.Error("the server made an admin on the copy")
	}

	working.awaitCalls(200)
	t.Logf("acknowledged calls: %v", working.end())
	all.check(t, s, true)
	watching.end(t)
}

// killCopy starts a copy, and kills the copy at a random time. late is true if the copy has
// fenced the source. Otherwise the source must still serve.
func killCopy(t *testing.T, s *server, to postgres) (late bool) {
	t.Helper()
	copying := start(t, to.command(t, "datastore", "copy", database(s.dir), to.uri))
	select {
	case <-time.After(time.Duration(rand.Int64N(int64(300 * time.Millisecond)))):
	case <-copying.exited:
	}
	copying.kill()
	list := cli(t, s.dir, "", "user", "list", "--datastore-uri", database(s.dir))
	if late = strings.Contains(list.stderr, "was moved to"); !late {
		wantExit(t, 0, list)
	}
	return late
}

// working holds the goroutines that make calls while the server is moved.
type working struct {
	done    *tally
	await   func(n int) // waits for n acknowledged calls
	stop    context.CancelFunc
	workers sync.WaitGroup
}

// startWorking makes calls for all accounts until working.end.
func (a *accounts) startWorking(t *testing.T, s *server) *working {
	ctx, stop := context.WithCancel(t.Context())
	w := &working{done: &tally{counts: map[string]int{}}, stop: stop}
	acknowledged := make(chan struct{}, 1)
	w.await = func(n int) {
		for range n {
			select {
			case <-acknowledged:
			case <-time.After(runTimeout):
				t.Fatalf("no call was acknowledged within %v", runTimeout)
			}
		}
	}
	for _, account := range a.all {
		d := desk{dial(t, s.grpcAddr), a.admin.pair}
		w.workers.Go(func() {
			for ctx.Err() == nil {
				kind, err := account.callPersistently(callCtx(t), d)
				if err != nil {
					t.Errorf("%s: %v", account.name, err)
					return
				}
				w.done.mu.Lock()
				w.done.counts[kind]++
				w.done.mu.Unlock()
				select {
				case acknowledged <- struct{}{}:
				default: // the channel is full
				}
			}
		})
	}
	return w
}

// awaitCalls waits for n acknowledged calls.
func (w *working) awaitCalls(n int) { w.await(n) }

// end stops all goroutines, and returns the numbers of acknowledged calls by kind.
func (w *working) end() map[string]int {
	w.stop()
	w.workers.Wait()
	return w.done.counts
}

// callPersistently makes a call. If the server is unavailable, callPersistently waits until
// the server is back, and then asks if the call was carried out.
func (a *account) callPersistently(ctx context.Context, d desk) (kind string, err error) {
	c := a.next("")
	if err := c.make(ctx, d); status.Code(err) != codes.Unavailable {
		if err != nil {
			return c.kind, fmt.Errorf("%s: %w", c.kind, err)
		}
		c.then()
		return c.kind, nil
	}
	return "unavailable", a.untilAvailable(ctx, func() error {
		if c.happened != nil {
			happened, err := c.happened(ctx, d)
			if err != nil {
				return err
			}
			if c.happened = nil; happened {
				c.then()
			}
		}
		for _, h := range a.live { // the call may have spent a session's refresh token
			if err := h.refresh(ctx, d.client, false); err != nil {
				return err
			}
		}
		return nil
	})
}

// untilAvailable repeats try until the server is available.
func (a *account) untilAvailable(ctx context.Context, try func() error) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := try()
		if status.Code(err) != codes.Unavailable {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the server stays unavailable: %w", err)
		}
	}
}

// watcher is a downstream service that verifies the same two tokens every millisecond.
type watcher struct {
	verifier *authn.Verifier
	ended    string // an access token of an ended session
	live     string // an access token of a live session
	stop     context.CancelFunc
	task     sync.WaitGroup
	times    int
}

// watchRevoked starts a watcher that runs until watcher.end.
func watchRevoked(t *testing.T, s *server, a *accounts) *watcher {
	t.Helper()
	verifier, err := authn.NewVerifier(callCtx(t), dialConn(t, s.grpcAddr, insecure.NewCredentials()), authn.WithAudience("internal", "watchword"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { verifier.Close() })
	c := dial(t, s.grpcAddr)
	gone := c.login(t, "admin", s.admin)
	w := &watcher{verifier: verifier, ended: gone.GetAccessToken(), live: a.admin.pair.GetAccessToken()}
	if err := c.logout(callCtx(t), gone); err != nil {
		t.Fatal(err)
	}
	eventually(t, propagation, "refusing after the logout", func() error { return w.checkRevoked(t.Context()) })
	ctx, stop := context.WithCancel(t.Context())
	w.stop = stop
	w.task.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for ; ctx.Err() == nil; <-tick.C {
			w.times++
			_, err := verifier.Verify(context.Background(), w.live)
			if err := errors.Join(err, w.checkRevoked(context.Background())); err != nil {
				t.Errorf("a service during the move: %v", err)
				return
			}
		}
	})
	return w
}

func (w *watcher) checkRevoked(ctx context.Context) error {
	_, err := w.verifier.Verify(ctx, w.ended)
	return checkRefusal(err, "TOKEN_REVOKED")
}

func (w *watcher) end(t *testing.T) {
	t.Helper()
	w.stop()
	w.task.Wait()
	t.Logf("the service verified both tokens %d times", w.times)
}

// watched holds the result of reading a stream of WatchBundle.
type watched struct {
	resume           []byte   // the newest position
	snapshot, change []string // ids of ended sessions, from snapshots and from changes
}

// watch opens a stream at a position, and reads up to the first heartbeat.
func (c *client) watch(t *testing.T, resume []byte) (p watched) {
	t.Helper()
	stream, err := c.WatchBundle(callCtx(t), &watchwordv1.WatchBundleRequest{Resume: resume})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(m.GetResume()) > 0 {
			p.resume = m.GetResume()
		}
		for _, ended := range m.GetSnapshotChunk().GetEndedSessions() {
			p.snapshot = append(p.snapshot, ended.GetSessionId())
		}
		for _, ended := range m.GetChange().GetEndedSessions() {
			p.change = append(p.change, ended.GetSessionId())
		}
		if m.GetHeartbeat() != nil {
			return p
		}
	}
}

// TestMoveKeepsSessionsAndPositions moves a server without traffic. The new server must know
// the old server's sessions, revocations, positions, issuer and audit records.
func TestMoveKeepsSessionsAndPositions(t *testing.T) {
	s, to := serve(t, t.TempDir()), newPostgres(t)
	c := dial(t, s.grpcAddr)
	admin, gone := c.login(t, "admin", s.admin), c.login(t, "admin", s.admin)
	wantOK(t, "logout", c.logout(callCtx(t), gone))
	before := c.watch(t, nil)
	if len(before.snapshot) != 1 {
		t.Fatalf("the snapshot has the ended sessions %v, want one", before.snapshot)
	}

	copying := func() result {
		return run(t, to.command(t, "datastore", "copy", database(s.dir), to.uri))
	}
	if r := copying(); r.code != 1 || !strings.Contains(r.stderr, "watchword migrate") {
		t.Errorf("datastore copy into a database without a schema: got %v, want status 1", r)
	}
	to.migrated(t)
	r := copying()
	if out := wantExit(t, 0, r); !strings.Contains(out, "2 rows of sessions") || !strings.Contains(r.stderr, "master key") {
		t.Errorf("datastore copy printed %v, want two sessions and a hint about the master key", r)
	}
	_, err := c.tryRefresh(callCtx(t), admin)
	if authn.Reason(err) != watchwordv1.ErrorReason_ERROR_REASON_STORE_UNAVAILABLE {
		t.Errorf("refresh at the old server: got error %v, want STORE_UNAVAILABLE", err)
	}
	_, err = c.verify(callCtx(t), admin)
	wantOK(t, "verify at the old server", err)
	_, err = c.verify(callCtx(t), gone)
	wantRefusal(t, "verify at the old server after the logout", err, "TOKEN_REVOKED")
	eventually(t, propagation, "turning readiness off at the old server", func() error {
		return s.readyz(t, http.StatusServiceUnavailable, "cannot work with the database")
	})
	s.stop(t)
	log := s.stderr.String()
	away := awayLine.FindAllString(log, -1)
	if len(away) != 1 || !strings.Contains(away[0], "this database was moved to postgres://") || strings.Contains(log, "no such table") {
		t.Errorf("the old server logs %q, want one line with the new database, and no table:\n%s", away, log)
	}
	refusesToStart(t, s.dir, "was moved to postgres://")
	for _, args := range []string{"user list", "key list", "audit", "migrate", "backup b.db"} {
		if r := cli(t, s.dir, "", append(strings.Fields(args), "--datastore-uri", database(s.dir))...); r.code != 1 || !strings.Contains(r.stderr, "was moved to") {
			t.Errorf("%s on the old database: got %v, want status 1 and the new URI", args, r)
		}
	}

	s = to.takeOver(t, s)
	if now := c.watch(t, before.resume); len(now.snapshot) > 0 || len(now.change) > 0 {
		t.Errorf("a watcher with the newest position got %v, want no ended session", now)
	}
	if now := c.watch(t, nil); len(now.snapshot) != 1 {
		t.Errorf("a new watcher got the ended sessions %v, want one", now.snapshot)
	}
	_, err = c.verify(callCtx(t), gone)
	wantRefusal(t, "verify after the move", err, "TOKEN_REVOKED")
	_, err = c.tryRefresh(callCtx(t), gone)
	wantRefusal(t, "refresh after the move", err, "SESSION_REVOKED")
	c.refresh(t, admin)
	set, err := c.GetKeySet(callCtx(t), &watchwordv1.GetKeySetRequest{})
	if err != nil || set.GetIssuer() != "http://"+s.httpAddr {
		t.Errorf("the new server has the issuer %q, error %v; want the old server's issuer", set.GetIssuer(), err)
	}
	if out := wantExit(t, 0, run(t, to.command(t, "audit", "--datastore-uri", to.uri))); strings.Count(out, "logout") != 1 {
		t.Errorf("audit printed %s, want one logout", out)
	}
}
