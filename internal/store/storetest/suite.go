package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

// Suite tests what package store promises on every engine. new returns the URI of a new
// database with a schema.
func Suite(t *testing.T, new func(testing.TB) string) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, func(testing.TB) string)
	}{
		{"durable", testDurable},
		{"refusals", testRefusals},
		{"a driver's error", testDriversError},
		{"taken names", testTakenNames},
		{"taken names that nobody minds", testTakenNameSwallowed},
		{"giving up", testGivingUp},
		{"on commit", testOnCommit},
		{"closed", testClosed},
		{"an unchanging state", testUnchangingState},
		{"instants", testInstants},
		{"lost updates", testLostUpdates},
		{"exclusive", testExclusive},
		{"events are numbered", testEventsAreNumbered},
		{"the newest number", testHeadInto},
		{"expiry of events", testExpiry},
		{"pages of events", testEvents},
		{"users", testUsers},
		{"pages of users", testPagesOfUsers},
		{"service accounts", testServices},
		{"users by a name", testUserIDs},
		{"what a delegated token depends on", testStanding},
		{"sessions", testSessions},
		{"pages of sessions", testPagesOfSessions},
		{"sessions beyond a bound", testSessionsBeyond},
		{"pruning sessions", testPruneSessions},
		{"recent sessions", testRecentSessions},
		{"throttle", testThrottle},
		{"replicas", testReplicas},
		{"certificates of watchers", testWatcherCertificates},
		{"issuers", testIssuers},
		{"bindings", testBindings},
		{"raising users by id", testRaiseUsersByID},
		{"audit", testAudit},
		{"pages of audit", testPagesOfAudit},
		{"keys", testKeys},
		{"settings", testSettings},
		{"floor", testFloor},
		{"spend", testSpend},
		{"spend refuses", testSpendRefuses},
		{"spend advances", testSpendAdvances},
		{"spend at once", testSpendAtOnce},
		{"spend and writes", testSpendAndWrites},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, new) })
	}
}

func write(t testing.TB, s *store.Store, fn func(*store.Tx) error) {
	t.Helper()
	if err := s.Write(context.Background(), fn); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, s *store.Store, fn func(*store.Tx) error) {
	t.Helper()
	if err := s.Read(context.Background(), fn); err != nil {
		t.Fatal(err)
	}
}

func setting(t testing.TB, s *store.Store, name string) (value string) {
	t.Helper()
	read(t, s, func(tx *store.Tx) (err error) {
		value, err = tx.Setting(name)
		return err
	})
	return value
}

func set(name, value string) func(*store.Tx) error {
	return func(tx *store.Tx) error { return tx.SetSetting(name, value) }
}

func wantSettings(t *testing.T, s *store.Store, want map[string]string) {
	t.Helper()
	for name, value := range want {
		if got := setting(t, s, name); got != value {
			t.Errorf("%s = %q, want %q", name, got, value)
		}
	}
}

// newUser returns a user's row with the present time.
func newUser(id, username string) *store.User {
	now := time.Now().UTC().Truncate(time.Microsecond)
	return &store.User{
		ID: id, Username: username, PasswordHash: "$hash", Roles: []string{"reader", "writer"}, Version: 7,
		CreatedAt: now, UpdatedAt: now,
	}
}

// newSession returns a session's row with the present time.
func newSession(id, userID string) *store.Session {
	now := time.Now().UTC().Truncate(time.Microsecond)
	return &store.Session{
		ID: id, UserID: userID, BornVersion: 7, Audience: []string{"internal", "billing"}, CreatedAt: now, RefreshedAt: now,
		Generations: store.Generations{Current: 1},
	}
}

func insert(t testing.TB, s *store.Store, u *store.User, sessions ...*store.Session) {
	t.Helper()
	write(t, s, func(tx *store.Tx) error {
		if err := tx.InsertUser(u); err != nil {
			return err
		}
		for _, row := range sessions {
			if err := tx.InsertSession(row); err != nil {
				return err
			}
		}
		return nil
	})
}

func newEvent(tx *store.Tx, subject string) *store.Event {
	return &store.Event{Tag: []byte("12345678"), Kind: store.SessionEnded, Subject: subject, ExpiresAt: tx.Now().Add(time.Hour)}
}

func testDurable(t *testing.T, new func(testing.TB) string) {
	uri := new(t)
	s, err := store.Open(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s, set("a", "1"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := setting(t, Open(t, uri), "a"); got != "1" {
		t.Fatalf("a = %q", got)
	}
}

var errRefused = errors.New("refused")

// atOnce calls Write for all functions at the same time, so that they may share a
// commit, and returns the errors.
func atOnce(s *store.Store, writes []func(*store.Tx) error) []error {
	errs := make([]error, len(writes))
	var tasks sync.WaitGroup
	for i, fn := range writes {
		tasks.Go(func() { errs[i] = s.Write(context.Background(), fn) })
	}
	tasks.Wait()
	return errs
}

func testRefusals(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	var writes []func(*store.Tx) error
	for i := range 8 {
		writes = append(writes, set(fmt.Sprint("stranger", i), "1"))
	}
	writes = append(writes,
		func(tx *store.Tx) error { return errors.Join(tx.SetSetting("refused", "2"), errRefused) },
		func(tx *store.Tx) error {
			_, err := tx.Setting("x") // a query: PostgreSQL gets it together with the queued statements before it
			return errors.Join(tx.SetSetting("late", "2"), err, tx.InsertUser(newUser("late", "late")), errRefused)
		},
		func(tx *store.Tx) error {
			if err := tx.SetSetting("panicked", "3"); err != nil {
				return err
			}
			panic("a bug")
		})
	errs := atOnce(s, writes)
	if !errors.Is(errs[8], errRefused) || !errors.Is(errs[9], errRefused) || errs[10] == nil || errors.Join(errs[:8]...) != nil {
		t.Fatalf("errors %v", errs)
	}
	wantSettings(t, s, map[string]string{"stranger0": "1", "stranger7": "1", "refused": "", "late": "", "panicked": ""})
	read(t, s, func(tx *store.Tx) error {
		if _, err := tx.User("late"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a user who was refused: %v", err)
		}
		return nil
	})
	if err := s.Read(t.Context(), func(*store.Tx) error { panic("a bug") }); err == nil {
		t.Error("a panic in a read is no error")
	}
	if err := s.Read(t.Context(), func(*store.Tx) error { return errRefused }); !errors.Is(err, errRefused) {
		t.Errorf("a read that refuses: %v", err)
	}
}

// fault makes the driver fail: the missing public half of the key is NULL, which the column
// refuses.
func fault(tx *store.Tx) error {
	return tx.InsertSigningKey(&store.SigningKey{KID: "fault", Algorithm: "a", SealedKey: []byte{1}, PublishedAt: tx.Now()})
}

func testDriversError(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	writes := make([]func(*store.Tx) error, 20)
	for i := range writes {
		writes[i] = func(tx *store.Tx) error {
			if err := tx.SetSetting(fmt.Sprint("n", i), "yes"); err != nil {
				return err
			}
			switch i {
			case 7:
				return fault(tx)
			case 8: // fn ignores the error of the driver, and Write returns the error all the same
				_ = fault(tx)
			}
			return nil
		}
	}
	want := map[string]string{}
	for i, err := range atOnce(s, writes) {
		broken := i == 7 || i == 8
		if want[fmt.Sprint("n", i)] = "yes"; broken {
			want[fmt.Sprint("n", i)] = ""
		}
		if broken != errors.Is(err, store.ErrUnavailable) || broken != (err != nil) {
			t.Errorf("write %d: %v", i, err)
		}
	}
	wantSettings(t, s, want)
}

func testTakenNames(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	insert(t, s, newUser("id-alice", "alice"))
	insert(t, s, newUser("id-bob", "bob"))
	write(t, s, func(tx *store.Tx) error { // the transaction goes on after ErrExists
		if err := tx.InsertUser(newUser("other", "alice")); !errors.Is(err, store.ErrExists) {
			return fmt.Errorf("a second alice: %w", err)
		}
		if err := tx.InsertUser(newUser("id-alice", "carol")); !errors.Is(err, store.ErrExists) {
			return fmt.Errorf("a second id-alice: %w", err)
		}
		return tx.SetSetting("went on", "yes")
	})
	rename := func(tx *store.Tx) error {
		bob, err := tx.User("id-bob")
		if err != nil {
			return err
		}
		bob.Username = "alice"
		return errors.Join(tx.SetSetting("renamed", "yes"), tx.UpdateUser(bob))
	}
	if err := s.Write(t.Context(), rename); !errors.Is(err, store.ErrExists) {
		t.Errorf("bob becomes alice: %v", err)
	}
	wantSettings(t, s, map[string]string{"went on": "yes", "renamed": ""})
	// A name is free when its user is deleted, and only then.
	write(t, s, func(tx *store.Tx) error {
		alice, err := tx.User("id-alice")
		if err != nil {
			return err
		}
		alice.DeletedAt = tx.Now()
		return tx.UpdateUser(alice)
	})
	write(t, s, rename)
	insert(t, s, newUser("another", "bob"))
}

// If a statement breaks a unique constraint, Write fails even if fn ignores the error: SQLite could
// go on with the transaction, and PostgreSQL could not.
func testTakenNameSwallowed(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	insert(t, s, newUser("id-alice", "alice"))
	insert(t, s, newUser("id-bob", "bob"))
	err := s.Write(t.Context(), func(tx *store.Tx) error {
		bob, err := tx.User("id-bob")
		if err != nil {
			return err
		}
		bob.Username = "alice"
		_ = tx.UpdateUser(bob)
		return tx.SetSetting("passed over", "yes")
	})
	if !errors.Is(err, store.ErrExists) {
		t.Errorf("Write: %v", err)
	}
	wantSettings(t, s, map[string]string{"passed over": ""})
}

// single returns a URI of the same database for a store that runs one transaction at a
// time: on PostgreSQL with one connection. On SQLite one writer runs at a time anyway.
func single(uri string) string {
	if !strings.HasPrefix(uri, "postgres") {
		return uri
	}
	if strings.Contains(uri, "?") {
		return uri + "&pool_max_conns=1"
	}
	return uri + "?pool_max_conns=1"
}

// Block keeps a write transaction open until release is called, so that later calls
// queue. The store must run one transaction at a time: see single.
func Block(t *testing.T, s *store.Store) (release func()) {
	t.Helper()
	entered, leave := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- s.Write(context.Background(), func(*store.Tx) error {
			close(entered)
			<-leave
			return nil
		})
	}()
	<-entered
	return func() {
		close(leave)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func testGivingUp(t *testing.T, new func(testing.TB) string) {
	s := Open(t, single(new(t)))
	insert(t, s, newUser("alice", "alice"), newSession("s1", "alice"))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	ran := func(*store.Tx) error { t.Error("it ran"); return nil }
	spend := func(ctx context.Context) error { return s.Spend(ctx, spendOf("s1", 1), func(*store.Spent) {}) }
	calls := map[string]func(context.Context) error{
		"write": func(ctx context.Context) error { return s.Write(ctx, ran) },
		"spend": spend,
	}
	release := Block(t, s)
	for name, call := range calls {
		if err := call(gone); !errors.Is(err, store.ErrUnavailable) || !errors.Is(err, context.Canceled) {
			t.Errorf("%s by one who had gone: %v", name, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		answer := make(chan error, 1)
		go func() { answer <- call(ctx) }()
		select {
		case err := <-answer:
			t.Errorf("%s did not wait: %v", name, err)
		default:
		}
		cancel()
		if err := <-answer; !errors.Is(err, store.ErrUnavailable) || !errors.Is(err, context.Canceled) {
			t.Errorf("%s by one who gave up: %v", name, err)
		}
	}
	stayed := make(chan error, 1)
	go func() { stayed <- s.Write(context.Background(), set("stayed", "yes")) }()
	release()
	if err := <-stayed; err != nil {
		t.Errorf("one who stayed: %v", err)
	}
	// The write has begun, and completes although its caller has left.
	ctx, cancel := context.WithCancel(t.Context())
	err := s.Write(ctx, func(tx *store.Tx) error { cancel(); return tx.SetSetting("too late", "yes") })
	if err != nil {
		t.Errorf("one who gave up too late: %v", err)
	}
	wantSettings(t, s, map[string]string{"stayed": "yes", "too late": "yes"})
	if err := spend(t.Context()); err != nil {
		t.Errorf("spending what was given up: %v", err)
	}
}
