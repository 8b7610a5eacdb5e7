package authn

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

func emptyBundle() *bundle {
	return newBundle(slog.New(slog.DiscardHandler), 0, staleness{after: time.Minute})
}

// fill makes a complete bundle with n ended sessions and n raised users.
func fill(tb testing.TB, n int) *bundle {
	tb.Helper()
	key, err := token.GenerateKey(token.EdDSA)
	if err != nil {
		tb.Fatal(err)
	}
	b := emptyBundle()
	now := time.Now()
	until := timestamppb.New(now.Add(5 * time.Minute))
	learn := func(c *watchwordv1.Change) {
		if err := b.learn(c); err != nil {
			tb.Fatal(err)
		}
	}
	learn(&watchwordv1.Change{TrustState: &watchwordv1.TrustState{
		Issuer: "i", MaxTokenLifetime: durationpb.New(5 * time.Minute), Margin: durationpb.New(1500 * time.Millisecond),
		Keys: []*watchwordv1.VerificationKey{{Key: key.Public().JWK(), VerifiesUntil: timestamppb.New(now.Add(time.Hour))}},
	}})
	for i := 0; i < n; {
		c := &watchwordv1.Change{}
		for end := min(n, i+1000); i < end; i++ {
			c.EndedSessions = append(c.EndedSessions, &watchwordv1.EndedSession{SessionId: fmt.Sprintf("session%9d", i), Until: until})
			c.RaisedVersions = append(c.RaisedVersions, &watchwordv1.RaisedVersion{UserId: fmt.Sprintf("user %d", i), Version: int64(i), Revoked: i%2 == 0, Until: until})
		}
		learn(c)
	}
	b.beat(&watchwordv1.Heartbeat{ServerTime: timestamppb.New(now)}, true)
	b.fresh.resumeAt([]byte("here"))
	return b
}

func written(tb testing.TB, b *bundle) []byte {
	tb.Helper()
	var to bytes.Buffer
	n, err := b.writeSnapshot(&to)
	if err != nil || n != to.Len() {
		tb.Fatalf("%d bytes of %d, %v", n, to.Len(), err)
	}
	return to.Bytes()
}

func read(snapshot []byte) (*bundle, error) {
	b := emptyBundle()
	return b, b.readSnapshot(bytes.NewReader(snapshot), int64(len(snapshot)))
}

// same checks that two bundles have the same content.
func same(t *testing.T, a, b *bundle) {
	t.Helper()
	aTrust, bTrust := a.trust.Load(), b.trust.Load()
	if a.revoked.ended.len() != b.revoked.ended.len() || a.revoked.raised.len() != b.revoked.raised.len() || len(aTrust.keys) != len(bTrust.keys) {
		t.Fatalf("%d sessions, %d users and %d keys; want %d, %d and %d", b.revoked.ended.len(), b.revoked.raised.len(), len(bTrust.keys),
			a.revoked.ended.len(), a.revoked.raised.len(), len(aTrust.keys))
	}
	for id, keep := range a.revoked.ended.all(&a.revoked.mu) {
		if got, ok := b.revoked.ended.get(id); !ok || got != keep {
			t.Fatalf("session %s is kept until %d, want %d", id, got, keep)
		}
	}
	for id, r := range a.revoked.raised.all(&a.revoked.mu) {
		if got, ok := b.revoked.raised.get(id); !ok || got != r {
			t.Fatalf("user %s: %v, want %v", id, got, r)
		}
	}
	for kid, key := range aTrust.keys {
		if got := bTrust.keys[kid]; got == nil || got.until != key.until {
			t.Fatalf("key %s: %v", kid, got)
		}
	}
	aAt, bAt := a.fresh.position.Load(), b.fresh.position.Load()
	if aTrust.issuer != bTrust.issuer || aTrust.margin != bTrust.margin || aTrust.maxLifetime != bTrust.maxLifetime ||
		!bytes.Equal(aAt.resume, bAt.resume) || aAt.asOf != bAt.asOf || !aAt.server.Equal(bAt.server) || !aAt.local.Equal(bAt.local) {
		t.Fatalf("%v %v, want %v %v", bTrust, bAt, aTrust, aAt)
	}
}

func TestSnapshotIsReadAsItWasWritten(t *testing.T) {
	for _, n := range []int{0, 1, snapshotChunk / 2, snapshotChunk, 3*snapshotChunk + 1} {
		b := fill(t, n)
		again, err := read(written(t, b))
		if err != nil {
			t.Fatal(err)
		}
		same(t, b, again)
		same(t, again, mustRead(t, written(t, again)))
		for m := range b.messages(b.fresh.position.Load()) {
			if c := m.GetSnapshotChunk(); len(c.GetEndedSessions())+len(c.GetRaisedVersions()) > snapshotChunk {
				t.Errorf("a chunk has %d sessions and %d users", len(c.GetEndedSessions()), len(c.GetRaisedVersions()))
			}
		}
	}
}

func mustRead(t *testing.T, snapshot []byte) *bundle {
	t.Helper()
	b, err := read(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A snapshot with any byte changed, or cut anywhere, is refused.
func TestADamagedSnapshotIsRefused(t *testing.T) {
	good := written(t, fill(t, 3))
	for i := range good {
		for _, flip := range []byte{1, 0x80, 0xff} {
			bad := bytes.Clone(good)
			bad[i] ^= flip
			if _, err := read(bad); err == nil {
				t.Errorf("accepted, with byte %d of %d changed by %#x", i, len(good), flip)
			}
		}
		if _, err := read(good[:i]); err == nil {
			t.Errorf("accepted, with the first %d bytes of %d alone", i, len(good))
		}
	}
	for _, more := range [][]byte{{0}, good, make([]byte, sha256.Size)} {
		if _, err := read(append(bytes.Clone(good), more...)); err == nil {
			t.Errorf("accepted, with %d more bytes after the end", len(more))
		}
	}
	if err := emptyBundle().readSnapshot(bytes.NewReader(good), 1<<40); err == nil || !strings.Contains(err.Error(), "longer") {
		t.Errorf("a terabyte: %v", err)
	}
}

// sealed returns a snapshot of the messages: with the beginning and the checksum.
func sealed(messages []byte) []byte {
	s := append([]byte(snapshotBegin), binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixNano()))...)
	s = append(s, messages...)
	sum := sha256.Sum256(s)
	return append(s, sum[:]...)
}

// messagesOf returns the messages of a snapshot. It is the inverse of sealed.
func messagesOf(snapshot []byte) []byte {
	return snapshot[len(snapshotBegin)+8 : len(snapshot)-sha256.Size]
}

func TestASnapshotOutOfOrderIsRefused(t *testing.T) {
	type message = watchwordv1.WatchBundleResponse
	state := fill(t, 0).trust.Load().said
	now := timestamppb.Now()
	chunk := func(c *watchwordv1.SnapshotChunk) *message {
		return &message{Message: &watchwordv1.WatchBundleResponse_SnapshotChunk{SnapshotChunk: c}}
	}
	beat := func(server, asOf *timestamppb.Timestamp) *message {
		return &message{Message: &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: &watchwordv1.Heartbeat{ServerTime: server, AsOf: asOf}}}
	}
	whole, last := chunk(&watchwordv1.SnapshotChunk{TrustState: state, Last: true}), chunk(&watchwordv1.SnapshotChunk{Last: true})
	first, good := chunk(&watchwordv1.SnapshotChunk{TrustState: state}), beat(now, now)
	far := timestamppb.New(time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC))
	for name, c := range map[string]struct {
		ok       bool
		messages []*message
	}{
		"whole":               {true, []*message{whole, good}},
		"in two":              {true, []*message{first, last, good}},
		"nothing":             {false, nil},
		"no heartbeat":        {false, []*message{whole}},
		"no last chunk":       {false, []*message{first, good}},
		"no trust state":      {false, []*message{last, good}},
		"two trust states":    {false, []*message{first, whole, good}},
		"trust state late":    {false, []*message{chunk(&watchwordv1.SnapshotChunk{}), whole, good}},
		"empty trust state":   {false, []*message{chunk(&watchwordv1.SnapshotChunk{TrustState: &watchwordv1.TrustState{}, Last: true}), good}},
		"chunk after last":    {false, []*message{whole, last, good}},
		"two heartbeats":      {false, []*message{whole, good, good}},
		"early heartbeat":     {false, []*message{first, good, last, good}},
		"change":              {false, []*message{first, {Message: &watchwordv1.WatchBundleResponse_Change{Change: &watchwordv1.Change{}}}, last, good}},
		"empty message":       {false, []*message{whole, {}, good}},
		"no time":             {false, []*message{whole, beat(nil, now)}},
		"no age":              {false, []*message{whole, beat(now, nil)}},
		"impossible time":     {false, []*message{whole, beat(&timestamppb.Timestamp{Seconds: 1 << 62}, now)}},
		"a far future":        {false, []*message{whole, beat(far, now)}},
		"a far future of age": {false, []*message{whole, beat(now, far)}},
	} {
		var body bytes.Buffer
		out := bufio.NewWriter(&body)
		for _, m := range c.messages {
			if _, err := protodelim.MarshalTo(out, m); err != nil {
				t.Fatal(err)
			}
		}
		out.Flush()
		if _, err := read(sealed(body.Bytes())); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzSnapshot reads messages as a snapshot with a good checksum. An accepted snapshot is the
// same after writing and reading, and the clock is never behind the snapshot.
func FuzzSnapshot(f *testing.F) {
	for _, n := range []int{0, 1, 300} {
		f.Add(messagesOf(written(f, fill(f, n))))
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, messages []byte) {
		_, _ = read(messages)
		b, err := read(sealed(messages))
		if err != nil {
			return
		}
		if now := b.fresh.clock.now(); now.Before(b.fresh.position.Load().server) || now.Before(time.Now().Add(-time.Minute)) || b.fresh.age() < 0 {
			t.Errorf("the clock shows %v, and the age is %v", now, b.fresh.age())
		}
		same(t, b, mustRead(t, written(t, b)))
	})
}

// While the snapshot file is written, no lock is held, so no call waits for a slow disk.
func TestTheLockIsNotHeldWhileWriting(t *testing.T) {
	b := fill(t, 10*snapshotChunk)
	to := &lockWatcher{lock: &b.revoked.mu}
	if _, err := b.writeSnapshot(to); err != nil {
		t.Fatal(err)
	}
	if to.writes < 3 || to.locked > 0 {
		t.Errorf("the lock was held in %d of %d writes", to.locked, to.writes)
	}
}

// lockWatcher counts the writes, and the writes during which the lock is held.
type lockWatcher struct {
	lock           *sync.RWMutex
	writes, locked int
}

func (w *lockWatcher) Write(p []byte) (int, error) {
	w.writes++
	if !w.lock.TryLock() {
		w.locked++
		return len(p), nil
	}
	w.lock.Unlock()
	return len(p), nil
}

// A snapshot written while the feed applies messages has every message before the
// snapshot's resume token.
func TestWritingWhileTheFeedGoesOn(t *testing.T) {
	b := fill(t, 3*snapshotChunk)
	stop := make(chan struct{})
	var feed sync.WaitGroup
	feed.Go(func() {
		for n := uint64(1); ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			change := &watchwordv1.Change{EndedSessions: []*watchwordv1.EndedSession{{SessionId: fmt.Sprintf("number%10d", n)}}}
			if n%100 == 0 { // an entry that expires at once, and a heartbeat that forgets the entry
				change.RaisedVersions = []*watchwordv1.RaisedVersion{{UserId: fmt.Sprint(n), Version: 1, Until: timestamppb.New(time.Now().Add(-time.Hour))}}
				b.revoked.nextPrune = time.Time{}
				b.beat(&watchwordv1.Heartbeat{ServerTime: timestamppb.Now()}, true)
			}
			resume := binary.BigEndian.AppendUint64(nil, n)
			if _, err := b.apply(&watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_Change{Change: change}, Resume: resume}, upToDate); err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer feed.Wait()
	defer close(stop)
	for last := uint64(0); last < 3000; {
		again := mustRead(t, written(t, b))
		resume := again.fresh.position.Load().resume
		if len(resume) != 8 {
			continue // the feed has not begun
		}
		last = binary.BigEndian.Uint64(resume)
		for n := uint64(1); n <= last; n++ {
			if _, ok := again.revoked.ended.get(fmt.Sprintf("number%10d", n)); !ok {
				t.Fatalf("the position is %d, and session %d is missing", last, n)
			}
		}
	}
}

// The clock of a bundle from a snapshot begins at the latest possible time.
func TestTheClockOfASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		for name, c := range map[string]struct {
			server, local, want time.Duration // from now
		}{
			"both right":                     {-time.Hour, -time.Hour, 0},
			"the server is ahead":            {-time.Hour + 5*time.Second, -time.Hour, 5 * time.Second},
			"the server is behind":           {-time.Hour - 5*time.Second, -time.Hour, 0},
			"the machine was set back":       {-time.Minute, 2 * time.Hour, 0},
			"set back, far behind server":    {3 * time.Hour, 2 * time.Hour, 3 * time.Hour},
			"the machine was set ahead":      {-10 * time.Hour, -time.Hour, 0},
			"set ahead, still behind server": {10 * time.Hour, -time.Hour, 11 * time.Hour},
		} {
			b := fill(t, 1)
			b.fresh.position.Store(&position{server: now.Add(c.server), local: now.Add(c.local), asOf: now.Add(c.server).UnixNano()})
			again := mustRead(t, written(t, b))
			if got := again.fresh.clock.now().Sub(now); got != c.want {
				t.Errorf("%s: %v from now, want %v", name, got, c.want)
			}
			if age := again.fresh.age(); age != c.want-c.server {
				t.Errorf("%s: the age is %v", name, age)
			}
			// The clock continues, and the server's first heartbeat corrects the clock.
			time.Sleep(time.Second)
			if got := time.Until(again.fresh.clock.now()); got != c.want {
				t.Errorf("%s: %v from now after a second", name, got)
			}
			again.beat(&watchwordv1.Heartbeat{ServerTime: timestamppb.Now()}, true)
			if got := time.Until(again.fresh.clock.now()); got != 0 || again.fresh.age() != 0 {
				t.Errorf("%s: after a heartbeat the clock leads by %v, and the age is %v", name, got, again.fresh.age())
			}
			time.Sleep(time.Second)
			if age := again.fresh.age(); age != time.Second {
				t.Errorf("%s: a second later the age is %v", name, age)
			}
			now = time.Now()
		}
	})
}

// After a restart, a clock that guesses a time far too late deletes no revocation: the next
// heartbeat corrects the clock, and the revocation still counts. Entries that had expired
// by the server's time are deleted.
func TestAWrongGuessForgetsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := fill(t, 10)
		at := *b.fresh.position.Load()
		at.local = at.local.Add(-1000 * time.Hour) // so long ago the snapshot seems to be
		b.fresh.position.Store(&at)
		if err := b.learn(&watchwordv1.Change{EndedSessions: []*watchwordv1.EndedSession{{SessionId: "over", Until: timestamppb.New(time.Now().Add(-time.Hour))}}}); err != nil {
			t.Fatal(err)
		}
		again := mustRead(t, written(t, b))
		if again.fresh.age() != 1000*time.Hour {
			t.Errorf("the age is %v", again.fresh.age())
		}
		if _, ok := again.revoked.ended.get("over"); ok || again.revoked.ended.len() != 10 {
			t.Errorf("%d sessions, want 10 without the expired one", again.revoked.ended.len())
		}
		again.beat(&watchwordv1.Heartbeat{ServerTime: timestamppb.Now()}, true)
		if again.revoked.ended.len() != 10 || again.revoked.raised.len() != 10 {
			t.Errorf("%d sessions and %d users, want 10 and 10", again.revoked.ended.len(), again.revoked.raised.len())
		}
	})
}

// writerEnv names the file for TestWriterToBeKilled to write.
const writerEnv = "AUTHN_TEST_WRITE_TO"

// TestWriterToBeKilled is the process killed by TestKilledWhileWriting.
func TestWriterToBeKilled(t *testing.T) {
	path := os.Getenv(writerEnv)
	if path == "" {
		return
	}
	k := &keeper{path: path, bundle: fill(t, 2*snapshotChunk)}
	for {
		if _, err := k.write(); err != nil {
			t.Fatal(err)
		}
		fmt.Println("written")
	}
}

// A process killed at any moment leaves a whole file: the new file, or the file before.
func TestKilledWhileWriting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bundle")
	left := func() bool { // a draft, by a process killed while writing
		files, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".bundle.*.tmp"))
		if err != nil {
			t.Fatal(err)
		}
		return len(files) > 0
	}
	for round := 0; round < 4 || !left(); round++ {
		if round == 50 {
			t.Fatal("no process was killed while writing")
		}
		ctx, kill := context.WithCancel(t.Context())
		writer := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestWriterToBeKilled$")
		writer.Env = append(os.Environ(), writerEnv+"="+path)
		out, err := writer.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := writer.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for range 1 + round%2 {
			if !lines.Scan() || lines.Text() != "written" {
				t.Errorf("the writer printed %q, error %v", lines.Text(), lines.Err())
			}
		}
		kill()
		_, _ = io.Copy(io.Discard, out)
		_ = writer.Wait()
		b := emptyBundle()
		if err := b.load(path); err != nil || b.revoked.ended.len() != 2*snapshotChunk {
			t.Errorf("round %d: %d sessions, %v", round, b.revoked.ended.len(), err)
		}
		b.fresh.close()
	}
}

// BenchmarkSnapshot writes a million revocations and reads them again.
func BenchmarkSnapshot(b *testing.B) {
	full := fill(b, 500_000)
	path := filepath.Join(b.TempDir(), "bundle")
	k := &keeper{path: path, bundle: full}
	b.Run("write", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			n, err := k.write()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(n), "bytes")
		}
	})
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			again := emptyBundle()
			if err := again.load(path); err != nil || again.revoked.ended.len()+again.revoked.raised.len() != 1_000_000 {
				b.Fatal(err)
			}
		}
	})
}
