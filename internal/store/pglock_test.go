package store_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// holderVariable turns this program into a process that begins a transaction and does not end
// the transaction.
const holderVariable = "WATCHWORD_TEST_HOLDER"

// hold holds a user, a session and the right to be exclusive, and has appended an
// event.
func hold(tx *store.Tx) error {
	_, err1 := tx.User("alice")
	_, err2 := tx.Session("s0")
	return errors.Join(err1, err2, tx.Exclusive(), tx.SetSetting("held", "yes"), appendEvent(tx, "held"))
}

func holdRow(uri string) int {
	s, err := store.Open(context.Background(), uri)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	err = s.Write(context.Background(), func(tx *store.Tx) error {
		err := hold(tx)
		fmt.Println("held", err)
		bufio.NewReader(os.Stdin).ReadByte() // waits until the parent kills this process
		return err
	})
	fmt.Println(err)
	return 1
}

// freezeHolder freezes a process in the midst of a transaction.
func freezeHolder(t *testing.T, uri string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holderVariable+"="+uri)
	cmd.Stderr = os.Stderr
	stdin, err1 := cmd.StdinPipe()
	stdout, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		stdin.Close()
		cmd.Wait()
	})
	if line, _ := bufio.NewReader(stdout).ReadString('\n'); line != "held <nil>\n" {
		t.Fatalf("the holder says %q", line)
	}
	if err := cmd.Process.Signal(pgtest.Freeze); err != nil {
		t.Fatal(err)
	}
}

// A replica that freezes inside a transaction keeps its row locks for idleTime. Only
// callers that want the same rows wait for so long.
func TestAReplicaThatFreezes(t *testing.T) {
	uri := storetest.Postgres(t)
	s := storetest.Open(t, uri)
	insertAlice(t, s, 3)
	freezeHolder(t, uri)
	began := time.Now()
	const patience = 3 * time.Second // idle in a transaction
	late := storetest.Lateness(t)
	var waited atomic.Int64 // callers that have got what the frozen one holds
	var tasks sync.WaitGroup
	for name, call := range map[string]func() error{ // these calls want the lock or row that the frozen process holds
		"a user's row": func() error {
			return s.Write(context.Background(), func(tx *store.Tx) error { _, err := tx.User("alice"); return err })
		},
		"being exclusive": func() error { return s.Write(context.Background(), func(tx *store.Tx) error { return tx.Exclusive() }) },
	} {
		tasks.Go(func() {
			err := call()
			if took := time.Since(began); err != nil || took < patience/2 {
				t.Errorf("%s after %v: %v", name, took, err)
			}
			waited.Add(1)
		})
	}
	store.SpendTogether(t.Context(), s, []*store.Spend{spendOf("s1", 1), spendOf("nobody", 1)})
	errs := make(chan []error, 1)
	go func() { // one batch with a stranger
		errs <- store.SpendTogether(context.Background(), s, []*store.Spend{spendOf("s0", 1), spendOf("s1", 2), spendOf("s2", 1)})
	}()
	for generation(t, s, "s2") != 2 { // done although the batch is not
	}
	unheld := waited.Load() == 0
	strangers := 0 // answered before the callers that want what the frozen one holds
	for ; strangers < 20 && waited.Load() == 0; strangers++ {
		err := s.Write(context.Background(), func(tx *store.Tx) error { return appendEvent(tx, "stranger") })
		if err := errors.Join(err, spend(context.Background(), s, "s2", int64(2+strangers))); err != nil {
			t.Error(err)
		}
	}
	// The last stranger may have waited for the frozen one.
	if (!unheld || strangers < 3) && 5*late() < patience/2 {
		t.Errorf("a stranger in the batch did not wait: %v; after the batch %d other strangers were answered", unheld, strangers)
	}
	tasks.Wait()
	if err := errors.Join(<-errs...); err != nil {
		t.Errorf("batch: %v", err)
	}
	if got := setting(t, s, "held"); got != "" {
		t.Error("what the frozen one did was committed")
	}
}

// A transaction that waits for a row lock has a later time than the transaction that
// held the lock, even if it began before.
func TestAnInstantIsBehindTheLock(t *testing.T) {
	s := storetest.Open(t, storetest.Postgres(t))
	insertAlice(t, s, 1)
	for name, lock := range map[string]func(*store.Tx) error{
		"exclusive": func(tx *store.Tx) error { return tx.Exclusive() },
		"user":      holdUser,
		"session":   holdSession("s0"),
	} {
		var first, second time.Time
		err := s.Write(t.Context(), func(tx *store.Tx) error {
			began := tx.Now()
			err := s.Write(t.Context(), func(tx *store.Tx) error {
				err := lock(tx)
				first = tx.Now()
				return err
			})
			if err := errors.Join(err, lock(tx)); err != nil {
				return err
			}
			if second = tx.Now(); !began.Before(first) {
				t.Errorf("%s: began at %v, the other's is %v", name, began, first)
			}
			return nil
		})
		if err != nil || second.Before(first) {
			t.Errorf("%s: at %v, and then at %v, %v", name, first, second, err)
		}
	}
}

// crosswise locks two things each, in opposite orders, once both hold their first.
func crosswise(t *testing.T, s *store.Store, one, other func(*store.Tx) error) {
	t.Helper()
	var met sync.WaitGroup
	met.Add(2)
	var runs atomic.Int32
	var tasks sync.WaitGroup
	for _, order := range [][]func(*store.Tx) error{{one, other}, {other, one}} {
		tasks.Go(func() {
			first := true
			err := s.Write(context.Background(), func(tx *store.Tx) error {
				runs.Add(1)
				if err := order[0](tx); err != nil {
					return err
				}
				if first {
					first = false
					met.Done()
					met.Wait()
				}
				return errors.Join(order[1](tx), appendEvent(tx, "crosswise"))
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	tasks.Wait()
	if runs.Load() < 3 {
		t.Errorf("it ran %d times: no deadlock", runs.Load())
	}
}

func holdSession(id string) func(*store.Tx) error {
	return func(tx *store.Tx) error { _, err := tx.Session(id); return err }
}

func holdUser(tx *store.Tx) error { _, err := tx.User("alice"); return err }

// No caller gets an error after a deadlock.
func TestDeadlocks(t *testing.T) {
	uri := storetest.Postgres(t)
	s := storetest.Open(t, uri)
	insertAlice(t, s, 40)
	var tasks sync.WaitGroup
	tasks.Go(func() { crosswise(t, s, holdSession("s0"), holdSession("s1")) })
	tasks.Go(func() { crosswise(t, s, holdUser, holdSession("s2")) })
	tasks.Wait()
	// A batch holds s4 and wants s5; a transaction holds s5 and wants s4.
	held, asked := make(chan struct{}), make(chan struct{})
	first := sync.OnceFunc(func() { close(held); <-asked })
	tasks.Go(func() {
		err := s.Write(context.Background(), func(tx *store.Tx) error {
			err := holdSession("s5")(tx)
			first()
			return errors.Join(err, holdSession("s4")(tx))
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-held
	tasks.Go(func() {
		if err := errors.Join(store.SpendTogether(context.Background(), s, []*store.Spend{spendOf("s5", 1), spendOf("s4", 1)})...); err != nil {
			t.Error(err)
		}
	})
	close(asked)
	tasks.Wait()
}

// Batches, ends, revocations and deletions of the same few sessions run at once. As in the
// server, a transaction locks the user before a session. (In the other order nearly every
// run would end in a deadlock, and PostgreSQL takes a second to find each one.) Deadlocks
// between a batch and a deletion remain possible, and no caller gets an error from them.
func TestEverybodyAtOnce(t *testing.T) {
	uri := storetest.Postgres(t)
	stores := []*store.Store{storetest.Open(t, uri), storetest.Open(t, uri)}
	const sessions = 12
	insertAlice(t, stores[0], sessions)
	until := time.Now().Add(time.Second)
	var calls, tasks = atomic.Int64{}, sync.WaitGroup{}
	run := func(name string, i int, do func(s *store.Store, n int) error) {
		tasks.Go(func() {
			for n := i; time.Now().Before(until); n++ {
				if err := do(stores[n%2], n); err != nil && !errors.Is(err, store.ErrNotFound) {
					t.Errorf("%s: %v", name, err)
					return
				}
				calls.Add(1)
			}
		})
	}
	for i := range 4 {
		run("batch", i, func(s *store.Store, n int) error {
			var spends []*store.Spend
			for k := range 6 {
				spends = append(spends, spendOf(fmt.Sprint("s", (n*k)%sessions), int64(1+n/10)))
			}
			return errors.Join(store.SpendTogether(context.Background(), s, spends)...)
		})
		run("end", i, func(s *store.Store, n int) error {
			return s.Write(context.Background(), func(tx *store.Tx) error {
				id := fmt.Sprint("s", n%sessions)
				return errors.Join(holdUser(tx), holdSession(id)(tx), tx.AdvanceSession(id, store.Generations{Current: int64(n)}), appendEvent(tx, id))
			})
		})
		run("revoke", i, func(s *store.Store, n int) error {
			return s.Write(context.Background(), func(tx *store.Tx) error {
				u, err := tx.User("alice")
				if err != nil {
					return err
				}
				row, _, err := tx.SessionAndUser(fmt.Sprint("s", (7*n)%sessions))
				if err != nil {
					return err
				}
				return errors.Join(tx.UpdateUser(u), tx.AdvanceSession(row.ID, row.Generations), appendEvent(tx, "alice"))
			})
		})
	}
	run("prune", 0, func(s *store.Store, n int) error {
		return s.Write(context.Background(), func(tx *store.Tx) error {
			_, err := tx.PruneSessions("", 100, func(row *store.Session) bool { return row.ID != fmt.Sprint("s", n%sessions) || n > sessions/2 })
			_, err2 := tx.PruneEvents(tx.Now(), 10)
			return errors.Join(err, err2)
		})
	})
	tasks.Wait()
	t.Logf("%d calls", calls.Load())
}

// wholeConn notes what a freeze between two writes would leave to the server.
type wholeConn struct {
	net.Conn
	begun  bool
	parts  *atomic.Int64
	most   *atomic.Int64
	report func(string)
}

func (c *wholeConn) Write(b []byte) (int, error) {
	if n := int64(len(b)); n > c.most.Load() {
		c.most.Store(n)
	}
	rest := b
	if !c.begun { // the first message has no type
		c.begun = true
		rest = rest[binary.BigEndian.Uint32(rest):]
	}
	var last byte
	for len(rest) > 5 || len(rest) == 5 {
		last = rest[0]
		rest = rest[min(len(rest), 1+int(binary.BigEndian.Uint32(rest[1:]))):]
	}
	if last != 0 && !strings.ContainsRune("SQXp", rune(last)) {
		c.report(fmt.Sprintf("a write of %d bytes ends with %q", len(b), last))
	}
	c.parts.Add(1)
	return c.Conn.Write(b)
}

// All messages before an answer are sent in one write. A replica that freezes has sent
// all or nothing: PostgreSQL has no timeout for the rest of a half-sent message, and
// would keep the locks until then.
func TestEveryWriteIsWhole(t *testing.T) {
	const record = 16 << 10 // bytes that TLS sends at once
	var parts, most atomic.Int64
	store.WrapConnections(t, func(c net.Conn) net.Conn {
		return &wholeConn{Conn: c, parts: &parts, most: &most, report: func(s string) { t.Error(s) }}
	})
	s := storetest.Open(t, storetest.Postgres(t))
	insertAlice(t, s, 1)
	insertMembers(t, s, store.MaxBatch)
	most.Store(0)
	for range 2 {
		spends := spendsOf(store.MaxBatch)
		for _, spend := range spends {
			spend.Audience = strings.Repeat("a", 128)
		}
		store.SpendTogether(t.Context(), s, spends)
		if err := s.Write(t.Context(), hold); err != nil {
			t.Fatal(err)
		}
	}
	if n := most.Load(); n > record || n < 1000 || parts.Load() < 5 {
		t.Errorf("%d writes, the largest of %d bytes", parts.Load(), n)
	}
	t.Logf("the largest write has %d bytes", most.Load())
}
