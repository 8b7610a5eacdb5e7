package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// A read ends with its caller's context, also in the middle of a query, and frees its
// connection. Without the interrupt each query would run for years.
func TestAReadEndsWithItsCaller(t *testing.T) {
	s := storetest.Open(t, storetest.SQLite(t))
	readers := store.Readers(s)
	// The few rows of a delegation are read to the end, and the next caller of the connection has
	// its own context again.
	for range 2 * readers {
		leaving, leave := context.WithCancel(t.Context())
		err := s.ReadOne(leaving, func(tx *store.Tx) error {
			leave()
			_, err := tx.Standing("", nil)
			return err
		})
		if err != nil {
			t.Errorf("the rows of a delegation: %v", err)
		}
	}
	answers := make(chan error, readers)
	ctx, cancel := context.WithCancel(t.Context())
	for range readers {
		running := make(chan struct{})
		go func() {
			answers <- s.Read(ctx, func(tx *store.Tx) error {
				close(running)
				return store.RunForYears(tx)
			})
		}()
		<-running
	}
	// Every connection is busy, so another caller waits, and gives up with its context.
	impatient, giveUp := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer giveUp()
	if err := s.Read(impatient, func(*store.Tx) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a read without a connection: %v", err)
	}
	cancel()
	for range readers {
		if err := <-answers; !errors.Is(err, context.Canceled) || !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("an abandoned read: %v", err)
		}
	}
	for range 2 * readers { // every reading connection reads again
		if err := s.Read(t.Context(), func(tx *store.Tx) error { _, err := tx.Head(); return err }); err != nil {
			t.Error(err)
		}
	}
	// A write continues although its caller has left.
	writing, leave := context.WithCancel(t.Context())
	err := s.Write(writing, func(tx *store.Tx) error {
		leave()
		return tx.SetSetting("written", "yes")
	})
	if err != nil {
		t.Errorf("a write whose caller has left: %v", err)
	}
}
