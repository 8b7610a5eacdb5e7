package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// errRefused is an error of a caller, which rolls the caller's transaction back.
var errRefused = errors.New("refused")

// eventLog is something that numbers events and is read by number.
type eventLog interface {
	// append appends in a transaction that stays open until hold returns, and is
	// rolled back if it returns an error.
	append(subject string, hold func() error) error
	after(seq int64) (seqs []int64, subjects []string)
}

// ours is the tested way to number events: the store's own.
type ours struct {
	t *testing.T
	s *store.Store
}

func (o ours) append(subject string, hold func() error) error {
	return o.s.Write(context.Background(), func(tx *store.Tx) error {
		_, err := tx.User("alice")
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if err := appendEvent(tx, subject); err != nil {
			return err
		}
		return hold()
	})
}

func (o ours) after(seq int64) (seqs []int64, subjects []string) {
	err := o.s.Read(context.Background(), func(tx *store.Tx) error {
		events, err := tx.Events(seq, 1000)
		for _, e := range events {
			seqs, subjects = append(seqs, e.Seq), append(subjects, e.Subject)
		}
		return err
	})
	if err != nil {
		o.t.Error(err)
	}
	return seqs, subjects
}

// byIdentity is the obvious way to number events, for comparison: an identity column, by which
// the database numbers the rows.
type byIdentity struct {
	t    *testing.T
	pool *pgxpool.Pool
}

func newByIdentity(t *testing.T) byIdentity {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), storetest.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE numbered (seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, subject TEXT NOT NULL)`); err != nil {
		t.Fatal(err)
	}
	return byIdentity{t, pool}
}

func (b byIdentity) append(subject string, hold func() error) error {
	return pgx.BeginFunc(context.Background(), b.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(context.Background(), `INSERT INTO numbered (subject) VALUES ($1)`, subject); err != nil {
			return err
		}
		return hold()
	})
}

func (b byIdentity) after(seq int64) (seqs []int64, subjects []string) {
	rows, err := b.pool.Query(context.Background(), `SELECT seq, subject FROM numbered WHERE seq > $1 ORDER BY seq`, seq)
	if err != nil {
		b.t.Error(err)
		return nil, nil
	}
	defer rows.Close()
	for rows.Next() {
		var n int64
		var subject string
		if err := rows.Scan(&n, &subject); err != nil {
			b.t.Error(err)
		}
		seqs, subjects = append(seqs, n), append(subjects, subject)
	}
	return seqs, subjects
}

var errRolledBack = errors.New("rolled back")

// tailed lets transactions append that are slow, are rolled back and race, while a
// reader follows by number. It returns what was committed and what the reader has
// heard of, and whether there was a gap.
func tailed(t *testing.T, log eventLog) (committed, heard []string, gap bool) {
	t.Helper()
	var at int64
	follow := func() {
		seqs, subjects := log.after(at)
		for i, seq := range seqs {
			gap = gap || seq != at+1
			at, heard = seq, append(heard, subjects[i])
		}
	}
	commit := func(subject string) {
		if err := log.append(subject, func() error { return nil }); err != nil {
			t.Error(err)
		}
		committed = append(committed, subject)
	}
	// slow begins a transaction with an event, and holds the transaction until letGo is called.
	slow := func(subject string, end error) (letGo func()) {
		begun, held, done := make(chan struct{}), make(chan struct{}), make(chan error)
		go func() {
			done <- log.append(subject, func() error { close(begun); <-held; return end })
		}()
		select {
		case <-begun:
		case err := <-done:
			t.Fatalf("%s: %v", subject, err)
		}
		return func() {
			close(held)
			if err := <-done; !errors.Is(err, end) {
				t.Errorf("%s: %v", subject, err)
			}
			if end == nil {
				committed = append(committed, subject)
			}
		}
	}
	for round := range 5 {
		name := func(s string) string { return fmt.Sprint(s, " ", round) }
		commit(name("before"))
		first := slow(name("slow"), nil)
		rolledBack := slow(name("rolled back"), errRolledBack)
		second := slow(name("slower"), nil)
		commit(name("quick"))
		follow()
		rolledBack()
		second()
		follow()
		commit(name("behind"))
		follow()
		first()
		follow()
	}
	// Writers race, and a reader follows the events all the time.
	done := make(chan []string)
	for w := range 4 {
		go func() {
			var mine []string
			for i := range 20 {
				subject, end := fmt.Sprint("racing ", w, " ", i), error(nil)
				if i%4 == 3 {
					end = errRolledBack
				}
				if err := log.append(subject, func() error { return end }); !errors.Is(err, end) {
					t.Error(err)
				}
				if end == nil {
					mine = append(mine, subject)
				}
			}
			done <- mine
		}()
	}
	for over := 0; over < 4; {
		select {
		case mine := <-done:
			committed = append(committed, mine...)
			over++
		default:
			follow()
		}
	}
	follow()
	return committed, heard, gap
}

// A reader that follows the events by their numbers misses no event, and waits for no number
// that never comes. If an identity column numbered the events, this test would fail: an identity
// column takes a number before the commit, so an event with a lower number can come later, and
// the number of a transaction that is rolled back never comes.
func TestATailByNumberMissesNothing(t *testing.T) {
	committed, heard, gap := tailed(t, ours{t, storetest.Open(t, storetest.Postgres(t))})
	slices.Sort(committed)
	slices.Sort(heard)
	if !slices.Equal(committed, heard) || gap {
		t.Errorf("committed %d, heard of %d, gap: %v", len(committed), len(heard), gap)
	}
	committed, heard, gap = tailed(t, newByIdentity(t))
	missed := slices.DeleteFunc(committed, func(s string) bool { return slices.Contains(heard, s) })
	if !slices.Contains(missed, "slow 0") || !gap {
		t.Errorf("an identity column missed %q and had a gap: %v", missed, gap)
	}
	if slices.ContainsFunc(missed, func(s string) bool { return strings.HasPrefix(s, "before") }) {
		t.Errorf("an identity column missed what nobody raced: %q", missed)
	}
}

// A hint comes for an event of another store and for a question, and for nothing else.
func TestHints(t *testing.T) {
	uri := storetest.Postgres(t)
	a, b := storetest.Open(t, uri), storetest.Open(t, uri)
	ctx, cancel := context.WithCancel(t.Context())
	hints, ended := make(chan struct{}, 100), make(chan struct{})
	go func() {
		b.Hints(ctx, func() { hints <- struct{}{} })
		close(ended)
	}()
	<-hints // the first hint shows that the store listens
	for range 3 {
		var head int64
		var tag []byte
		if err := a.Write(t.Context(), func(tx *store.Tx) error { return errors.Join(tx.SetSetting("a", "b"), tx.HeadInto(&head, &tag)) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Write(t.Context(), func(tx *store.Tx) error { return errors.Join(appendEvent(tx, "refused"), errRefused) }); !errors.Is(err, errRefused) {
		t.Fatal(err)
	}
	for what, write := range map[string]func(*store.Tx) error{
		"an event":   func(tx *store.Tx) error { return appendEvent(tx, "s") },
		"a question": func(tx *store.Tx) error { _, err := tx.AskReplicas(); return err },
	} {
		if err := a.Write(t.Context(), write); err != nil {
			t.Fatal(err)
		}
		select {
		case <-hints: // notifications come in the order of the commits
		case <-time.After(10 * time.Second):
			t.Fatal("no hint for " + what)
		}
		if n := len(hints); n != 0 {
			t.Errorf("%d hints too many", n)
		}
	}
	cancel()
	<-ended
}
