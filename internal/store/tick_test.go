package store_test

import (
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// A row is old when its age has passed by the clock and also in ticks, which the servers count
// while they run: a pause without a server, a clock that is ahead for a moment, and a second
// server count for nothing. A row is old at most two periods of ten minutes later, and a clock
// that was set back delays that.
func TestAged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		uri := "sqlite:" + filepath.Join(t.TempDir(), "t.db")
		s := storetest.Open(t, uri)
		const age, late = 15 * time.Minute, 20 * time.Minute
		aged := func() (at time.Time) {
			t.Helper()
			err := s.Read(t.Context(), func(tx *store.Tx) (err error) { at, err = tx.Aged(age); return err })
			if err != nil {
				t.Fatal(err)
			}
			return at
		}
		if !aged().IsZero() {
			t.Error("something is old before the first tick")
		}
		time.Sleep(24 * time.Hour) // a day in which no server runs
		written := time.Now()
		storetest.Wait(t, s, age-time.Second)
		if aged().After(written) {
			t.Errorf("old after %v", time.Since(written))
		}
		storetest.Wait(t, s, late+2*time.Second)
		if !aged().After(written) {
			t.Errorf("not old after %v", time.Since(written))
		}
		for range 10 { // long pauses, within which no tick is counted
			written = time.Now()
			time.Sleep(time.Hour)
			storetest.Wait(t, s, 0)
			if aged().After(written) {
				t.Fatal("old by the clock alone")
			}
		}
		storetest.Wait(t, s, age+late)
		written = time.Now()
		other := storetest.Open(t, uri)
		for range 30 { // two servers count no faster
			time.Sleep(store.TickEvery / 2)
			storetest.Wait(t, s, 0)
			storetest.Wait(t, other, 0)
		}
		storetest.Wait(t, s, age-3*time.Minute)
		if aged().After(written) {
			t.Errorf("old after %v", time.Since(written))
		}
	})
}
