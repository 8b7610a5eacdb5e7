package feed_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/hub"
	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }

func openStore(t testing.TB, path string) *store.Store {
	t.Helper()
	return storetest.Open(t, "sqlite:"+path)
}

// eachEngine runs a test on SQLite and on PostgreSQL. uri names a new database.
func eachEngine(t *testing.T, test func(t *testing.T, uri string)) {
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) { test(t, new(t)) })
}

// feedOn runs a feed on a database until the end of the test.
func feedOn(t *testing.T, uri string) (*feed.Feed, *store.Store) {
	t.Helper()
	s := storetest.Open(t, uri)
	f := openFeed(t, s)
	run(t, f)
	return f, s
}

func openFeed(t testing.TB, s *store.Store) *feed.Feed {
	t.Helper()
	return openWith(t, s, nil)
}

func openWith(t testing.TB, s *store.Store, keys feed.Keys) *feed.Feed {
	t.Helper()
	f, err := feed.Open(context.Background(), s, feed.Origin{Issuer: "https://auth.test", DatabaseID: "database", Keys: keys}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	f.Hub().SealResume([]byte("the key of all replicas"))
	return f
}

// run runs a feed until the end of the test.
func run(t *testing.T, f *feed.Feed) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { f.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
}

func newFeed(t *testing.T) (*feed.Feed, *store.Store) {
	t.Helper()
	s := openStore(t, filepath.Join(t.TempDir(), "f.db"))
	f := openFeed(t, s)
	run(t, f)
	return f, s
}

func ended(id string) func(*feed.Tx) error {
	return func(tx *feed.Tx) error { return tx.SessionEnded(id) }
}

func write(t *testing.T, s *store.Store, fn func(*feed.Tx) error) {
	t.Helper()
	if err := feed.Direct(s).Write(context.Background(), fn); err != nil {
		t.Fatal(err)
	}
}

func watch(t *testing.T, f *feed.Feed) *hub.Watcher {
	t.Helper()
	return rejoin(t, f, nil)
}

func next(t *testing.T, w *hub.Watcher) *watchwordv1.WatchBundleResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	encoded, err := w.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(encoded) > 1<<20 {
		t.Fatalf("a message of %d bytes", len(encoded))
	}
	return decode(t, encoded)
}

func decode(t testing.TB, encoded hub.Message) *watchwordv1.WatchBundleResponse {
	t.Helper()
	m := &watchwordv1.WatchBundleResponse{}
	if err := proto.Unmarshal(encoded, m); err != nil {
		t.Fatal(err)
	}
	return m
}

// snapshot reads up to the heartbeat after the snapshot, and returns the ended sessions and the
// raised versions.
func snapshot(t *testing.T, w *hub.Watcher) (sessions []string, versions []*watchwordv1.RaisedVersion) {
	t.Helper()
	for last := false; !last; {
		chunk := next(t, w).GetSnapshotChunk()
		for _, e := range chunk.GetEndedSessions() {
			sessions = append(sessions, e.GetSessionId())
		}
		versions = append(versions, chunk.GetRaisedVersions()...)
		last = chunk.GetLast()
	}
	if next(t, w).GetHeartbeat().GetTimes() == nil {
		t.Fatal("no heartbeat behind the snapshot")
	}
	return sessions, versions
}

func TestSnapshotThenChanges(t *testing.T) {
	eachEngine(t, func(t *testing.T, uri string) {
		f, s := feedOn(t, uri)
		early := watch(t, f)
		if sessions, _ := snapshot(t, early); len(sessions) != 0 {
			t.Fatalf("an empty database ended %v", sessions)
		}
		write(t, s, ended("one"))
		write(t, s, func(tx *feed.Tx) error { return tx.VersionRaised("alice", 7, true) })
		for got := 0; got < 2; {
			change := next(t, early).GetChange()
			for _, e := range change.GetEndedSessions() {
				if e.GetSessionId() != "one" || !e.GetUntil().AsTime().After(time.Now()) {
					t.Fatalf("ended %v", e)
				}
				got++
			}
			for _, r := range change.GetRaisedVersions() {
				if r.GetUserId() != "alice" || r.GetVersion() != 7 || !r.GetRevoked() {
					t.Fatalf("raised %v", r)
				}
				got++
			}
		}
		sessions, versions := snapshot(t, watch(t, f))
		if len(sessions) != 1 || len(versions) != 1 {
			t.Fatalf("a later snapshot holds %v, %v", sessions, versions)
		}
	})
}

func TestAnotherProcessIsHeardWithinASecond(t *testing.T) {
	eachEngine(t, func(t *testing.T, uri string) {
		f, _ := feedOn(t, uri)
		w := watch(t, f)
		snapshot(t, w)
		another, late := storetest.Open(t, uri), storetest.Lateness(t)
		began := time.Now()
		write(t, another, ended("there"))
		for next(t, w).GetChange() == nil {
		}
		if took, most := time.Since(began), time.Second+20*late(); took > most {
			t.Fatalf("received after %v, want at most %v", took, most)
		}
	})
}

// Behind PgBouncer no hint arrives, and polling finds every event.
func TestPollingAloneBehindPgBouncer(t *testing.T) {
	uri := storetest.Postgres(t)
	f, s := feedOn(t, pgtest.Bouncer(t, uri)+"&default_query_exec_mode=exec")
	w := watch(t, f)
	snapshot(t, w)
	late := storetest.Lateness(t)
	for i, from := range []*store.Store{storetest.Open(t, uri), s, storetest.Open(t, uri)} {
		began := time.Now()
		write(t, from, ended(fmt.Sprint(i)))
		for {
			m := next(t, w)
			if sessions := m.GetChange().GetEndedSessions(); len(sessions) == 1 && sessions[0].GetSessionId() == fmt.Sprint(i) {
				break
			}
		}
		if took, most := time.Since(began), 5*time.Second+20*late(); took > most { // the feed polls at least twice a second
			t.Errorf("received after %v, want at most %v", took, most)
		}
	}
}

func TestEventsOutliveARestartUntilTheyExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, filepath.Join(t.TempDir(), "f.db"))
		write(t, s, func(tx *feed.Tx) error { return tx.RaiseMaxLifetime(time.Minute) })
		write(t, s, ended("one"))
		f := openFeed(t, s)
		if sessions, _ := snapshot(t, watch(t, f)); len(sessions) != 1 {
			t.Fatalf("after a restart: %v", sessions)
		}
		if max := f.Hub().TrustState().GetMaxTokenLifetime().AsDuration(); max != time.Minute {
			t.Fatalf("longest lifetime %v", max)
		}
		storetest.Wait(t, s, time.Minute+feed.Margin-time.Second)
		if err := f.Prune(t.Context()); err != nil {
			t.Fatal(err)
		}
		if sessions, _ := snapshot(t, watch(t, openFeed(t, s))); len(sessions) != 1 {
			t.Fatal("forgotten before the last token has expired")
		}
		time.Sleep(24 * time.Hour) // a day passes, in which no tick is counted
		if err := f.Prune(t.Context()); err != nil {
			t.Fatal(err)
		}
		if sessions, _ := snapshot(t, watch(t, openFeed(t, s))); len(sessions) != 1 {
			t.Fatal("forgotten by the clock alone")
		}
		write(t, s, ended("two")) // the newest event stays
		storetest.Wait(t, s, 30*time.Minute)
		if err := f.Prune(t.Context()); err != nil {
			t.Fatal(err)
		}
		if sessions, _ := snapshot(t, watch(t, openFeed(t, s))); slices.Contains(sessions, "one") {
			t.Fatalf("never pruned: %v", sessions)
		}
		run(t, f)
		time.Sleep(10 * time.Second)
		if sessions, _ := snapshot(t, watch(t, f)); len(sessions) != 0 {
			t.Fatalf("kept in memory: %v", sessions)
		}
	})
}

// Ticks survive restarts: servers that run for two minutes each prune what is old, no earlier
// and not much later than a server that runs on.
func TestServersThatRestartPrune(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "f.db")
		serve := func(d time.Duration) (left int) {
			s := storetest.Open(t, "sqlite:"+path)
			f := openFeed(t, s)
			ctx, stop := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { f.Run(ctx) })
			time.Sleep(d)
			if err := f.Prune(t.Context()); err != nil {
				t.Fatal(err)
			}
			stop()
			running.Wait()
			sessions, _ := snapshot(t, watch(t, openFeed(t, s)))
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return len(sessions)
		}
		s := storetest.Open(t, "sqlite:"+path)
		write(t, s, func(tx *feed.Tx) error { return tx.RaiseMaxLifetime(time.Minute) })
		write(t, s, ended("one"))
		write(t, s, ended("two")) // the newest event stays
		const life = time.Minute + feed.Margin
		began, ran := time.Now(), time.Duration(0)
		for serve(2*time.Minute) > 1 {
			if ran += 2 * time.Minute; ran > life+30*time.Minute {
				t.Fatalf("nothing was pruned in %v", ran)
			}
			time.Sleep(time.Second)
		}
		if time.Since(began) < life {
			t.Errorf("pruned after %v", time.Since(began))
		}
	})
}

// resume reads up to the heartbeat after the first messages of the stream, and returns the ended
// sessions and the resume token.
func resume(t *testing.T, w *hub.Watcher) (sessions []string, at []byte) {
	t.Helper()
	for n := 0; ; n++ {
		m := next(t, w)
		if m.GetHeartbeat() != nil {
			t.Fatal("a heartbeat came before the opening was complete")
		}
		chunk := m.GetSnapshotChunk()
		if n == 0 && chunk.GetTrustState().GetIssuer() == "" {
			t.Fatalf("the stream begins with %v", m)
		}
		for _, e := range append(chunk.GetEndedSessions(), m.GetChange().GetEndedSessions()...) {
			sessions = append(sessions, e.GetSessionId())
		}
		if len(m.GetResume()) > 0 {
			at = m.GetResume()
		}
		if chunk.GetLast() {
			break
		}
	}
	if next(t, w).GetHeartbeat() == nil {
		t.Fatal("no heartbeat behind the snapshot")
	}
	return sessions, at
}

func rejoin(t *testing.T, f *feed.Feed, at []byte) *hub.Watcher {
	t.Helper()
	w, err := f.Hub().Watch(t.Context(), hub.Peer{Name: "peer"}, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// tail makes a feed read every event committed so far.
func tail(t *testing.T, f *feed.Feed) {
	t.Helper()
	if err := feed.CatchUp(f, t.Context()); err != nil {
		t.Fatal(err)
	}
}

// known returns a database with one ended session, a feed on the database, and the
// resume token of a watcher that knows the session.
func known(t *testing.T, session string) (s *store.Store, f *feed.Feed, at []byte) {
	t.Helper()
	s = openStore(t, filepath.Join(t.TempDir(), "f.db"))
	write(t, s, ended(session))
	f = openFeed(t, s)
	_, at = resume(t, watch(t, f))
	return s, f, at
}

func TestResumeTellsWhatWasMissedAndNoMore(t *testing.T) {
	s, f, at := known(t, "known")
	if again, _ := resume(t, rejoin(t, f, at)); len(again) != 0 {
		t.Fatalf("received again %v", again)
	}
	write(t, s, ended("missed"))
	tail(t, f)
	f.Hub().Beat()
	for name, replica := range map[string]*feed.Feed{"here": f, "at another replica, begun since": openFeed(t, s)} {
		w := rejoin(t, replica, at)
		sessions, newer := resume(t, w)
		if len(sessions) == 0 || sessions[len(sessions)-1] != "missed" {
			t.Fatalf("%s: received %v", name, sessions)
		}
		if name == "here" && len(sessions) != 1 {
			t.Fatalf("a snapshot: %v", sessions)
		}
		write(t, s, ended("new"))
		tail(t, replica)
		for next(t, w).GetChange().GetEndedSessions()[0].GetSessionId() != "new" {
		}
		if sessions, _ := resume(t, rejoin(t, replica, newer)); len(sessions) == 0 || slices.Contains(sessions, "missed") {
			t.Fatalf("%s: resumed again, received %v", name, sessions)
		}
	}
}

// The events of one transaction come in one message, together with the trust state
// that the transaction has changed.
func TestATrustStateComesWithTheEventsOfItsTransaction(t *testing.T) {
	eachEngine(t, func(t *testing.T, uri string) {
		f, s := feedOn(t, uri)
		w := watch(t, f)
		snapshot(t, w)
		write(t, s, func(tx *feed.Tx) error {
			return errors.Join(tx.SessionEnded("one"), tx.RaiseMaxLifetime(time.Hour), tx.SessionEnded("two"))
		})
		for {
			change := next(t, w).GetChange()
			if change == nil {
				continue
			}
			if n := len(change.GetEndedSessions()); n != 2 {
				t.Errorf("%d of two sessions in the first message", n)
			}
			if told := change.GetTrustState().GetMaxTokenLifetime().AsDuration(); told != time.Hour {
				t.Errorf("received a longest lifetime of %v", told)
			}
			if here := f.Hub().TrustState().GetMaxTokenLifetime().AsDuration(); here != time.Hour {
				t.Errorf("the trust state has a longest lifetime of %v", here)
			}
			return
		}
	})
}

// rewrite gives a database another history, as a restored backup does, or a promoted
// standby that lacks the newest commits.
func rewrite(t *testing.T, path string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, statement := range statements {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAnotherHistoryIsNoticedAndCostsASnapshot(t *testing.T) {
	for name, after := range map[string][]string{"behind": nil, "as long": {"other"}, "longer": {"other", "another"}} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f.db")
			s := openStore(t, path)
			write(t, s, ended("kept"))
			write(t, s, ended("lost"))
			f := openFeed(t, s)
			run(t, f)
			w := watch(t, f)
			_, at := resume(t, w)
			rewrite(t, path, `DELETE FROM events WHERE subject = 'lost'`, `UPDATE head SET seq = seq - 1`)
			for _, id := range after {
				write(t, s, ended(id))
			}
			if _, err := w.Next(t.Context()); !errors.Is(err, hub.ErrBehind) {
				t.Fatalf("a watcher of the old history continues: %v", err)
			}
			want := append([]string{"kept", "lost"}, after...)
			sessions, newer := resume(t, rejoin(t, f, at))
			for _, id := range want {
				if !slices.Contains(sessions, id) {
					t.Errorf("after the fork, received %v, not of %s", sessions, id)
				}
			}
			again := rejoin(t, f, newer)
			if sessions, _ := resume(t, again); len(sessions) != 0 {
				t.Errorf("resumed in the new history, received %v", sessions)
			}
			write(t, s, ended("later")) // an event of the old history had the same number
			for next(t, again).GetChange() == nil {
			}
			if sessions, _ := resume(t, rejoin(t, f, newer)); len(sessions) != 1 {
				t.Errorf("then received %v", sessions)
			}
		})
	}
}

// After a fork the numbers of events begin again at a lower number, which was applied
// before in the old history. Write still waits until our verifier has applied the
// event of the new history, also if the feed has yet to notice the fork.
func TestWriteAfterAForkWaitsForOurVerifier(t *testing.T) {
	for name, since := range map[string]time.Duration{"noticed": time.Second, "not yet noticed": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { writeAfterAFork(t, since) })
		})
	}
}

func writeAfterAFork(t *testing.T, since time.Duration) {
	path := filepath.Join(t.TempDir(), "f.db")
	s := openStore(t, path)
	write(t, s, func(tx *feed.Tx) error { return tx.RaiseMaxLifetime(time.Minute) })
	for i := range 5 {
		write(t, s, ended(fmt.Sprint(i)))
	}
	f := openFeed(t, s)
	run(t, f)
	v, err := authn.NewVerifier(t.Context(), f.Hub().Conn(), authn.WithAnyAudience())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if err := f.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	rewrite(t, path, `DELETE FROM events WHERE seq > 2`, `UPDATE head SET seq = 2`)
	time.Sleep(since)
	before := v.Status().EndedSessions
	if err := f.Write(t.Context(), ended("new")); err != nil {
		t.Fatal(err)
	}
	if after := v.Status().EndedSessions; after != before+1 {
		t.Fatalf("acknowledged with %d ended sessions known, before %d", after, before)
	}
	rewrite(t, path, `DELETE FROM events WHERE seq > 2`, `UPDATE head SET seq = 2`)
	time.Sleep(since)
	write(t, s, ended("by another"))
	if err := f.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := v.Status().EndedSessions; after != before+2 {
		t.Fatalf("synced with %d ended sessions known, before %d", after, before)
	}
}

// Write also returns if every event was pruned: pruned numbers count as applied.
func TestWriteAfterARestartWithEverythingPruned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s := newFeed(t)
		write(t, s, func(tx *feed.Tx) error { return tx.RaiseMaxLifetime(time.Minute) })
		write(t, s, ended("one"))
		storetest.Wait(t, s, 30*time.Minute)
		if err := f.Prune(t.Context()); err != nil {
			t.Fatal(err)
		}
		again := openFeed(t, s)
		run(t, again)
		v, err := authn.NewVerifier(t.Context(), again.Hub().Conn(), authn.WithAnyAudience())
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		if err := again.Write(t.Context(), func(*feed.Tx) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if err := again.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// Write returns after the verifier in the same process has applied the change.
func TestWriteReturnsWhenOurVerifierKnows(t *testing.T) {
	eachEngine(t, func(t *testing.T, uri string) {
		f, _ := feedOn(t, uri)
		var p peer.Peer
		stream, err := f.Hub().Conn().NewStream(t.Context(), &grpc.StreamDesc{}, watchwordv1.TrustService_WatchBundle_FullMethodName, grpc.Peer(&p))
		if err != nil || p.Addr == nil {
			t.Fatalf("peer %v, %v", p, err)
		}
		if err := stream.SendMsg(&watchwordv1.WatchBundleRequest{}); err != nil {
			t.Fatal(err)
		}
		recv := func() *watchwordv1.WatchBundleResponse {
			m := &watchwordv1.WatchBundleResponse{}
			if err := stream.RecvMsg(m); err != nil {
				t.Fatal(err)
			}
			return m
		}
		for recv().GetHeartbeat() == nil {
		}
		done := make(chan error, 1)
		go func() { done <- f.Write(context.Background(), ended("one")) }()
		for recv().GetChange() == nil {
		}
		select {
		case err := <-done:
			t.Fatalf("acknowledged while the change was being applied: %v", err)
		default:
		}
		go func() { _ = stream.RecvMsg(&watchwordv1.WatchBundleResponse{}) }() // the change has been applied
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

func TestWriteDoesNotWaitForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := newFeed(t) // without a verifier
		if err := f.Write(t.Context(), ended("one")); !errors.Is(err, store.ErrUnavailable) {
			t.Fatalf("Write: %v", err)
		}
	})
}

// While the feed has read only a part of the tail, its heartbeats claim no newer time
// (as_of), and watchers receive no newer trust state.
func TestHalfOfTheTailIsNotAllThatHappened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, filepath.Join(t.TempDir(), "f.db"))
		var look func()
		f := openWith(t, s, func(context.Context, *store.Tx) (set feed.KeySet, err error) {
			if look != nil {
				look()
			}
			return set, err
		})
		opened := f.Hub().Elapsed()
		time.Sleep(time.Minute)
		write(t, s, func(tx *feed.Tx) error { return tx.RaiseMaxLifetime(time.Minute) })
		const n = 1_001 // more than is read at a time
		write(t, s, func(tx *feed.Tx) (err error) {
			for i := range n {
				err = errors.Join(err, tx.SessionEnded(fmt.Sprint(i)))
			}
			return err
		})
		half := 0
		look = func() {
			w := watch(t, f)
			for m := next(t, w); ; m = next(t, w) {
				half += len(m.GetSnapshotChunk().GetEndedSessions())
				if lifetime := m.GetSnapshotChunk().GetTrustState().GetMaxTokenLifetime(); lifetime.AsDuration() != 0 {
					t.Errorf("keys that come after what is known: %v", lifetime)
				}
				if beat := m.GetHeartbeat(); beat != nil {
					if asOf := beat.GetAsOf().AsDuration(); asOf > opened {
						t.Errorf("after half of the tail, a heartbeat claims that all is known up to %v after", asOf-opened)
					}
					return
				}
			}
		}
		tail(t, f)
		if half == 0 || half == n {
			t.Fatalf("looked with %d sessions known", half)
		}
		w := watch(t, f)
		for m := next(t, w); ; m = next(t, w) {
			if beat := m.GetHeartbeat(); beat != nil {
				if asOf := beat.GetAsOf().AsDuration(); asOf != f.Hub().Elapsed() {
					t.Errorf("all is known, up to %v", asOf)
				}
				return
			}
		}
	})
}

// The store logs an outage of the database in one line, and the feed adds no line.
func TestAnOutageIsLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	proxy := pgtest.NewProxy(t, storetest.Postgres(t))
	s, err := store.Open(t.Context(), proxy.URI(), store.WithLogger(logger))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f, err := feed.Open(t.Context(), s, feed.Origin{Issuer: "https://auth.test", DatabaseID: "database"}, logger)
	if err != nil {
		t.Fatal(err)
	}
	proxy.Lead("127.0.0.1:1")
	proxy.Cut()
	feed.CountTicks(f)
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("%d lines:\n%s", n, &log)
	}
}
