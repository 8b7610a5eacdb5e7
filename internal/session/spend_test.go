package session

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// The one statement of an ordinary refresh does what advance does, whatever the
// row and the time.
func TestSpendIsAdvance(t *testing.T) {
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) {
		s := storetest.Open(t, new(t))
		err := s.Write(t.Context(), func(tx *store.Tx) error {
			return tx.InsertUser(&store.User{ID: "alice", Username: "alice", CreatedAt: tx.Now(), UpdatedAt: tx.Now()})
		})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		rapid.Check(t, func(rt *rapid.T) {
			n++
			grace := time.Duration(rapid.OneOf(rapid.Int64Range(0, 20), rapid.Int64Range(1, 20_000), rapid.Int64Range(1, 20_000_000)).Draw(rt, "grace µs")) * time.Microsecond
			g := drawGenerations(rt, grace)
			id := fmt.Sprint("session", n)
			spend := &store.Spend{SessionID: id, Generation: g.Current, Audience: "a", Grace: grace, Idle: time.Hour, Max: time.Hour}
			err := s.Write(t.Context(), func(tx *store.Tx) error {
				return tx.InsertSession(&store.Session{ID: id, UserID: "alice", Audience: []string{"a"}, CreatedAt: tx.Now(), RefreshedAt: tx.Now(), Generations: g})
			})
			if err != nil {
				rt.Fatal(err)
			}
			for range 3 { // the first refresh spends the drawn generation, and the next two follow at once
				var spent *store.Spent
				if err := s.Spend(t.Context(), spend, func(newest *store.Spent) { spent = newest }); err != nil {
					rt.Fatal(err)
				}
				now := spent.RefreshedAt
				want, v := present(g, spend.Generation, now, limits{grace, 1})
				if got := generations(rt, s, id); v != advanced || !reflect.DeepEqual(got, want) {
					rt.Fatalf("from %+v at %v with %v: %+v, want %+v", g, now, grace, got, want)
				}
				if err := s.Spend(t.Context(), spend, func(*store.Spent) {}); !errors.Is(err, store.ErrNotFound) {
					rt.Fatalf("spent twice: %v", err)
				}
				g, spend.Generation = want, want.Current
			}
		})
	})
}

// generations reads the generations of a session.
func generations(t *rapid.T, s *store.Store, id string) (g store.Generations) {
	err := s.Read(context.Background(), func(tx *store.Tx) error {
		row, err := tx.Session(id)
		g = row.Generations
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// drawGenerations draws numbers that a row may have, and numbers that a row never has: spent
// just now, some graces ago, or in the future by a clock that was set back.
func drawGenerations(rt *rapid.T, grace time.Duration) store.Generations {
	number := func(name string) int64 { return rapid.Int64Range(0, 100).Draw(rt, name) }
	at := func(name string) time.Time {
		if rapid.IntRange(0, 9).Draw(rt, name+" never") == 0 {
			return time.Time{}
		}
		ago := rapid.Int64Range(-2, 40).Draw(rt, name+" tenths of a grace ago")
		return time.Now().Add(-time.Duration(ago) * grace / 10).UTC().Truncate(time.Microsecond)
	}
	return store.Generations{
		Current: 1 + number("current"), Spent: number("spent"), SpentAt: at("spent"),
		Low: number("low"), EarlierLow: number("earlier low"), Late: number("late"), LateAt: at("late"), Repeated: number("repeated"), Run: number("run"),
	}
}
