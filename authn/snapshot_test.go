package authn_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

// startKept makes a world with a snapshot file.
func startKept(t *testing.T, opts ...authn.Option) (w *world, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "bundle")
	return start(t, append(opts, authn.WithSnapshotFile(path))...), path
}

// nowhere returns a connection to a server that is away.
func nowhere(t *testing.T) *grpc.ClientConn {
	t.Helper()
	listener, stop := serve(func(*grpc.Server) {})
	stop()
	conn := dial(listener)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// alone makes a verifier from a snapshot file while the server is away.
func (w *world) alone(t *testing.T, path string, opts ...authn.Option) *world {
	t.Helper()
	opts = append(opts, authn.WithAudience("internal"), authn.WithSnapshotFile(path))
	return &world{Verifier: newVerifier(t, nowhere(t), opts...), key: w.key}
}

func resumeAt(m *message, at string) *message {
	m.Resume = []byte(at)
	return m
}

func edit(session, user string) func(*token.Claims) {
	return func(c *token.Claims) { c.SessionID, c.Subject = session, user }
}

// After a restart without the server, a verifier gives the same answers as before the restart,
// until each token or revocation expires.
func TestTheBundleOutlivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, path := startKept(t)
		leaving := newKey(t)
		state := trustState(first.key, leaving)
		state.Keys[1].VerifiesUntil = timestamppb.New(time.Now().Add(2 * time.Minute))
		first.watch.tell(change(&watchwordv1.Change{TrustState: state}),
			endedSession("session-1", time.Now().Add(maxLifetime)), endedSession("a session of 16", time.Now().Add(maxLifetime)),
			raisedVersion("user-2", 8, true), raisedVersion("user-3", 8, false), raisedVersion("user-4", 7, true),
			raisedVersion("user-5", 7, true), raisedVersion("user-5", 8, false), heartbeat(time.Now()))
		left := mint(t, leaving, edit("session-6", "user-6"))
		short := mint(t, first.key, edit("session-7", "user-7"), func(c *token.Claims) { c.ExpiresAt = c.IssuedAt.Add(time.Minute) })
		verdicts := map[string]string{
			mint(t, first.key, edit("session-1", "user-1")):       "TOKEN_REVOKED",
			mint(t, first.key, edit("a session of 16", "user-1")): "TOKEN_REVOKED",
			mint(t, first.key, edit("session-2", "user-2")):       "TOKEN_REVOKED",
			mint(t, first.key, edit("session-3", "user-3")):       "TOKEN_STALE",
			mint(t, first.key, edit("session-4", "user-4")):       "ok",
			mint(t, first.key, edit("session-5", "user-5")):       "TOKEN_STALE",
			left:               "ok",
			short:              "ok",
			mint(t, newKey(t)): "TOKEN_INVALID",
		}
		check := func(w *world) {
			t.Helper()
			for raw, want := range verdicts {
				w.wants(t, raw, want)
			}
		}
		check(first)
		first.Close()
		for range 3 { // each verifier starts from the file of the verifier before
			w := first.alone(t, path)
			check(w)
			w.Close()
		}

		w := first.alone(t, path)
		time.Sleep(2 * time.Minute)
		verdicts[left], verdicts[short] = "TOKEN_INVALID", "TOKEN_EXPIRED"
		check(w)
		check(first.alone(t, path))
	})
}

// NewVerifier waits two seconds for the server, and then uses the file.
func TestASnapshotEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, path := startKept(t)
		first.Close()
		made := func(ctx context.Context, conn *grpc.ClientConn, path string) (time.Duration, error) {
			began := time.Now()
			v, err := authn.NewVerifier(ctx, conn, authn.WithAudience("internal"), authn.WithSnapshotFile(path))
			if err == nil {
				_, err = v.Verify(t.Context(), mint(t, first.key))
				v.Close()
			}
			return time.Since(began), err
		}
		if took, err := made(t.Context(), nowhere(t), path); err != nil || took != 2*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		within, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if took, err := made(within, nowhere(t), path); err != nil || took != time.Second {
			t.Errorf("with a deadline: %v after %v", err, took)
		}
		stopped, stop := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, stop)
		if _, err := made(stopped, nowhere(t), path); status.Code(err) != codes.Canceled {
			t.Errorf("given up: %v", err)
		}
		within, cancel = context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if took, err := made(within, nowhere(t), path+".none"); status.Code(err) != codes.DeadlineExceeded || took != time.Minute {
			t.Errorf("without a file: %v after %v", err, took)
		}

	})
}

// After Ready has accepted a snapshot, later errors of the server do not end readiness.
func TestReadyStaysReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, path := startKept(t)
		first.Close()
		server, conn := serveTrust(t)
		w := &world{Verifier: newVerifier(t, conn, authn.WithAudience("internal"), authn.WithSnapshotFile(path)), key: first.key}
		w.wants(t, mint(t, first.key), "ok")
		within, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.Ready(within); err != nil {
			t.Fatal(err)
		}
		(<-server.streams).end <- status.Error(codes.PermissionDenied, "no")
		synctest.Wait()
		if err := w.Ready(t.Context()); err != nil {
			t.Error(err)
		}
		w.wants(t, mint(t, first.key), "ok")
	})
}

func TestTheAgeOfASnapshotIsStaleness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, path := startKept(t)
		first.Close()
		time.Sleep(40 * time.Second)
		going, refusing := first.alone(t, path), first.alone(t, path, authn.WithMaxStaleness(time.Minute, authn.RefuseWhenStale))
		check := func(age time.Duration, stale bool, refusal string) {
			t.Helper()
			going.wants(t, mint(t, first.key), "ok")
			refusing.wants(t, mint(t, first.key), refusal)
			for _, w := range []*world{going, refusing} {
				if s := w.Status(); s.Staleness != age || s.Stale != stale {
					t.Errorf("age %v, stale %v; want %v, %v", s.Staleness, s.Stale, age, stale)
				}
			}
			if got := refusing.Status().Ready; got == stale {
				t.Errorf("stale %v, ready %v", stale, got)
			}
		}
		check(40*time.Second, false, "ok")
		time.Sleep(20 * time.Second)
		check(time.Minute, false, "ok")
		time.Sleep(time.Second)
		check(61*time.Second, true, "BUNDLE_STALE")

		// Another restart does not make the bundle younger.
		going.Close()
		refusing.Close()
		going, refusing = first.alone(t, path), first.alone(t, path, authn.WithMaxStaleness(time.Minute, authn.RefuseWhenStale))
		check(61*time.Second, true, "BUNDLE_STALE")
	})
}

// The log shows once that the snapshot is stale, at the start or later.
func TestAStaleSnapshotIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, path := startKept(t)
		first.Close()
		for range 2 {
			var log logBuffer
			w := first.alone(t, path, authn.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
			time.Sleep(61 * time.Second)
			synctest.Wait()
			w.Close()
			if got := log.String(); strings.Count(got, "the trust bundle is stale") != 1 || strings.Count(got, "using the snapshot") != 1 {
				t.Error(got)
			}
		}
	})
}

// When the server answers, the server's trust state replaces the trust state of the file,
// and the file's revocations still count. The verifier asks only for the changes since the
// file was written.
func TestTheServerGoesOnWhereTheSnapshotEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, path := startKept(t)
		first.watch.tell(resumeAt(endedSession("session-1", time.Now().Add(maxLifetime)), "one"), resumeAt(heartbeat(time.Now()), "two"),
			endedSession("session-2", time.Now().Add(maxLifetime)))
		first.Close()
		time.Sleep(30 * time.Second)

		server, conn := serveTrust(t)
		w := &world{Verifier: newVerifier(t, conn, authn.WithAudience("internal"), authn.WithSnapshotFile(path)), key: first.key}
		watch := <-server.streams
		if watch.resume != "two" {
			t.Errorf("resumed at %q, want two", watch.resume)
		}
		old := mint(t, first.key, edit("session-4", "user-4"))
		w.wants(t, old, "ok")
		next := newKey(t)
		watch.tell(chunk(&watchwordv1.SnapshotChunk{TrustState: trustState(next)}))
		w.wants(t, old, "TOKEN_INVALID") // withdrawn while the verifier was not running
		watch.tell(resumeAt(endedSession("session-3", time.Now().Add(maxLifetime)), "three"),
			chunk(&watchwordv1.SnapshotChunk{Last: true}), heartbeat(time.Now()))
		for _, session := range []string{"session-1", "session-2", "session-3"} {
			w.wants(t, mint(t, next, edit(session, "user-1")), "TOKEN_REVOKED")
		}
		w.wants(t, mint(t, next, edit("session-4", "user-1")), "ok")
		if s := w.Status(); s.Staleness != 0 {
			t.Errorf("the age is %v", s.Staleness)
		}
		w.Close()
		first.key = next
		again := first.alone(t, path)
		again.wants(t, mint(t, next, edit("session-3", "user-1")), "TOKEN_REVOKED")
		again.wants(t, old, "TOKEN_INVALID")
	})
}

// The file is written soon after the first bundle and after a change of keys, and within 16
// seconds otherwise, also for heartbeats alone.
func TestTheFileIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, path := startKept(t)
		copied := func() *world { // starts a verifier from a copy of the file, as after a kill
			t.Helper()
			kept, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			other := filepath.Join(t.TempDir(), "copy")
			if err := os.WriteFile(other, kept, 0o600); err != nil {
				t.Fatal(err)
			}
			return w.alone(t, other)
		}
		raw := mint(t, w.key)
		copied().wants(t, raw, "ok")
		next := newKey(t)
		w.watch.tell(change(&watchwordv1.Change{TrustState: trustState(w.key, next)}))
		time.Sleep(time.Second)
		synctest.Wait()
		copied().wants(t, mint(t, next), "ok")
		w.watch.tell(change(&watchwordv1.Change{TrustState: trustState(next)}))
		time.Sleep(time.Second)
		synctest.Wait()
		copied().wants(t, raw, "TOKEN_INVALID")
		w.watch.tell(endedSession("session-1", time.Now().Add(maxLifetime)))
		time.Sleep(16 * time.Second)
		synctest.Wait()
		copied().wants(t, mint(t, next), "TOKEN_REVOKED")
		w.watch.tell(heartbeat(time.Now()))
		time.Sleep(16 * time.Second)
		synctest.Wait()
		if age := copied().Status().Staleness; age.Round(time.Second) != 16*time.Second {
			t.Errorf("the age is %v", age)
		}
		was, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Second)
		w.Close()
		if is, err := os.Stat(path); err != nil || !os.SameFile(was, is) {
			t.Errorf("the file was written again without news (%v)", err)
		}
	})
}

// A bad file is ignored, as the log and Status show, and then replaced.
func TestABadFileIsIgnoredAndReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, path := startKept(t)
		first.Close()
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		damaged := bytes.Clone(good)
		damaged[len(good)/2] ^= 1
		for name, c := range map[string]struct {
			content []byte
			problem string
		}{
			"empty":     {nil, "not a snapshot"},
			"foreign":   {[]byte(strings.Repeat("#!/bin/sh\n", 100)), "not a snapshot"},
			"cut":       {good[:len(good)-1], "malformed"},
			"longer":    {append(bytes.Clone(good), 0), "follow the end"},
			"damaged":   {damaged, ""},
			"version 1": {bytes.Replace(good, []byte("snapshot 2"), []byte("snapshot 1"), 1), "another version"},
			"cut early": {good[:40], "not a snapshot"},
		} {
			if err := os.WriteFile(path, c.content, 0o600); err != nil {
				t.Fatal(err)
			}
			var log logBuffer
			server, conn := serveTrust(t)
			w := &world{Verifier: newVerifier(t, conn, authn.WithAudience("internal"), authn.WithSnapshotFile(path),
				authn.WithLogger(slog.New(slog.NewTextHandler(&log, nil)))), key: first.key}
			w.wants(t, mint(t, first.key), "BUNDLE_STALE")
			if err := w.Status().SnapshotError; err == nil || !strings.Contains(err.Error(), c.problem) || !strings.Contains(log.String(), "ignoring the snapshot") {
				t.Errorf("%s: %v; log: %s", name, err, &log)
			}
			watch := <-server.streams
			watch.tell(snapshot(trustState(first.key)), heartbeat(time.Now()))
			w.wants(t, mint(t, first.key), "ok")
			if err := w.Status().SnapshotError; err != nil || watch.resume != "" {
				t.Errorf("%s: the problem %v after the first bundle, resumed at %q", name, err, watch.resume)
			}
			w.Close()
			first.alone(t, path).wants(t, mint(t, first.key), "ok")
		}
	})
}

// A file that cannot be written does not disturb the verifier, and is tried again.
func TestAFileThatCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		folder := filepath.Join(t.TempDir(), "much", "later") // a verifier makes one folder
		path := filepath.Join(folder, "bundle")
		var log logBuffer
		w := start(t, authn.WithSnapshotFile(path), authn.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		hasLogged := func(failures, recoveries int) {
			t.Helper()
			for range 4 {
				time.Sleep(16 * time.Second)
				w.watch.tell(heartbeat(time.Now()))
			}
			w.wants(t, mint(t, w.key), "ok")
			got := log.String()
			if strings.Count(got, "cannot write the snapshot") != failures || strings.Count(got, "works again") != recoveries {
				t.Errorf("want %d failures and %d recoveries: %s", failures, recoveries, got)
			}
			if err := w.Status().SnapshotError; (err != nil) != (failures > recoveries) {
				t.Errorf("Status: %v", err)
			}
		}
		hasLogged(1, 0)
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		hasLogged(1, 1)
		if err := os.RemoveAll(folder); err != nil {
			t.Fatal(err)
		}
		hasLogged(2, 1)
	})
}

// The drafts of processes killed while writing are harmless, and are removed.
func TestDraftsAreRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, path := startKept(t)
		first.Close()
		// A bubble begins in the year 2000, so the times of the files are set by hand.
		long := time.Now().Add(-2 * time.Minute)
		folder := filepath.Dir(path)
		for name, at := range map[string]time.Time{".bundle.1.tmp": long, ".bundle.2.tmp": time.Now(), ".other.3.tmp": long, "bundle.tmp": long} {
			file := filepath.Join(folder, name)
			if err := os.WriteFile(file, []byte("half of"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(file, at, at); err != nil {
				t.Fatal(err)
			}
		}
		first.alone(t, path).wants(t, mint(t, first.key), "ok")
		var names []string
		entries, err := os.ReadDir(folder)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if got := strings.Join(names, " "); got != ".bundle.2.tmp .other.3.tmp bundle bundle.tmp" {
			t.Error(got)
		}
	})
}

func TestSnapshotFileNeedsAPath(t *testing.T) {
	_, err := authn.NewVerifier(t.Context(), newHandFed(), authn.WithAudience("internal"), authn.WithSnapshotFile(""))
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "WithSnapshotFile") {
		t.Error(err)
	}
}
