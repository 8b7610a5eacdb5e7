package store

import (
	"context"
	"slices"
	"testing"
)

// twice is an engine whose statement runs twice, with a row for each run.
type twice struct {
	engine
	rows [2]*Spent
}

func (twice) path() string { return "" }

func (e twice) spend(_ context.Context, _ *Spend, prepare func(*Spent)) (*Spent, error) {
	prepare(e.rows[0])
	return e.rows[1], nil
}

// If a transaction runs twice with different rows, the tokens of a refresh are prepared again,
// from the row that is committed.
func TestTheNewestRowIsPrepared(t *testing.T) {
	a, b := &Spent{}, &Spent{}
	for name, c := range map[string]struct {
		rows [2]*Spent
		want []*Spent
	}{
		"one row":  {[2]*Spent{a, a}, []*Spent{a}},
		"two rows": {[2]*Spent{a, b}, []*Spent{a, b}},
	} {
		var prepared []*Spent
		err := newStore(twice{rows: c.rows}, 0, optionsOf(nil)).Spend(t.Context(), &Spend{}, func(spent *Spent) { prepared = append(prepared, spent) })
		if err != nil || !slices.Equal(prepared, c.want) {
			t.Errorf("%s: %v: %v", name, prepared, err)
		}
	}
}
