package storetest

import (
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

// Wait lets a time pass during which ticks are counted, as a running server does. The test
// must be in a bubble of synctest.
func Wait(t testing.TB, s *store.Store, d time.Duration) {
	t.Helper()
	for end := time.Now().Add(d); ; time.Sleep(min(store.TickEvery, time.Until(end))) {
		if err := s.Write(t.Context(), (*store.Tx).Tick); err != nil {
			t.Fatal(err)
		}
		if !time.Now().Before(end) {
			return
		}
	}
}
