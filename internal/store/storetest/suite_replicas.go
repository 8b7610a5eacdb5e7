package storetest

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

// WriteReplica replaces the whole row of a replica, and all replicas read the same newest question.
func testReplicas(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	var asked time.Time
	read(t, s, func(tx *store.Tx) (err error) {
		_, asked, err = tx.FloorAndQuestion()
		return err
	})
	if asked.Year() != 1970 {
		t.Errorf("before the first question: %v", asked)
	}
	write(t, s, func(tx *store.Tx) (err error) {
		asked, err = tx.AskReplicas()
		return err
	})
	for _, row := range []store.Replica{{ID: 1, Address: "a", Summary: []byte("first")}, {ID: 2, Address: "b", Summary: []byte{}}, {ID: 1, Address: "c", Answered: asked, Summary: []byte("second")}} {
		write(t, s, func(tx *store.Tx) error { return tx.WriteReplica(&row) })
	}
	read(t, s, func(tx *store.Tx) error {
		_, again, err1 := tx.FloorAndQuestion()
		rows, err2 := tx.Replicas()
		bare, err3 := tx.ReplicaAnswers()
		for _, err := range []error{err1, err2, err3} {
			if err != nil {
				return err
			}
		}
		if !again.Equal(asked) {
			t.Errorf("asked at %v, and read as %v", asked, again)
		}
		if len(rows) != 2 || rows[0].Address != "c" || string(rows[0].Summary) != "second" || !rows[0].Answered.Equal(asked) ||
			len(bare) != 2 || bare[0].Summary != nil || !bare[0].WrittenAt.Equal(rows[0].WrittenAt) {
			t.Errorf("the rows are %+v and %+v", rows, bare)
		}
		return nil
	})
	write(t, s, func(tx *store.Tx) error { return tx.SetSetting("watchers_asked", "damaged") })
	read(t, s, func(tx *store.Tx) error { // a damaged question is no error, since a question serves a display alone
		_, asked, err := tx.FloorAndQuestion()
		if asked.Year() != 1970 {
			t.Errorf("a damaged question is of %v", asked)
		}
		return err
	})
	write(t, s, func(tx *store.Tx) error { return tx.DeleteReplica(1) })
	write(t, s, func(tx *store.Tx) error { return tx.PruneReplicas(tx.Now().Add(-time.Hour)) })
	count := func() (n int) {
		read(t, s, func(tx *store.Tx) error {
			rows, err := tx.Replicas()
			n = len(rows)
			return err
		})
		return n
	}
	if n := count(); n != 1 {
		t.Errorf("%d rows after a replica has left, want 1", n)
	}
	write(t, s, func(tx *store.Tx) error { return tx.PruneReplicas(tx.Now().Add(time.Second)) })
	if n := count(); n != 0 {
		t.Errorf("%d rows after pruning, want none", n)
	}
}

// Several replicas can write the same certificates at the same time. Pruning keeps the certificates
// that were seen latest.
func testWatcherCertificates(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	var names []string
	for i := range 20 {
		names = append(names, fmt.Sprintf("DNS %02d", i))
	}
	var replicas sync.WaitGroup
	for range 4 {
		replicas.Go(func() {
			for range 5 {
				if err := s.Write(t.Context(), func(tx *store.Tx) error { return tx.SawCertificates(names) }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	replicas.Wait()
	write(t, s, func(tx *store.Tx) error { return tx.SawCertificates([]string{"URI late"}) })
	list := func(after time.Duration) (seen []string) {
		read(t, s, func(tx *store.Tx) error {
			rows, err := tx.WatcherCertificates(tx.Now().Add(-after), 100)
			for _, row := range rows {
				seen = append(seen, string(row.Name))
			}
			return err
		})
		return seen
	}
	if seen := list(time.Hour); len(seen) != 21 || seen[0] != "URI late" || list(-time.Hour) != nil {
		t.Errorf("seen are %q", seen)
	}
	write(t, s, func(tx *store.Tx) error { return tx.PruneWatcherCertificates(tx.Now().Add(-time.Hour), 3) })
	if seen := list(time.Hour); !slices.Equal(seen, []string{"URI late", "DNS 00", "DNS 01"}) {
		t.Errorf("after pruning, seen are %q", seen)
	}
	write(t, s, func(tx *store.Tx) error { return tx.PruneWatcherCertificates(tx.Now().Add(time.Second), 3) })
	if seen := list(time.Hour); len(seen) != 0 {
		t.Errorf("after pruning by time, seen are %q", seen)
	}
}
