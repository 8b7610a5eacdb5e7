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
	"github.com/watchword-auth/watchword/internal/clock"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/trusttest"
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
	if err := b.beat(trusttest.Heartbeat(now).GetHeartbeat(), true); err != nil {
		tb.Fatal(err)
	}
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
		!bytes.Equal(aAt.resume, bAt.resume) || b.fresh.age() < a.fresh.age() {
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
		for m := range b.messages(&watchwordv1.WatchBundleResponse{}) {
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

// clocksNow returns the clocks of a snapshot that is written now.
func clocksNow() *snapshotClock {
	id, up := clock.Boot()
	c := &snapshotClock{Wall: time.Now().UnixNano(), Up: int64(up)}
	copy(c.Boot[:], id)
	return c
}

// sealed returns a snapshot of the messages: with the beginning and the checksum.
func sealed(messages []byte) []byte { return sealedAt(clocksNow(), messages) }

func sealedAt(c *snapshotClock, messages []byte) []byte {
	s, err := binary.Append([]byte(snapshotBegin), binary.BigEndian, c)
	if err != nil {
		panic(err)
	}
	s = append(s, messages...)
	sum := sha256.Sum256(s)
	return append(s, sum[:]...)
}

// resealed returns a snapshot with a good checksum.
func resealed(snapshot []byte) []byte {
	body := snapshot[:len(snapshot)-sha256.Size]
	sum := sha256.Sum256(body)
	return append(bytes.Clone(body), sum[:]...)
}

// messagesOf returns the messages of a snapshot, as the function sealed got them.
func messagesOf(snapshot []byte) []byte {
	return snapshot[len(snapshotBegin)+binary.Size(snapshotClock{}) : len(snapshot)-sha256.Size]
}

func TestASnapshotOutOfOrderIsRefused(t *testing.T) {
	type message = watchwordv1.WatchBundleResponse
	state := fill(t, 0).trust.Load().said
	now := timestamppb.Now()
	chunk := func(c *watchwordv1.SnapshotChunk) *message {
		return &message{Message: &watchwordv1.WatchBundleResponse_SnapshotChunk{SnapshotChunk: c}}
	}
	beat := func(latest *timestamppb.Timestamp, now, asOf *durationpb.Duration) *message {
		return &message{Message: &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: &watchwordv1.Heartbeat{
			Times: &watchwordv1.ServerTimes{Now: now, Latest: latest}, AsOf: asOf}}}
	}
	minute, hour := durationpb.New(time.Minute), durationpb.New(time.Hour)
	whole, last := chunk(&watchwordv1.SnapshotChunk{TrustState: state, Last: true}), chunk(&watchwordv1.SnapshotChunk{Last: true})
	first, good := chunk(&watchwordv1.SnapshotChunk{TrustState: state}), beat(now, hour, minute)
	far := timestamppb.New(time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC))
	for name, c := range map[string]struct {
		ok       bool
		messages []*message
	}{
		"whole":             {true, []*message{whole, good}},
		"in two":            {true, []*message{first, last, good}},
		"nothing":           {false, nil},
		"no heartbeat":      {false, []*message{whole}},
		"no last chunk":     {false, []*message{first, good}},
		"no trust state":    {false, []*message{last, good}},
		"two trust states":  {false, []*message{first, whole, good}},
		"trust state late":  {false, []*message{chunk(&watchwordv1.SnapshotChunk{}), whole, good}},
		"empty trust state": {false, []*message{chunk(&watchwordv1.SnapshotChunk{TrustState: &watchwordv1.TrustState{}, Last: true}), good}},
		"chunk after last":  {false, []*message{whole, last, good}},
		"two heartbeats":    {false, []*message{whole, good, good}},
		"early heartbeat":   {false, []*message{first, good, last, good}},
		"change":            {false, []*message{first, {Message: &watchwordv1.WatchBundleResponse_Change{Change: &watchwordv1.Change{}}}, last, good}},
		"empty message":     {false, []*message{whole, {}, good}},
		"no time":           {false, []*message{whole, beat(nil, hour, minute)}},
		"no age":            {false, []*message{whole, beat(now, hour, nil)}},
		"no clock":          {false, []*message{whole, beat(now, nil, minute)}},
		"impossible time":   {false, []*message{whole, beat(&timestamppb.Timestamp{Seconds: 1 << 62}, hour, minute)}},
		"a far future":      {false, []*message{whole, beat(far, hour, minute)}},
		"an age below zero": {false, []*message{whole, beat(now, minute, hour)}},
		"an impossible age": {false, []*message{whole, beat(now, durationpb.New(1<<62), minute)}},
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
		if _, latest := b.fresh.clock.read(); latest < time.Now().Add(-time.Minute).UnixNano() || b.fresh.age() < 0 {
			t.Errorf("the clock shows %v, and the age is %v", time.Unix(0, latest), b.fresh.age())
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
				if err := b.beat(trusttest.Heartbeat(time.Now()).GetHeartbeat(), true); err != nil {
					t.Error(err)
				}
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

// The clock of a bundle from a snapshot begins at the latest possible time, and the age of the
// bundle continues to grow. The first heartbeat corrects the clock and the age.
func TestTheClockOfASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const age = 5 * time.Second
		for name, c := range map[string]struct {
			server, wall, up, want time.Duration // server, wall: the two clocks when the file was written, relative to now; up: the time since then
			otherBoot              bool
		}{
			"both right":                     {server: -time.Hour, wall: -time.Hour, up: time.Hour},
			"the server is ahead":            {server: -time.Hour + time.Minute, wall: -time.Hour, up: time.Hour, want: time.Minute},
			"the server is behind":           {server: -time.Hour - time.Minute, wall: -time.Hour, up: time.Hour},
			"the machine was set back":       {server: -time.Hour, wall: 2 * time.Hour, up: time.Hour},
			"set back, the server ahead":     {server: 3 * time.Hour, wall: 2 * time.Hour, up: time.Hour, want: 4 * time.Hour},
			"the machine was set ahead":      {server: -10 * time.Hour, wall: -time.Hour, up: time.Minute},
			"set ahead, still behind server": {server: 10 * time.Hour, wall: -time.Hour, up: time.Minute, want: 11 * time.Hour},
			"another boot":                   {server: -time.Hour, wall: -time.Hour, up: 100 * time.Hour, otherBoot: true},
			"another boot, set back":         {server: time.Hour, wall: time.Hour, otherBoot: true, want: time.Hour},
		} {
			now := time.Now()
			times := trusttest.Times(now.Add(c.server))
			m := &watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: &watchwordv1.Heartbeat{
				Times: times, AsOf: durationpb.New(times.GetNow().AsDuration() - age)}}}
			var body bytes.Buffer
			for m := range fill(t, 1).messages(m) {
				if _, err := protodelim.MarshalTo(&body, m); err != nil {
					t.Fatal(err)
				}
			}
			clocks := clocksNow()
			clocks.Wall = now.Add(c.wall).UnixNano()
			clocks.Up -= int64(c.up)
			if c.otherBoot {
				clocks.Boot[0] ^= 1
			}
			again := mustRead(t, sealedAt(clocks, body.Bytes()))
			near := func(what string, got, want time.Duration) {
				t.Helper()
				if got < want || got > want+10*time.Second { // the time since the boot goes on in real time
					t.Errorf("%s: %s is %v, want %v", name, what, got, want)
				}
			}
			lead := func() time.Duration {
				_, latest := again.fresh.clock.read()
				return time.Until(time.Unix(0, latest))
			}
			near("the lead", lead(), c.want)
			wantAge := age + max(0, -c.wall, c.up)
			if c.otherBoot {
				wantAge = max(time.Minute, age) + max(0, -c.wall)
			}
			near("the age", again.fresh.age(), wantAge)
			if c.otherBoot && !again.fresh.stale() {
				t.Errorf("%s: not stale", name)
			}
			time.Sleep(time.Second)
			near("the lead after a second", lead(), c.want)
			again.fresh.clock.opened()
			if err := again.beat(trusttest.Heartbeat(time.Now()).GetHeartbeat(), true); err != nil {
				t.Fatal(err)
			}
			if lead() != 0 || again.fresh.age() != 0 {
				t.Errorf("%s: after a heartbeat the clock leads by %v, and the age is %v", name, lead(), again.fresh.age())
			}
			again.fresh.close()
		}
	})
}

// After a restart no revocation is deleted before the verifier has received every clock of the
// last minutes: neither by a guess of the clock that is far too late, nor by the first clock
// that comes. The clocks that the earlier process received count, unless the machine has booted
// since.
func TestARestartForgetsNothing(t *testing.T) {
	for name, otherBoot := range map[string]bool{"same boot": false, "another boot": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := fill(t, 10)
				defer b.fresh.close()
				span := b.trust.Load().remembered()
				for range 2 * span / (30 * time.Second) { // the revocations expire
					time.Sleep(30 * time.Second)
					b.revoked.nextPrune = time.Now().Add(time.Hour)
					if err := b.beat(trusttest.Heartbeat(time.Now()).GetHeartbeat(), true); err != nil {
						t.Fatal(err)
					}
				}
				snapshot := written(t, b)
				clocks := clocksNow()
				if _, err := binary.Decode(snapshot[len(snapshotBegin):], binary.BigEndian, clocks); err != nil {
					t.Fatal(err)
				}
				if otherBoot {
					clocks.Wall -= int64(1000 * time.Hour) // sets the clock so that the snapshot seems this old
					clocks.Boot[0] ^= 1
				}
				again := mustRead(t, sealedAt(clocks, messagesOf(snapshot)))
				defer again.fresh.close()
				again.fresh.clock.opened()
				if err := again.beat(trusttest.Heartbeat(time.Now()).GetHeartbeat(), true); err != nil {
					t.Fatal(err)
				}
				kept := again.revoked.ended.len()
				if want := map[bool]int{false: 0, true: 10}[otherBoot]; kept != want {
					t.Errorf("%d sessions, want %d", kept, want)
				}
			})
		})
	}
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
	left := func() bool { // reports whether a process that was killed while writing has left a draft
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
