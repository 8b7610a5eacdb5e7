package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

// storm holds what the writers have been told. Every write has a unique name and two rows, and
// the database must have both rows or neither.
type storm struct {
	*store.Store
	full atomic.Int64 // odd while the disk is full

	mu       sync.Mutex
	changed  sync.Cond
	must     map[string]fate
	counts   map[string]int
	faults   []string
	stopping bool
}

// fate says what the caller of a write can rely on.
type fate int

const (
	whole  fate = iota // the write was acknowledged: every row must be there
	absent             // the write was refused, or given up before it began: no row may be there
	either             // the store was unavailable: the write is there as a whole, or not at all
)

var (
	pages = 1 << 20 // the largest number of pages of the database, far above what the test needs
)

// firstRow and secondRow are the two rows of one write. The padding makes each write need new
// pages.
func firstRow(tx *store.Tx, name string) error {
	return tx.SetSetting(name, strings.Repeat("x", 1+rand.IntN(2000)))
}

func secondRow(tx *store.Tx, name string) error {
	return tx.AppendEvent(&store.Event{Tag: []byte("tag"), Kind: store.SessionEnded, Subject: name, ExpiresAt: tx.Now().Add(time.Hour)})
}

// between holds a function that a kind of write runs between its two rows, and the error that
// the caller must get; nil: the write must be acknowledged.
type between struct {
	kind   string
	weight int
	do     func(tx *store.Tx) error
	told   error
}

// After a failing statement, the whole group runs again one by one. So this kind is rare, and
// leaves most groups as they are.
var kinds = []between{
	{"plain", 50, func(*store.Tx) error { return nil }, nil},
	{"refusing", 16, func(*store.Tx) error { return errRefused }, errRefused},
	{"taken", 8, insertTaken, store.ErrExists},
	{"taken and content", 8, func(tx *store.Tx) error { return notTaken(insertTaken(tx)) }, nil},
	{"panicking", 4, func(*store.Tx) error { panic("a bug") }, errAny},
	{"failing", 1, store.FailDriver, store.ErrUnavailable},
	{"failing and hiding it", 1, func(tx *store.Tx) error { _ = store.FailDriver(tx); return nil }, store.ErrUnavailable},
}

var errAny = errors.New("any error")

func insertTaken(tx *store.Tx) error {
	return tx.InsertUser(&store.User{ID: "taken", Username: "taken"})
}

func notTaken(err error) error {
	if errors.Is(err, store.ErrExists) {
		return nil
	}
	return fmt.Errorf("inserting a user twice: %w", err)
}

func kind() between {
	for {
		k := kinds[rand.IntN(len(kinds))]
		if rand.IntN(50) < k.weight {
			return k
		}
	}
}

// write makes one write, and returns what its caller may rely on, or what was
// wrong with the answer.
func (s *storm) write(ctx context.Context, name string, k between) (fate, error) {
	began := false
	full := s.full.Load()
	err := s.Write(ctx, func(tx *store.Tx) error {
		began = true
		if err := firstRow(tx, name); err != nil {
			return err
		}
		if err := k.do(tx); err != nil {
			return err
		}
		return secondRow(tx, name)
	})
	wasFull := full%2 == 1 || s.full.Load() != full
	switch {
	case !began && ctx.Err() != nil && errors.Is(err, ctx.Err()) && errors.Is(err, store.ErrUnavailable):
		return absent, nil // the caller gave up while the write was queued
	case wasFull && errors.Is(err, store.ErrUnavailable):
		return either, nil
	case err == nil && k.told == nil:
		return whole, s.read(name)
	case err != nil && (errors.Is(err, k.told) || k.told == errAny):
		return absent, nil
	}
	return either, fmt.Errorf("begun: %v, disk full: %v, told %w, want %v", began, wasFull, err, k.told)
}

// read looks an acknowledged write up at once: an answer that comes before the
// commit is a lie.
func (s *storm) read(name string) error {
	return s.Read(context.Background(), func(tx *store.Tx) error {
		if value, err := tx.Setting(name); err != nil || value == "" {
			return fmt.Errorf("acknowledged and not to be read: %w", err)
		}
		return nil
	})
}

// work writes until the storm is over. Every fourth caller gives up: before the write, at some
// moment, or when the write has begun and must be done.
func (s *storm) work(writer int) {
	for i := 0; !s.over(); i++ {
		name, k := fmt.Sprintf("write-%d-%d", writer, i), kind()
		label := k.kind
		ctx, cancel := context.WithCancel(context.Background())
		switch rand.IntN(12) {
		case 0:
			cancel()
			label += ", given up before"
		case 1:
			go func() {
				for range rand.IntN(1000) {
					runtime.Gosched()
				}
				cancel()
			}()
			label += ", given up meanwhile"
		case 2:
			do := k.do
			k.do = func(tx *store.Tx) error { cancel(); return do(tx) }
			label += ", given up too late"
		}
		f, err := s.write(ctx, name, k)
		cancel()
		s.note(name, label, f, err)
	}
}

func (s *storm) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

func (s *storm) note(name, label string, f fate, fault error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.must[name] = f
	s.counts[fmt.Sprintf("%v", f)]++
	s.counts[label]++
	if fault != nil {
		s.faults = append(s.faults, fmt.Sprintf("%s (%s): %v", name, label, fault))
	}
	s.changed.Broadcast()
}

// await waits until `more` further writes have ended with the fate f. If a fault keeps writes from
// ending so, await gives up after a thousand other writes.
func (s *storm) await(f fate, more int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	label := fmt.Sprintf("%v", f)
	enough, all := s.counts[label]+more, len(s.must)+more+1000
	for s.counts[label] < enough && len(s.must) < all {
		s.changed.Wait()
	}
}

func (f fate) String() string { return []string{"acknowledged", "refused", "unavailable"}[f] }

// whileFull fills the disk, waits until the store was unavailable to a hundred writes, and then
// frees the disk.
func (s *storm) whileFull(fill, free func()) {
	s.full.Add(1)
	fill()
	s.await(either, 100)
	free()
	s.full.Add(1)
}

// TestAStormOfStrangers mixes writes that share commits with callers that give up,
// refused writes, faults, full disks and a second process.
func TestAStormOfStrangers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	s := &storm{Store: openAt(t, path), must: map[string]fate{}, counts: map[string]int{}}
	s.changed.L = &s.mu
	if err := s.Write(t.Context(), insertTaken); err != nil {
		t.Fatal(err)
	}
	stopBeside := s.startBeside(t, path)
	var writers sync.WaitGroup
	for i := range 64 {
		writers.Go(func() { s.work(i) })
	}
	s.await(whole, 300)
	s.whileFull(func() { store.LimitPages(t, s.Store, 1) }, func() { store.LimitPages(t, s.Store, pages) })
	s.await(whole, 300)
	s.whileFull(refuseFileWrites(t))
	s.await(whole, 300)
	stopBeside()
	s.await(whole, 100)
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	writers.Wait()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	t.Logf("%v", s.counts)
	for _, fault := range s.faults[:min(len(s.faults), 20)] {
		t.Error(fault)
	}
	for _, f := range []fate{whole, absent, either} {
		if s.counts[f.String()] < 100 {
			t.Errorf("only %d writes were %v: %v", s.counts[f.String()], f, s.counts)
		}
	}
	s.check(t, openAt(t, path))
}

// check reads everything that must be there, and everything that must not.
func (s *storm) check(t *testing.T, reopened *store.Store) {
	t.Helper()
	err := reopened.Read(t.Context(), func(tx *store.Tx) error {
		if verdict, err := store.Integrity(tx); err != nil || verdict != "ok" {
			t.Errorf("integrity: %q, %v", verdict, err)
		}
		events, err := tx.Events(0, 1<<20)
		if err != nil {
			return err
		}
		second := map[string]bool{}
		for i, e := range events {
			if second[e.Subject] = true; e.Seq != int64(i+1) {
				t.Fatalf("event %d has number %d", i+1, e.Seq)
			}
		}
		if head, err := tx.Head(); err != nil || head != int64(len(events)) || len(second) != len(events) {
			t.Errorf("head %d, %d events of %d writes, %v", head, len(events), len(second), err)
		}
		for name, must := range s.must {
			first, err := tx.Setting(name)
			if err != nil {
				return err
			}
			if (first != "") != second[name] || must == whole && !second[name] || must == absent && second[name] {
				t.Errorf("%s was %v; its first row is there: %v, its second: %v", name, must, first != "", second[name])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// besideVariable tells the test's program to be the process beside, and which
// database to write to.
const besideVariable = "WATCHWORD_STORE_TEST_BESIDE"

// startBeside lets a second process write to the file, as the command line does
// beside a server. It is killed at work.
func (s *storm) startBeside(t *testing.T, path string) (stop func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), besideVariable+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	read, some := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(read)
		lines, n := bufio.NewScanner(out), 0
		for lines.Scan() {
			if n++; n == 30 {
				close(some)
			}
			s.noteBeside(lines.Text())
		}
	}()
	return func() {
		t.Helper()
		select {
		case <-some:
		case <-read:
			t.Error("the process beside ended by itself")
		}
		_ = cmd.Process.Kill()
		<-read
		_ = cmd.Wait() // Wait returns an error, since the process was killed
	}
}

func (s *storm) noteBeside(line string) {
	name, told, _ := strings.Cut(line, " ")
	f := map[string]fate{"begins": either, "ok": whole, errRefused.Error(): absent}
	if outcome, ok := f[told]; ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.must[name] = outcome
		s.counts["beside "+told]++
	} else {
		s.note(name, "beside", either, errors.New(line))
	}
}

// writeBeside is the second process. The process opens the file for each write, as each command
// does; every third write is refused after its first row.
func writeBeside(path string) int {
	for i := 0; ; i++ {
		name := fmt.Sprintf("beside-%d", i)
		fmt.Println(name, "begins")
		if err := writeOnce(path, name, i%3 == 0); err != nil {
			fmt.Println(name, err)
		} else {
			fmt.Println(name, "ok")
		}
	}
}

func writeOnce(path, name string, refuse bool) error {
	s, err := store.Open(context.Background(), "sqlite:"+path)
	if err != nil {
		return err
	}
	defer s.Close()
	return s.Write(context.Background(), func(tx *store.Tx) error {
		if err := firstRow(tx, name); err != nil {
			return err
		}
		if refuse {
			return errRefused
		}
		return secondRow(tx, name)
	})
}
