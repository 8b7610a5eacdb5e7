package e2e

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	_ "modernc.org/sqlite"
)

// longLifetimes are flags for tests with kills and moves. Access tokens live longer than
// the test, and the grace lasts longer than the time between two refreshes on a busy
// machine.
var longLifetimes = []string{"--access-ttl", "1h", "--refresh-grace", "1m"}

// TestKillNine kills a server by SIGKILL during many calls, again and again on the same
// database. The next server must have all acknowledged changes. A call without an answer
// must have been carried out completely, or not at all.
func TestKillNine(t *testing.T) {
	const accounts = 16
	rounds := 2 * len(lastKinds)
	dir := t.TempDir()
	s := serve(t, dir, longLifetimes...)
	all := newAccounts(t, dial(t, s.grpcAddr), s.admin, accounts)
	acked, kills := map[string]int{}, rounds
	for round := range rounds {
		for kind, n := range all.storm(t, s, round) {
			acked[kind] += n
		}
		done := checkIntegrity(t, dir)
		if round%4 == 3 {
			killAtStart(t, dir)
			kills++
		}
		s = serve(t, dir, longLifetimes...)
		if s.admin != "" {
			t.Error("the new server made an admin on the killed server's database")
		}
		all.check(t, s, round == rounds-1)
		<-done
		if t.Failed() {
			t.Fatalf("the failures above are from round %d", round)
		}
	}
	s.stop(t)
	<-checkIntegrity(t, dir)
	t.Logf("%d kills; acknowledged calls: %v", kills, acked)
	for _, c := range calls {
		if acked[c.kind] == 0 {
			t.Errorf("no call %q was acknowledged in any round", c.kind)
		}
	}
}

// accounts holds the admin and all accounts, with the acknowledged state over all rounds.
type accounts struct {
	admin *held
	all   []*account
}

func newAccounts(t *testing.T, c *client, adminPassword string, n int) *accounts {
	t.Helper()
	a := &accounts{admin: &held{pair: c.login(t, "admin", adminPassword, "watchword")}}
	for i := range n {
		name, password := fmt.Sprintf("user-%d", i), newPassword()
		u := c.create(t, a.admin.pair, name, password)
		a.all = append(a.all, &account{id: u.GetId(), name: name, password: password,
			live: []*held{{pair: c.login(t, name, password)}}})
	}
	return a
}

// lastKinds lists kinds of calls, a kind for each round with a chosen kill: the kill comes
// right after an acknowledged call of the kind.
var lastKinds = []string{
	"logout", "revoke", "set password", "disable", "login", "revoke all",
	"logout", "change password", "refresh", "roles", "enable", "create", "delete",
}

// tally counts the acknowledged calls of a round, and kills the server.
//
// After enough calls, the accounts prefer calls of the kind last. After lastCount further
// calls of that kind, tally kills the server.
type tally struct {
	mu        sync.Mutex
	counts    map[string]int // the number of calls, by kind
	total     int
	enough    int
	last      string
	lastCount int
	kill      func()
}

func (a *tally) add(kind string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.counts[kind]++
	if a.total++; a.total < a.enough || kind != a.last {
		return
	}
	if a.lastCount--; a.lastCount <= 0 {
		a.kill()
	}
}

// preferred returns the preferred kind of call. Before `enough` calls were counted, no kind is
// preferred, and preferred returns the empty string.
func (a *tally) preferred() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.total < a.enough {
		return ""
	}
	return a.last
}

// storm lets all accounts make calls at once, kills the server, and returns the numbers of
// acknowledged calls. In even rounds, the kill comes right after an acknowledgement, so a
// server that acknowledges before the commit is noticed. In odd rounds, the kill comes at a
// random time.
func (a *accounts) storm(t *testing.T, s *server, round int) map[string]int {
	ctx, cancel := context.WithTimeout(t.Context(), runTimeout)
	defer cancel()
	kill := sync.OnceFunc(s.kill)
	done := &tally{counts: map[string]int{}, kill: kill}
	within := time.Duration(rand.Int64N(int64(700 * time.Millisecond)))
	if round%2 == 0 {
		done.last, done.enough, done.lastCount = lastKinds[round/2], 50+rand.IntN(250), 1+rand.IntN(8)
		within = runTimeout / 2 // bounds the round on a slow machine
	}
	timer := time.AfterFunc(within, kill)
	defer timer.Stop()
	desks := make([]desk, 4)
	for i := range desks {
		desks[i] = desk{dial(t, s.grpcAddr), a.admin.pair}
		defer desks[i].conn.Close()
	}
	began := time.Now()
	var workers sync.WaitGroup
	for i, account := range a.all {
		workers.Go(func() {
			if err := account.work(ctx, desks[i%len(desks)], done); err != nil {
				t.Errorf("%s: %v", account.name, err)
			}
		})
	}
	workers.Wait()
	kill()
	t.Logf("round %d: killed after %v and %d acknowledgements, kind %q preferred at the end: %v",
		round, time.Since(began).Round(time.Millisecond), done.total, done.last, done.counts)
	return done.counts
}

// work makes calls until the server is killed.
func (a *account) work(ctx context.Context, d desk, done *tally) error {
	for {
		c := a.next(done.preferred())
		err := c.make(ctx, d)
		if err != nil && (status.Code(err) != codes.Unavailable || len(status.Convert(err).Details()) > 0) {
			return fmt.Errorf("%s: %w", c.kind, err) // an error that the kill does not explain
		}
		if err != nil {
			a.unanswered = c
			return nil
		}
		c.then()
		done.add(c.kind)
	}
}

// check compares a new server's state with the state that the killed servers acknowledged.
func (a *accounts) check(t *testing.T, s *server, everything bool) {
	t.Helper()
	ctx, c := callCtx(t), dial(t, s.grpcAddr)
	defer c.conn.Close()
	if err := a.admin.checkLive(ctx, c, []string{"admin"}); err != nil {
		t.Errorf("admin: %v", err)
		return
	}
	var checks sync.WaitGroup
	for _, account := range a.all {
		checks.Go(func() {
			if err := account.check(ctx, desk{c, a.admin.pair}, everything); err != nil {
				t.Errorf("%s: %v", account.name, err)
			}
		})
	}
	checks.Wait()
}

// killAtStart kills a server during the start, or soon after the server is ready.
func killAtStart(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.Command(watchword(t), serveArgs(dir, longLifetimes...)...)
	cmd.Env = environment()
	p := start(t, cmd)
	select {
	case <-time.After(time.Duration(rand.Int64N(int64(150 * time.Millisecond)))):
		p.kill()
	case <-p.exited:
		t.Errorf("the server ended before the kill:\n%s", p.stderr)
	}
}

// halfTransactionQueries finds traces of transactions that were carried out in part. Each
// query returns a row for each trace.
var halfTransactionQueries = []string{
	`SELECT * FROM pragma_integrity_check WHERE integrity_check <> 'ok'`,
	`SELECT id FROM sessions WHERE ended_at IS NOT NULL AND id NOT IN (SELECT subject FROM events)`,
	`SELECT subject FROM events WHERE kind = 'session-ended' AND subject NOT IN (SELECT id FROM sessions WHERE ended_at IS NOT NULL)`,
	`SELECT subject FROM events JOIN users ON id = subject GROUP BY id HAVING max(version) <> ver`,
	`SELECT subject FROM events JOIN users ON id = subject WHERE events.kind = 'version-revoked' GROUP BY id HAVING max(version) <> revoked_below`,
	`SELECT id FROM users WHERE revoked_below > 0 AND id NOT IN (SELECT subject FROM events)`,
	`SELECT id FROM sessions WHERE user_id NOT IN (SELECT id FROM users)`,
	`SELECT seq FROM head WHERE seq <> (SELECT count(*) FROM events) OR seq <> (SELECT max(seq) FROM events)`,
}

// checkIntegrity copies a closed database, and runs halfTransactionQueries on the copy. So
// the next server can start at once, on the unchanged database.
func checkIntegrity(t *testing.T, dir string) (done <-chan struct{}) {
	t.Helper()
	copied := t.TempDir()
	for _, name := range []string{"watchword.db", "watchword.db-wal"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a clean stop removes the log
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(copied, name), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	checked := make(chan struct{})
	go func() {
		defer close(checked)
		if err := findHalfTransactions(t.Context(), filepath.Join(copied, "watchword.db")); err != nil {
			t.Errorf("checking for transactions carried out in part: %v", err)
		}
	}()
	return checked
}

func findHalfTransactions(ctx context.Context, path string) error {
	db, err := sql.Open("sqlite", path)
	if err != nil {
		return err
	}
	defer db.Close()
	for _, query := range halfTransactionQueries {
		var found string
		if err := db.QueryRowContext(ctx, query).Scan(&found); !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("%s: found %q, error %v", query, found, err)
		}
	}
	return nil
}
