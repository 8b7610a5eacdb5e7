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

// postgres is an empty PostgreSQL database: its URI, and its password as a variable.
type postgres struct{ uri, password string }

func newPostgres(t *testing.T) postgres {
	t.Helper()
	u, err := url.Parse(pgtest.URI(t))
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	u.User = url.User(u.User.Username())
	return postgres{u.String(), "PGPASSWORD=" + noteSecret(password)}
}

// migrated has its schema.
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

// masterKeyOf is the file beside the database in a folder.
func masterKeyOf(dir string) string { return filepath.Join(dir, "watchword.db.master-key") }

// takeOver serves a database that a stopped server has served from another, at the
// same addresses.
func (p postgres) takeOver(t *testing.T, from *server, args ...string) *server {
	t.Helper()
	args = append([]string{"serve", "--grpc-addr", from.grpcAddr, "--http-addr", from.httpAddr,
		"--datastore-uri", p.uri, "--master-key-file", masterKeyOf(from.dir)}, args...)
	cmd := exec.Command(watchword(t), args...)
	cmd.Env = []string{p.password}
	return serveCommand(t, from.dir, cmd)
}

// TestMoveUnderLoad takes a server with clients at work from SQLite to PostgreSQL.
// Copies are killed before one comes to its end. Whatever was acknowledged holds,
// and every session goes on.
func TestMoveUnderLoad(t *testing.T) {
	const accounts, killed = 8, 5
	s, to := serve(t, t.TempDir(), killedServer...), newPostgres(t).migrated(t)
	all := newAccounts(t, dial(t, s.grpcAddr), s.admin, accounts)
	watching := watchRevoked(t, s, all)
	working := all.goOnWorking(t, s)

	working.until(100)
	for range killed {
		if killCopy(t, s, to) {
			break // too late to be anything but finished
		}
		working.until(20)
	}
	began := time.Now()
	wantExit(t, 0, run(t, to.command(t, "datastore", "copy", database(s.dir), to.uri)))
	copied := time.Now()
	s.stop(t)
	s = to.takeOver(t, s, killedServer...)
	t.Logf("copied in %v; serving again after %v", copied.Sub(began), time.Since(began))
	if s.admin != "" {
		t.Error("the copy was taken for a new database")
	}

	working.until(200)
	t.Logf("acknowledged were %v", working.end())
	all.check(t, s, true)
	watching.end(t)
}

// killCopy begins a copy and kills it. It reports whether that was too late, and
// the source fenced; otherwise the source must serve.
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

// working is accounts that are at work while their server is moved.
type working struct {
	done    *tally
	more    func(n int) // waits until so many more are acknowledged
	stop    context.CancelFunc
	workers sync.WaitGroup
}

func (a *accounts) goOnWorking(t *testing.T, s *server) *working {
	ctx, stop := context.WithCancel(t.Context())
	w := &working{done: &tally{counts: map[string]int{}}, stop: stop}
	acknowledged := make(chan struct{}, 1)
	w.more = func(n int) {
		for range n {
			select {
			case <-acknowledged:
			case <-time.After(runTimeout):
				t.Fatal("nothing is acknowledged any more")
			}
		}
	}
	for _, account := range a.all {
		d := desk{dial(t, s.grpcAddr), a.admin.pair}
		w.workers.Go(func() {
			for ctx.Err() == nil {
				kind, err := account.persist(callCtx(t), d)
				if err != nil {
					t.Errorf("%s: %v", account.name, err)
					return
				}
				w.done.mu.Lock()
				w.done.counts[kind]++
				w.done.mu.Unlock()
				select {
				case acknowledged <- struct{}{}:
				default: // nobody is waiting
				}
			}
		})
	}
	return w
}

func (w *working) until(more int) { w.more(more) }

func (w *working) end() map[string]int {
	w.stop()
	w.workers.Wait()
	return w.done.counts
}

// persist makes a call, and where the server is not available, finds out whether
// it was carried out, as soon as it is again.
func (a *account) persist(ctx context.Context, d desk) (kind string, err error) {
	c := a.next("")
	if err := c.make(ctx, d); status.Code(err) != codes.Unavailable {
		if err != nil {
			return c.kind, fmt.Errorf("%s: %w", c.kind, err)
		}
		c.then()
		return c.kind, nil
	}
	return "unavailable", a.again(ctx, func() error {
		if c.happened != nil {
			happened, err := c.happened(ctx, d)
			if err != nil {
				return err
			}
			if c.happened = nil; happened {
				c.then()
			}
		}
		for _, h := range a.live { // one of them may have been spent
			if err := h.refresh(ctx, d.client, false); err != nil {
				return err
			}
		}
		return nil
	})
}

// again tries until the server is available.
func (a *account) again(ctx context.Context, try func() error) error {
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
			return fmt.Errorf("it stays away: %w", err)
		}
	}
}

// watcher is a downstream service that verifies all the while.
type watcher struct {
	verifier *authn.Verifier
	ended    string // the access token of a session that has ended
	live     string // and of one that nobody ends
	stop     context.CancelFunc
	task     sync.WaitGroup
	times    int
}

func watchRevoked(t *testing.T, s *server, a *accounts) *watcher {
	t.Helper()
	verifier, err := authn.NewVerifier(callCtx(t), dialConn(t, s.grpcAddr, insecure.NewCredentials()), authn.WithAudience("internal"))
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
	eventually(t, propagation, "the verifier knows of the logout", func() error { return w.refused(t.Context()) })
	ctx, stop := context.WithCancel(t.Context())
	w.stop = stop
	w.task.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for ; ctx.Err() == nil; <-tick.C {
			w.times++
			_, err := verifier.Verify(context.Background(), w.live)
			if err := errors.Join(err, w.refused(context.Background())); err != nil {
				t.Errorf("a service that verifies all the while: %v", err)
				return
			}
		}
	})
	return w
}

func (w *watcher) refused(ctx context.Context) error {
	_, err := w.verifier.Verify(ctx, w.ended)
	return checkRefusal(err, "TOKEN_REVOKED")
}

func (w *watcher) end(t *testing.T) {
	t.Helper()
	w.stop()
	w.task.Wait()
	t.Logf("a service has verified %d times", w.times)
}

// place is where a watcher stands: what the last message that it saw says, and
// which ended sessions it was told of, by snapshot or by change.
type place struct {
	resume           []byte
	snapshot, change []string
}

// watch reads a bundle from a place on, up to the first heartbeat behind it.
func (c *client) watch(t *testing.T, resume []byte) (p place) {
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

// TestMoveKeepsEveryPlace moves a server that nobody writes to, and asks each part
// of the new one for what it must know of the old one.
func TestMoveKeepsEveryPlace(t *testing.T) {
	s, to := serve(t, t.TempDir()), newPostgres(t)
	c := dial(t, s.grpcAddr)
	admin, gone := c.login(t, "admin", s.admin), c.login(t, "admin", s.admin)
	wantOK(t, "logout", c.logout(callCtx(t), gone))
	stood := c.watch(t, nil)
	if len(stood.snapshot) != 1 {
		t.Fatalf("a snapshot with %v", stood.snapshot)
	}

	copying := func() result {
		return run(t, to.command(t, "datastore", "copy", database(s.dir), to.uri))
	}
	if r := copying(); r.code != 1 || !strings.Contains(r.stderr, "watchword migrate") {
		t.Errorf("a copy into a database without a schema: %v", r)
	}
	to.migrated(t)
	r := copying()
	if out := wantExit(t, 0, r); !strings.Contains(out, "2 rows of sessions") || !strings.Contains(r.stderr, "master key") {
		t.Errorf("the copy says %v", r)
	}
	_, err := c.tryRefresh(callCtx(t), admin)
	if authn.Reason(err) != watchwordv1.ErrorReason_ERROR_REASON_STORE_UNAVAILABLE {
		t.Errorf("a refresh at the server that was moved: %v", err)
	}
	_, err = c.verify(callCtx(t), admin)
	wantOK(t, "it verifies from memory", err)
	_, err = c.verify(callCtx(t), gone)
	wantRefusal(t, "it verifies from memory", err, "TOKEN_REVOKED")
	ready, err := http.Get("http://" + s.httpAddr + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	ready.Body.Close()
	if ready.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("asked whether it is ready, it says %s", ready.Status)
	}
	s.stop(t)
	refusesToStart(t, s.dir, "was moved to postgres://")
	for _, args := range []string{"user list", "key list", "audit", "migrate", "backup b.db"} {
		if r := cli(t, s.dir, "", append(strings.Fields(args), "--datastore-uri", database(s.dir))...); r.code != 1 || !strings.Contains(r.stderr, "was moved to") {
			t.Errorf("%s on a database that was moved: %v", args, r)
		}
	}

	s = to.takeOver(t, s)
	if now := c.watch(t, stood.resume); len(now.snapshot) > 0 || len(now.change) > 0 {
		t.Errorf("a watcher that had missed nothing was told of %v again", now)
	}
	if now := c.watch(t, nil); len(now.snapshot) != 1 {
		t.Errorf("a new watcher is told of %v", now.snapshot)
	}
	_, err = c.verify(callCtx(t), gone)
	wantRefusal(t, "after the move", err, "TOKEN_REVOKED")
	_, err = c.tryRefresh(callCtx(t), gone)
	wantRefusal(t, "after the move", err, "SESSION_REVOKED")
	c.refresh(t, admin)
	set, err := c.GetKeySet(callCtx(t), &watchwordv1.GetKeySetRequest{})
	if err != nil || set.GetIssuer() != "http://"+s.httpAddr {
		t.Errorf("it issues as %q, %v", set.GetIssuer(), err)
	}
	if out := wantExit(t, 0, run(t, to.command(t, "audit", "--datastore-uri", to.uri))); strings.Count(out, "logout") != 1 {
		t.Errorf("the record: %s", out)
	}
}
