package e2e

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	_ "modernc.org/sqlite"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// held is what a client holds of a session: the newest tokens that it received.
type held struct {
	pair    *watchwordv1.TokenPair
	ended   bool // a logout was acknowledged
	leaving bool // a logout was sent, and its answer lost
}

// survivors is what clients were told, over all rounds. A worker owns its own
// slice of it while it works.
type survivors struct {
	password string
	created  []string // names of users
	sessions []*held
}

// acks counts what was acknowledged in a round, and kills the server when it is
// enough: right after an acknowledgement, when what was acknowledged has had no
// time to become true later.
type acks struct {
	refreshes, logins, logouts, creates atomic.Int64

	enough int64         // refreshes
	last   *atomic.Int64 // what the acknowledgement before the kill shall be of
	once   sync.Once
	kill   func()
}

func (a *acks) add(n *atomic.Int64) {
	n.Add(1)
	if n == a.last && a.refreshes.Load() >= a.enough && a.creates.Load() >= 2 && a.logins.Load() >= 3 && a.logouts.Load() >= 1 {
		a.once.Do(a.kill)
	}
}

// TestKillNine kills a server while it is at work, again and again on the same
// database. Whatever it has acknowledged must hold.
func TestKillNine(t *testing.T) {
	const rounds, keepers = 5, 4
	dir := t.TempDir()
	s := serve(t, dir)
	adminPassword := s.admin
	all := &survivors{password: newPassword()}
	c := dial(t, s.grpcAddr)
	c.create(t, c.login(t, "admin", adminPassword), "worker", all.password)
	all.created = append(all.created, "worker")
	for range keepers {
		all.sessions = append(all.sessions, &held{pair: c.login(t, "worker", all.password)})
	}

	for round := range rounds {
		c = dial(t, s.grpcAddr)
		killAtWork(t, s, c, all, c.login(t, "admin", adminPassword), round, all.sessions[:keepers])
		checkIntegrity(t, dir)
		s = serve(t, dir)
		if s.admin != "" {
			t.Error("the killed server's database was taken for a new one")
		}
		all.check(t, dial(t, s.grpcAddr), adminPassword)
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	s.stop(t)
	checkIntegrity(t, dir)
}

// killAtWork lets clients work, and kills the server in the middle.
func killAtWork(t *testing.T, s *server, c *client, all *survivors, admin *watchwordv1.TokenPair, round int, keepers []*held) {
	dead := make(chan struct{})
	done := &acks{enough: int64(20 + rand.IntN(60)), kill: func() { s.kill(); close(dead) }}
	done.last = []*atomic.Int64{&done.logouts, &done.creates, &done.logins}[round%3]
	var workers sync.WaitGroup
	work := func(what string, step func(ctx context.Context, n int) error) {
		workers.Go(func() {
			for n := 0; ; n++ {
				err := step(t.Context(), n)
				if err == nil {
					continue
				}
				if status.Code(err) != codes.Unavailable || len(status.Convert(err).Details()) > 0 {
					t.Errorf("%s: %v", what, err) // not by the kill
				}
				return
			}
		})
	}
	for _, h := range keepers {
		work("refresh", func(ctx context.Context, _ int) error { return h.refresh(ctx, c, done) })
	}
	newcomers := make([]survivors, 4)
	for i := range newcomers {
		own := &newcomers[i]
		if i%2 == 0 {
			work("visit", func(ctx context.Context, n int) error { return own.visit(ctx, c, all.password, n, done) })
		} else {
			work("create", func(ctx context.Context, n int) error {
				return own.create(bearer(ctx, admin), c, fmt.Sprintf("user-%d-%d-%d", round, i, n), all.password, done)
			})
		}
	}
	select {
	case <-dead:
	case <-time.After(runTimeout):
		t.Error("not enough was acknowledged in time")
		s.kill()
	}
	workers.Wait()
	for _, own := range newcomers {
		all.created = append(all.created, own.created...)
		all.sessions = append(all.sessions, own.sessions...)
	}
	t.Logf("round %d: killed after %d refreshes, %d logins, %d logouts, %d new users", round,
		done.refreshes.Load(), done.logins.Load(), done.logouts.Load(), done.creates.Load())
}

// refresh replaces the tokens if the answer arrives. When it does not, the
// client cannot know whether the token was spent.
func (h *held) refresh(ctx context.Context, c *client, done *acks) error {
	next, err := c.tryRefresh(ctx, h.pair)
	if err == nil {
		h.pair = next
		done.add(&done.refreshes)
	}
	return err
}

// visit logs in, refreshes, and every second time logs out.
func (s *survivors) visit(ctx context.Context, c *client, password string, n int, done *acks) error {
	resp, err := c.Login(ctx, &watchwordv1.LoginRequest{Username: "worker", Password: password})
	if err != nil {
		return err
	}
	h := &held{pair: tokens(resp.GetTokens())}
	s.sessions = append(s.sessions, h)
	done.add(&done.logins)
	if err := h.refresh(ctx, c, done); err != nil || n%2 == 0 {
		return err
	}
	if err := c.logout(ctx, h.pair); err != nil {
		h.leaving = true
		return err
	}
	h.ended = true
	done.add(&done.logouts)
	return nil
}

func (s *survivors) create(ctx context.Context, c *client, name, password string, done *acks) error {
	_, err := c.CreateUser(ctx, &watchwordv1.CreateUserRequest{Username: name, Password: password})
	if err == nil {
		s.created = append(s.created, name)
		done.add(&done.creates)
	}
	return err
}

// check asks a new server for everything that the killed ones have acknowledged.
func (s *survivors) check(t *testing.T, c *client, adminPassword string) {
	t.Helper()
	admin := c.login(t, "admin", adminPassword)
	there, token := map[string]bool{}, ""
	for more := true; more; more = token != "" {
		resp, err := c.ListUsers(bearer(soon(t), admin), &watchwordv1.ListUsersRequest{PageSize: 20, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, user := range resp.GetUsers() {
			there[user.GetUsername()] = true
		}
		token = resp.GetNextPageToken()
	}
	for _, name := range s.created {
		if !there[name] {
			t.Errorf("the acknowledged user %s is gone", name)
		}
	}
	wantOK(t, "login of the user made last", c.tryLogin(soon(t), s.created[len(s.created)-1], s.password))
	for i, h := range s.sessions {
		if err := h.check(soon(t), c); err != nil {
			t.Errorf("session %d (%s): %v", i, h.pair.GetSessionId(), err)
		}
	}
}

// check goes on with a session by the newest tokens that were received.
func (h *held) check(ctx context.Context, c *client) error {
	next, err := c.tryRefresh(ctx, h.pair)
	if h.leaving {
		h.leaving, h.ended = false, err != nil // now it is known
	}
	if h.ended {
		_, verified := c.verify(ctx, h.pair)
		return errors.Join(notRefused(err, "SESSION_REVOKED"), notRefused(verified, "TOKEN_REVOKED"), c.logout(ctx, h.pair))
	}
	if err != nil {
		return fmt.Errorf("cannot go on: %w", err)
	}
	h.pair = next
	_, err = c.verify(ctx, h.pair)
	return err
}

// checkIntegrity looks at a copy of a database that nobody has open, so that
// the next server finds it as it was left.
func checkIntegrity(t *testing.T, dir string) {
	t.Helper()
	copied := t.TempDir()
	for _, name := range []string{"watchword.db", "watchword.db-wal"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // after a clean stop there is no log
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(copied, name), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	db, err := sql.Open("sqlite", filepath.Join(copied, "watchword.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var verdict string
	if err := db.QueryRowContext(t.Context(), "PRAGMA integrity_check").Scan(&verdict); err != nil || verdict != "ok" {
		t.Errorf("integrity check: %q, %v", verdict, err)
	}
	var users int
	if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM users").Scan(&users); err != nil || users < 2 {
		t.Errorf("the database holds %d users, %v", users, err)
	}
}
