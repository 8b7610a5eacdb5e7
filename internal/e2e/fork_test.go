package e2e

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/pgtest"
)

// forkedLine is what a server says that has noticed.
var forkedLine = regexp.MustCompile(`the database is not the one that it was`)

// bundleStream is a watcher that notes what it is told.
type bundleStream struct {
	recv   func() (*watchwordv1.WatchBundleResponse, error)
	resume []byte
	ended  map[string]bool // sessions
}

// watchFrom opens a stream, and reads what comes before the first heartbeat.
func watchFrom(t *testing.T, c *client, resume []byte) *bundleStream {
	t.Helper()
	stream, err := c.WatchBundle(callCtx(t), &watchwordv1.WatchBundleRequest{Resume: resume})
	if err != nil {
		t.Fatal(err)
	}
	w := &bundleStream{recv: stream.Recv, ended: map[string]bool{}}
	for {
		m, err := w.next()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetHeartbeat() != nil {
			return w
		}
	}
}

func (w *bundleStream) next() (*watchwordv1.WatchBundleResponse, error) {
	m, err := w.recv()
	if err != nil {
		return nil, err
	}
	if r := m.GetResume(); len(r) > 0 {
		w.resume = r
	}
	for _, s := range slices.Concat(m.GetSnapshotChunk().GetEndedSessions(), m.GetChange().GetEndedSessions()) {
		w.ended[s.GetSessionId()] = true
	}
	return m, nil
}

// until reads until a session is told of as ended.
func (w *bundleStream) until(t *testing.T, session string) {
	t.Helper()
	for !w.ended[session] {
		if _, err := w.next(); err != nil {
			t.Fatal(err)
		}
	}
}

// sentAway reads to the end of the stream, which must say to come back.
func (w *bundleStream) sentAway(t *testing.T) {
	t.Helper()
	for {
		if _, err := w.next(); err != nil {
			if status.Code(err) != codes.Unavailable {
				t.Errorf("the stream ended with %v, want UNAVAILABLE", err)
			}
			return
		}
	}
}

// head is the number of the newest event at a server.
func head(t *testing.T, in *installation, c *pgtest.Cluster) (seq int64) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), c.Here(in.direct))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(t.Context(), "SELECT seq FROM head").Scan(&seq); err != nil {
		t.Fatal(err)
	}
	return seq
}

// forked is an installation whose standby was left behind, and those who saw what
// the standby did not.
type forked struct {
	*installation
	a, b     *client
	admin    *watchwordv1.TokenPair
	password string
	// Sessions: one that ended before the fork, one behind it in the old history, one
	// in the new, and one that goes on.
	kept, lost, next, live *watchwordv1.TokenPair
	spare                  []*watchwordv1.TokenPair // for logouts in the new history
	end                    int64                    // the newest event of the old history
	stream                 *bundleStream
	verifier               *authn.Verifier
	other                  *authn.Verifier // of the other replica
}

// The primary is lost, and a standby that has not heard everything takes its
// place, as a backup does that is restored. The servers notice, and send their
// watchers away and then a snapshot; one who was told that something is revoked
// goes on to refuse it; and what is acknowledged from then on holds at once, though
// the numbers of its events were given out before.
func TestPromotedBehind(t *testing.T) {
	t.Run("noticed at once", func(t *testing.T) {
		f := fork(t)
		a, b := f.replicas[0], f.replicas[1]
		b.kill()
		f.primary.Kill()
		f.promote()
		eventually(t, propagation, "logout in the new history", func() error { return f.a.logout(callCtx(t), f.next) })
		_, err := f.a.verify(callCtx(t), f.next)
		wantRefusal(t, "by the replica that has acknowledged", err, "TOKEN_REVOKED")
		a.now().awaitLog(t, forkedLine)
		b.restart()
		f.b = b.dial(t)
		f.overtake(t)
		f.after(t)
	})
	t.Run("overtaken before it is noticed", func(t *testing.T) {
		f := fork(t)
		a, b := f.replicas[0], f.replicas[1]
		b.kill()
		a.now().signal(t, syscall.SIGSTOP)
		defer a.now().signal(t, syscall.SIGCONT) // in any case
		f.primary.Kill()
		f.promote()
		b.restart()
		f.b = b.dial(t)
		wantOK(t, "logout in the new history", f.b.logout(callCtx(t), f.next))
		f.overtake(t)
		a.now().signal(t, syscall.SIGCONT)
		a.now().awaitLog(t, forkedLine)
		f.after(t)
	})
}

// fork makes an installation whose standby has heard of some, and not of the rest.
func fork(t *testing.T) *forked {
	in := install(t, "--access-ttl", "1h")
	in.follow(false)
	f := &forked{installation: in, a: in.replicate(t).dial(t), b: in.replicate(t).dial(t), password: newPassword()}
	f.before(t)
	return f
}

// overtake brings the new history to where the old one ended, and further.
func (f *forked) overtake(t *testing.T) {
	for _, pair := range f.spare {
		wantOK(t, "one more logout in the new history", f.b.logout(callCtx(t), pair))
	}
	if now := head(t, f.installation, f.primary); now <= f.end {
		t.Fatalf("the old history ended at %d, the new one is at %d", f.end, now)
	}
}

// before lets the standby hear of some, and not of the rest.
func (f *forked) before(t *testing.T) {
	f.admin = f.a.login(t, "admin", f.installation.admin)
	f.a.create(t, f.admin, "alice", f.password)
	login := func() *watchwordv1.TokenPair { return f.a.login(t, "alice", f.password) }
	f.kept, f.lost, f.next, f.live = login(), login(), login(), login()
	more := []*watchwordv1.TokenPair{login(), login()}
	f.spare = []*watchwordv1.TokenPair{login(), login(), login(), login()}
	var err error
	if f.verifier, err = authn.NewVerifier(callCtx(t), f.a.conn, authn.WithAudience("internal")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.verifier.Close() })
	if f.other, err = authn.NewVerifier(callCtx(t), f.b.conn, authn.WithAudience("internal")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.other.Close() })
	f.stream = watchFrom(t, f.a, nil)
	wantOK(t, "a logout that the standby has", f.a.logout(callCtx(t), f.kept))
	eventually(t, propagation, "the standby follows", func() error {
		if there, here := head(t, f.installation, f.standby), head(t, f.installation, f.primary); there != here {
			return fmt.Errorf("at %d of %d", there, here)
		}
		return nil
	})
	f.standby.Detach(t)
	for _, pair := range append(more, f.lost) {
		wantOK(t, "a logout that the standby has not", f.a.logout(callCtx(t), pair))
	}
	for range 3 {
		f.live = f.b.refresh(t, f.live)
	}
	f.stream.until(t, f.lost.GetSessionId())
	eventually(t, propagation, "everybody knows", func() error { return f.refused(f.lost, f.verifier, f.other) })
	f.end = head(t, f.installation, f.primary)
	if there := head(t, f.installation, f.standby); there != f.end-3 {
		t.Fatalf("the standby is at %d, the primary at %d", there, f.end)
	}
}

// refused asks verifiers about a session that has ended.
func (f *forked) refused(pair *watchwordv1.TokenPair, by ...*authn.Verifier) error {
	for i, v := range by {
		_, err := v.Verify(context.Background(), pair.GetAccessToken())
		if err := checkRefusal(err, "TOKEN_REVOKED"); err != nil {
			return fmt.Errorf("verifier %d: %w", i, err)
		}
	}
	return nil
}

// after looks at the new history from all sides.
func (f *forked) after(t *testing.T) {
	f.stream.sentAway(t)
	for _, pair := range []*watchwordv1.TokenPair{f.kept, f.lost} {
		_, err := f.a.verify(callCtx(t), pair)
		wantRefusal(t, "a replica that knew of the end", err, "TOKEN_REVOKED")
		wantOK(t, "verifiers that knew of the end", f.refused(pair, f.verifier, f.other))
	}
	eventually(t, propagation, "all learn of the new history", func() error { return f.refused(f.next, f.verifier, f.other) })

	eventually(t, propagation, "the first replica has caught up", func() error {
		_, err := f.a.verify(callCtx(t), f.spare[len(f.spare)-1])
		return checkRefusal(err, "TOKEN_REVOKED")
	})

	old := watchFrom(t, f.a, f.stream.resume)
	f.wantTold(t, "the old position, where the old history is remembered", old, f.kept, f.lost, f.next)
	f.wantTold(t, "the new position", watchFrom(t, f.a, old.resume))
	f.wantTold(t, "the old position, at a server that has only the new history", watchFrom(t, f.b, f.stream.resume), f.kept, f.next)
	f.wantTold(t, "one server's position at another", watchFrom(t, f.b, old.resume))

	f.live = f.b.refresh(t, f.live) // ahead of its row, which fell behind
	_, err := f.a.verify(callCtx(t), f.live)
	wantOK(t, "a session whose refreshes were lost", err)
	again := f.b.login(t, "alice", f.password)
	wantOK(t, "logout at the other", f.b.logout(callCtx(t), again))
	eventually(t, propagation, "all learn of what comes", func() error { return f.refused(again, f.verifier, f.other) })
}

// wantTold compares what a watcher was told before the first heartbeat.
func (f *forked) wantTold(t *testing.T, what string, w *bundleStream, pairs ...*watchwordv1.TokenPair) {
	t.Helper()
	for _, pair := range pairs {
		if !w.ended[pair.GetSessionId()] {
			t.Errorf("%s: not told of a session that has ended", what)
		}
	}
	if len(pairs) == 0 && len(w.ended) > 0 {
		t.Errorf("%s: told of %d sessions that it knew", what, len(w.ended))
	}
}
