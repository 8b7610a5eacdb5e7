package storetest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

// IsRecent returns true for the newest sessions of a user, ended or not, and does not count the
// sessions of other users.
func testRecentSessions(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	now := time.Now().UTC().Truncate(time.Microsecond)
	var rows []*store.Session
	for i := range 5 {
		row := newSession(fmt.Sprint("s", i), "alice")
		row.CreatedAt = now.Add(time.Duration(i) * time.Second)
		rows = append(rows, row)
	}
	rows[0].BornVersion = 8 // the clock was set back: a newer version counts
	rows[4].EndedAt = now
	insert(t, s, newUser("alice", "alice"), rows...)
	insert(t, s, newUser("bob", "bob"), newSession("b", "bob"))
	var recent []string
	read(t, s, func(tx *store.Tx) error {
		for _, row := range rows {
			is, err := tx.IsRecent(row, 3)
			if err != nil {
				return err
			}
			if is {
				recent = append(recent, row.ID)
			}
		}
		return nil
	})
	if want := []string{"s0", "s3", "s4"}; !slices.Equal(recent, want) {
		t.Errorf("recent are %v, want %v", recent, want)
	}
}

// Buckets are made when they are needed, and no change of a bucket is lost, not even beside
// pruning.
func testThrottle(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	ids := [2]int64{7, 1 << 40}
	get := func() (pair [2]store.ThrottleBucket) {
		read(t, s, func(tx *store.Tx) (err error) {
			pair, err = tx.ThrottleBuckets(ids)
			return err
		})
		return pair
	}
	if pair := get(); pair[0].ID != ids[0] || pair[1].ID != ids[1] || !pair[1].ClearAt.IsZero() {
		t.Errorf("missing buckets: %+v", pair)
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	set := store.ThrottleBucket{ID: ids[1], ClearAt: now.Add(time.Hour), NextAt: now, Promises: []byte{0, 1, 255}}
	write(t, s, func(tx *store.Tx) error {
		if _, err := tx.LockThrottleBuckets(ids); err != nil {
			return err
		}
		return tx.SetThrottleBucket(&set)
	})
	pair := get()
	if got := pair[1]; !got.ClearAt.Equal(set.ClearAt) || !got.NextAt.Equal(set.NextAt) || !bytes.Equal(got.Promises, set.Promises) {
		t.Errorf("got %+v, want %+v", got, set)
	}
	start := now.Add(-time.Hour) // start is in the past, so that pruning would delete the bucket
	var writers sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			for range 50 {
				err := s.Write(context.Background(), func(tx *store.Tx) error {
					pair, err := tx.LockThrottleBuckets(ids)
					if err != nil {
						return err
					}
					if pair[0].ClearAt.Before(start) {
						pair[0].ClearAt = start
					}
					pair[0].ClearAt = pair[0].ClearAt.Add(time.Minute)
					return tx.SetThrottleBucket(&pair[0])
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	if got := get()[0].ClearAt; !got.Equal(start.Add(200 * time.Minute)) {
		t.Errorf("200 changes have moved the bucket by %v", got.Sub(start))
	}
	write(t, s, func(tx *store.Tx) error { // the time ClearAt of the first bucket has passed, so pruning deletes the bucket
		pair, err := tx.LockThrottleBuckets(ids)
		if err != nil {
			return err
		}
		pair[0].ClearAt = now.Add(-time.Minute)
		return tx.SetThrottleBucket(&pair[0])
	})
	write(t, s, func(tx *store.Tx) error {
		last, more, err := tx.PruneThrottle(0, 10, tx.Now())
		if last != ids[1] || more {
			t.Errorf("pruning read up to %d, more %v", last, more)
		}
		return err
	})
	if pair := get(); !pair[0].ClearAt.IsZero() || !pair[1].ClearAt.Equal(set.ClearAt) {
		t.Errorf("after pruning: %+v", pair)
	}
}
