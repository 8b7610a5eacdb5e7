package storetest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

func spendOf(sessionID string, generation int64) *store.Spend {
	return &store.Spend{
		SessionID: sessionID, Generation: generation, Audience: "internal", Grace: 10 * time.Second, Idle: time.Hour, Max: 24 * time.Hour,
	}
}

func spend(s *store.Store, sessionID string, generation int64) (spent *store.Spent, err error) {
	err = s.Spend(context.Background(), spendOf(sessionID, generation), func(newest *store.Spent) { spent = newest })
	return spent, err
}

func session(t testing.TB, s *store.Store, id string) *store.Session {
	t.Helper()
	row, err := readSession(s, id)
	if err != nil {
		t.Fatal(err)
	}
	return row
}

func readSession(s *store.Store, id string) (row *store.Session, err error) {
	err = s.Read(context.Background(), func(tx *store.Tx) (err error) {
		row, err = tx.Session(id)
		return err
	})
	return row, err
}

func testSpend(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	row := newSession("s1", "id-alice")
	insert(t, s, newUser("id-alice", "alice"), row)
	for n := int64(1); n < 4; n++ {
		before := time.Now().Add(-time.Second)
		spent, err := spend(s, "s1", n)
		if err != nil {
			t.Fatal(err)
		}
		got := session(t, s, "s1")
		if spent.UserID != got.UserID || !spent.CreatedAt.Equal(got.CreatedAt) || !spent.RefreshedAt.Equal(got.RefreshedAt) || !slices.Equal(spent.Audience, got.Audience) {
			t.Errorf("told %+v, and it is %+v", spent, got)
		}
		g, now := got.Generations, got.RefreshedAt
		if g.Current != n+1 || g.Spent != n || !g.SpentAt.Equal(now) {
			t.Errorf("spent %d: %+v at %v", n, g, now)
		}
		if now.Before(before) || now.After(time.Now().Add(time.Second)) {
			t.Errorf("spent at %v", now)
		}
		if spent.Username != "alice" || spent.Version != 7 || !reflect.DeepEqual(spent.Roles, []string{"reader", "writer"}) {
			t.Errorf("of the user: %+v", spent)
		}
	}
	if !session(t, s, "s1").CreatedAt.Equal(row.CreatedAt) {
		t.Error("it was created anew")
	}
}

// alter changes a session or its user so that the refresh token cannot be spent.
type alter func(*store.User, *store.Session, *store.Spend)

func testSpendRefuses(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	SpendRefuses(t, s, func(spend *store.Spend) error {
		return s.Spend(t.Context(), spend, func(*store.Spent) {})
	})
}

// SpendRefuses calls spend, one way of spending, for live sessions and for sessions
// that must not be refreshed.
func SpendRefuses(t *testing.T, s *store.Store, spend func(*store.Spend) error) {
	cases := map[string]struct {
		alter alter
		want  error
	}{
		"nothing wrong":       {func(*store.User, *store.Session, *store.Spend) {}, nil},
		"another session":     {func(_ *store.User, _ *store.Session, spend *store.Spend) { spend.SessionID += "x" }, store.ErrNotFound},
		"an older generation": {func(_ *store.User, row *store.Session, _ *store.Spend) { row.Generations.Current = 2 }, store.ErrNotFound},
		"a newer generation":  {func(_ *store.User, _ *store.Session, spend *store.Spend) { spend.Generation = 2 }, store.ErrNotFound},
		"ended":               {func(_ *store.User, row *store.Session, _ *store.Spend) { row.EndedAt = time.Now() }, store.ErrNotFound},
		"unused for long":     {func(_ *store.User, row *store.Session, _ *store.Spend) { row.RefreshedAt = time.Now().Add(-time.Hour) }, store.ErrNotFound},
		"unused for less": {func(_ *store.User, row *store.Session, _ *store.Spend) {
			row.RefreshedAt = time.Now().Add(-59 * time.Minute)
		}, nil},
		"older than may be": {func(_ *store.User, row *store.Session, _ *store.Spend) {
			row.CreatedAt = time.Now().Add(-24 * time.Hour)
		}, store.ErrNotFound},
		"in its last second": {func(_ *store.User, row *store.Session, _ *store.Spend) { row.CreatedAt = lastSecond() }, store.ErrNotFound},
		"in its last seconds": {func(_ *store.User, row *store.Session, _ *store.Spend) {
			row.CreatedAt = lastSecond().Add(10 * time.Second)
		}, nil},
		"disabled":              {func(u *store.User, _ *store.Session, _ *store.Spend) { u.Disabled = true }, store.ErrNotFound},
		"deleted":               {func(u *store.User, _ *store.Session, _ *store.Spend) { u.DeletedAt = time.Now() }, store.ErrNotFound},
		"revoked":               {func(u *store.User, _ *store.Session, _ *store.Spend) { u.Version, u.RevokedBelow = 8, 8 }, store.ErrNotFound},
		"stale":                 {func(u *store.User, _ *store.Session, _ *store.Spend) { u.Version, u.RevokedBelow = 9, 7 }, nil},
		"without a user":        {func(_ *store.User, row *store.Session, _ *store.Spend) { row.UserID = "nobody" }, store.ErrNotFound},
		"the second audience":   {func(_ *store.User, _ *store.Session, spend *store.Spend) { spend.Audience = "billing" }, nil},
		"another audience":      {func(_ *store.User, _ *store.Session, spend *store.Spend) { spend.Audience = "other" }, store.ErrNotFound},
		"part of an audience":   {func(_ *store.User, _ *store.Session, spend *store.Spend) { spend.Audience = "intern" }, store.ErrNotFound},
		"a longer audience":     {func(_ *store.User, _ *store.Session, spend *store.Spend) { spend.Audience = "internals" }, store.ErrNotFound},
		"a pattern":             {func(_ *store.User, _ *store.Session, spend *store.Spend) { spend.Audience = "%" }, store.ErrNotFound},
		"an audience of no one": {func(_ *store.User, row *store.Session, _ *store.Spend) { row.Audience = nil }, store.ErrNotFound},
	}
	n := 0
	for name, c := range cases {
		n++
		u := newUser(fmt.Sprint("user", n), fmt.Sprint("user", n))
		row := newSession(fmt.Sprint("session", n), u.ID)
		ask := spendOf(row.ID, 1)
		c.alter(u, row, ask)
		insert(t, s, u, row)
		before := session(t, s, row.ID)
		if err := spend(ask); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if after := session(t, s, row.ID); (c.want == nil) == reflect.DeepEqual(before, after) {
			t.Errorf("%s: it was %+v and is %+v", name, before, after)
		}
	}
}

func testSpendAdvances(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	SpendAdvances(t, s, func(spend *store.Spend) error {
		return s.Spend(t.Context(), spend, func(*store.Spent) {})
	})
}

// SpendAdvances calls spend, which marks a session's refresh token as used, for sessions
// that were last refreshed 0, 1, … lengths of --refresh-grace ago, and compares the new
// generations with the rule in internal/session/generation.go.
func SpendAdvances(t *testing.T, s *store.Store, spend func(*store.Spend) error) {
	const grace = 1000 * time.Hour // so long that the test nearly always begins and ends in the same span
	insert(t, s, newUser("advances", "advances"))
	for spansAgo, want := range map[int64]store.Generations{
		0: {Low: 5, EarlierLow: 3},
		1: {Low: 9, EarlierLow: 5},
		2: {Low: 9, EarlierLow: 9},
		9: {Low: 9, EarlierLow: 9},
	} {
		row := newSession(fmt.Sprint("spans ago: ", spansAgo), "advances")
		at := time.UnixMicro((time.Now().UnixMicro()/grace.Microseconds() - spansAgo) * grace.Microseconds()).UTC()
		row.Generations = store.Generations{Current: 9, Spent: 7, SpentAt: at, Low: 5, EarlierLow: 3, Late: 2, LateAt: at, Repeated: 6, Run: 4}
		write(t, s, func(tx *store.Tx) error { return tx.InsertSession(row) })
		ask := spendOf(row.ID, 9)
		ask.Grace = grace
		if err := spend(ask); err != nil {
			t.Fatal(err)
		}
		got := session(t, s, row.ID)
		want.Current, want.Spent, want.SpentAt, want.Late, want.LateAt = 10, 9, got.RefreshedAt, 2, at
		want.Repeated, want.Run = 6, 4
		if got.Generations != want || !got.RefreshedAt.After(row.RefreshedAt) {
			t.Errorf("%d spans ago: %+v, want %+v", spansAgo, got, want)
		}
	}
}

// lastSecond returns the time of creation for a session that reaches its longest life
// later in this second. Such a session has ended already: its life ends with the last
// whole second.
func lastSecond() time.Time {
	return time.Now().Truncate(time.Second).Add(time.Second - time.Microsecond - 24*time.Hour)
}

// Of several calls that spend one token at the same time, exactly one succeeds.
func testSpendAtOnce(t *testing.T, new func(testing.TB) string) {
	uri := new(t)
	stores := []*store.Store{Open(t, uri), Open(t, uri)}
	const sessions, callers = 8, 12
	u := newUser("alice", "alice")
	var rows []*store.Session
	for i := range sessions {
		row := newSession(fmt.Sprint("s", i), u.ID)
		row.Audience = []string{"internal", row.ID} // shows to which session an answer belongs
		rows = append(rows, row)
	}
	insert(t, stores[0], u, rows...)
	for generation := int64(1); generation < 4; generation++ {
		var won [sessions]atomic.Int32
		var tasks sync.WaitGroup
		for i := range sessions * callers {
			id := i % sessions
			tasks.Go(func() {
				spent, err := spend(stores[i%2], fmt.Sprint("s", id), generation)
				switch {
				case err == nil && slices.Equal(spent.Audience, rows[id].Audience):
					won[id].Add(1)
				case !errors.Is(err, store.ErrNotFound):
					t.Errorf("s%d: %+v, %v", id, spent, err)
				}
			})
		}
		tasks.Wait()
		for id := range won {
			if n := won[id].Load(); n != 1 {
				t.Fatalf("generation %d of s%d was spent %d times", generation, id, n)
			}
		}
	}
}

// Transactions and calls of Spend change one session in turn: each change raises the generation by
// one, and after a transaction has ended the session, Spend returns ErrNotFound.
func testSpendAndWrites(t *testing.T, new func(testing.TB) string) {
	uri := new(t)
	stores := []*store.Store{Open(t, uri), Open(t, uri)}
	insert(t, stores[0], newUser("alice", "alice"), newSession("s1", "alice"), newSession("s2", "alice"))
	var advanced atomic.Int64
	advance := func(s *store.Store, id string) error {
		err := s.Write(context.Background(), func(tx *store.Tx) error {
			row, _, err := tx.SessionAndUser(id)
			if err != nil {
				return err
			}
			row.Generations.Current++
			return tx.AdvanceSession(id, row.Generations)
		})
		advanced.Add(1)
		return err
	}
	repeat(t, 8, 8, func(i int) error {
		if i < 4 {
			return advance(stores[i%2], "s1")
		}
		row, err := readSession(stores[i%2], "s1")
		if err != nil {
			return err
		}
		switch _, err := spend(stores[i%2], "s1", row.Generations.Current); {
		case err == nil:
			advanced.Add(1)
		case !errors.Is(err, store.ErrNotFound):
			return err
		}
		return nil
	}, "s1")
	if got := session(t, stores[0], "s1").Generations.Current; got != 1+advanced.Load() {
		t.Errorf("advanced %d times, and it is generation %d", advanced.Load(), got)
	}
	var tasks sync.WaitGroup
	for i := range 4 {
		tasks.Go(func() {
			for generation := int64(1); ; generation++ {
				if _, err := spend(stores[i%2], "s2", generation); err != nil {
					if row, err := readSession(stores[i%2], "s2"); err != nil || !row.EndedAt.IsZero() {
						if err != nil {
							t.Error(err)
						}
						return
					}
				}
			}
		})
	}
	var ended time.Time
	write(t, stores[0], func(tx *store.Tx) error {
		_, err := tx.Session("s2")
		ended = tx.Now()
		return errors.Join(err, tx.EndSession("s2"))
	})
	tasks.Wait()
	if row := session(t, stores[0], "s2"); row.RefreshedAt.After(ended) {
		t.Errorf("ended at %v, and refreshed at %v", ended, row.RefreshedAt)
	}
}
