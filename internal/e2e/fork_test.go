package e2e

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/pgtest"
)

// forkedLine matches the log of a server that has noticed another history in the database.
var forkedLine = regexp.MustCompile(`the database is not the one that it was`)

// bundleStream reads a stream of WatchBundle, and notes the position and the ended sessions.
type bundleStream struct {
	recv   func() (*watchwordv1.WatchBundleResponse, error)
	resume []byte          // the newest position
	ended  map[string]bool // ids of sessions
}

// watchFrom opens a stream at a position, and reads up to the first heartbeat.
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

// awaitEnded reads until a message says that the session has ended.
func (w *bundleStream) awaitEnded(t *testing.T, session string) {
	t.Helper()
	for !w.ended[session] {
		if _, err := w.next(); err != nil {
			t.Fatal(err)
		}
	}
}

// wantUnavailableEnd reads until the stream ends. The end must be UNAVAILABLE, so clients
// connect again.
func (w *bundleStream) wantUnavailableEnd(t *testing.T) {
	t.Helper()
	for {
		if _, err := w.next(); err != nil {
			if status.Code(err) != codes.Unavailable {
				t.Errorf("the stream of WatchBundle ended with %v, want UNAVAILABLE", err)
			}
			return
		}
	}
}

// head returns the number of the newest event on a database server.
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

// forked is an installation with a standby that lacks the newest events, and with clients
// that know the newest events.
type forked struct {
	*installation
	a, b     *client // clients of the two replicas
	admin    *watchwordv1.TokenPair
	password string
	// kept is a session that ended before the fork. lost is a session that ended after the
	// fork in the old history, next a session that ends in the new history. live goes on.
	kept, lost, next, live *watchwordv1.TokenPair
	spare                  []*watchwordv1.TokenPair // sessions for logouts in the new history
	end                    int64                    // the newest event of the old history
	stream                 *bundleStream
	verifier               *authn.Verifier // a verifier of the first replica
	other                  *authn.Verifier // a verifier of the second replica
}

// TestPromotedBehind kills the primary and promotes a standby that lacks the newest events.
// A restored backup has the same effect. The servers must notice, end the streams of
// WatchBundle, and send snapshots. A verifier that knows of a revocation must keep refusing
// the token. A change acknowledged in the new history must take effect at once, although
// the numbers of the new events were used before.
func TestPromotedBehind(t *testing.T) {
	t.Run("noticed at once", func(t *testing.T) {
		f := fork(t)
		a, b := f.replicas[0], f.replicas[1]
		b.kill()
		f.primary.Kill()
		f.promote()
		eventually(t, propagation, "logout in the new history", func() error { return f.a.logout(callCtx(t), f.next) })
		_, err := f.a.verify(callCtx(t), f.next)
		wantRefusal(t, "verify at the replica of the logout", err, "TOKEN_REVOKED")
		a.now().awaitLog(t, forkedLine)
		b.restart()
		f.b = b.dial(t)
		f.overtake(t)
		f.checkNewHistory(t)
	})
	t.Run("noticed after the new history is longer", func(t *testing.T) {
		f := fork(t)
		a, b := f.replicas[0], f.replicas[1]
		b.kill()
		a.now().signal(t, pgtest.Freeze)
		defer a.now().signal(t, pgtest.Thaw) // also after a failure
		f.primary.Kill()
		f.promote()
		b.restart()
		f.b = b.dial(t)
		wantOK(t, "logout in the new history", f.b.logout(callCtx(t), f.next))
		f.overtake(t)
		a.now().signal(t, pgtest.Thaw)
		a.now().awaitLog(t, forkedLine)
		f.checkNewHistory(t)
	})
}

// fork makes an installation with a standby that lacks the newest events.
func fork(t *testing.T) *forked {
	in := install(t, "--access-ttl", "1h")
	in.follow(false)
	f := &forked{installation: in, a: in.replicate(t).dial(t), b: in.replicate(t).dial(t), password: newPassword()}
	f.makeOldHistory(t)
	return f
}

// overtake adds events until the new history is longer than the old history.
func (f *forked) overtake(t *testing.T) {
	for _, pair := range f.spare {
		wantOK(t, "another logout in the new history", f.b.logout(callCtx(t), pair))
	}
	if now := head(t, f.installation, f.primary); now <= f.end {
		t.Fatalf("the new history has %d events, the old history had %d; want more in the new history", now, f.end)
	}
}

// makeOldHistory makes events before and after the standby is detached.
func (f *forked) makeOldHistory(t *testing.T) {
	f.admin = f.a.login(t, "admin", f.installation.admin, "watchword")
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
	wantOK(t, "a logout before the fork", f.a.logout(callCtx(t), f.kept))
	eventually(t, propagation, "replicating to the standby", func() error {
		if there, here := head(t, f.installation, f.standby), head(t, f.installation, f.primary); there != here {
			return fmt.Errorf("the standby has event %d of %d", there, here)
		}
		return nil
	})
	f.standby.Detach(t)
	for _, pair := range append(more, f.lost) {
		wantOK(t, "a logout after the fork", f.a.logout(callCtx(t), pair))
	}
	for range 3 {
		f.live = f.b.refresh(t, f.live)
	}
	f.stream.awaitEnded(t, f.lost.GetSessionId())
	eventually(t, propagation, "refusing at all verifiers", func() error { return f.checkRevoked(f.lost, f.verifier, f.other) })
	f.end = head(t, f.installation, f.primary)
	if there := head(t, f.installation, f.standby); there != f.end-3 {
		t.Fatalf("the standby has event %d, the primary has %d; want a difference of 3", there, f.end)
	}
}

// checkRevoked returns an error unless all verifiers refuse a session's access token.
func (f *forked) checkRevoked(pair *watchwordv1.TokenPair, by ...*authn.Verifier) error {
	for i, v := range by {
		_, err := v.Verify(context.Background(), pair.GetAccessToken())
		if err := checkRefusal(err, "TOKEN_REVOKED"); err != nil {
			return fmt.Errorf("verifier %d: %w", i, err)
		}
	}
	return nil
}

// checkNewHistory checks replicas, verifiers and streams after the promotion.
func (f *forked) checkNewHistory(t *testing.T) {
	f.stream.wantUnavailableEnd(t)
	for _, pair := range []*watchwordv1.TokenPair{f.kept, f.lost} {
		_, err := f.a.verify(callCtx(t), pair)
		wantRefusal(t, "verify at a replica that knew of the end", err, "TOKEN_REVOKED")
		wantOK(t, "refusal by verifiers that knew of the end", f.checkRevoked(pair, f.verifier, f.other))
	}
	eventually(t, propagation, "learning of the new history", func() error { return f.checkRevoked(f.next, f.verifier, f.other) })

	eventually(t, propagation, "reading the new history at the first replica", func() error {
		_, err := f.a.verify(callCtx(t), f.spare[len(f.spare)-1])
		return checkRefusal(err, "TOKEN_REVOKED")
	})

	old := watchFrom(t, f.a, f.stream.resume)
	f.wantEndedSessions(t, "the old position, at a replica that knows the old history", old, f.kept, f.lost, f.next)
	f.wantEndedSessions(t, "the new position", watchFrom(t, f.a, old.resume))
	f.wantEndedSessions(t, "the old position, at a replica that knows only the new history", watchFrom(t, f.b, f.stream.resume), f.kept, f.next)
	f.wantEndedSessions(t, "the first replica's position at the second", watchFrom(t, f.b, old.resume))

	f.live = f.b.refresh(t, f.live) // the token's generation is above the generation in the database
	_, err := f.a.verify(callCtx(t), f.live)
	wantOK(t, "verify of a session with lost refreshes", err)
	again := f.b.login(t, "alice", f.password)
	wantOK(t, "logout at the second replica", f.b.logout(callCtx(t), again))
	eventually(t, propagation, "learning of a logout in the new history", func() error { return f.checkRevoked(again, f.verifier, f.other) })
}

// wantEndedSessions checks the ended sessions from before the stream's first heartbeat. The
// stream must include the given pairs; without pairs, the stream must include none.
func (f *forked) wantEndedSessions(t *testing.T, what string, w *bundleStream, pairs ...*watchwordv1.TokenPair) {
	t.Helper()
	for _, pair := range pairs {
		if !w.ended[pair.GetSessionId()] {
			t.Errorf("%s: the stream lacks an ended session", what)
		}
	}
	if len(pairs) == 0 && len(w.ended) > 0 {
		t.Errorf("%s: the stream repeats %d ended sessions, want none", what, len(w.ended))
	}
}
