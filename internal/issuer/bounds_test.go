package issuer_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

func count(t *testing.T, s *store.Store) (withdrawn, others int) {
	t.Helper()
	all, err := issuer.ListRows(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	withdrawn = len(inState(t, s, issuer.Revoked))
	return withdrawn, len(all) - withdrawn
}

// Rotations without end are refused, until the keys that they made have expired.
func TestRotationsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, s, _ := ring(t)
		if err := feed.Direct(s).Write(t.Context(), func(tx *feed.Tx) error { return issuer.SetMaxAge(tx.Tx, 0) }); err != nil {
			t.Fatal(err)
		}
		var err error
		n := 0
		for ; err == nil && n < 1000; n++ {
			_, err = k.Rotate(t.Context(), caller.AtCommandLine, "")
			time.Sleep(time.Microsecond)
		}
		if !errors.Is(err, issuer.ErrTooMany) {
			t.Fatalf("after %d rotations: %v", n, err)
		}
		if _, others := count(t, s); others != 100 {
			t.Errorf("%d keys", others)
		}
		leaked := signing(t, s)
		if now := revoke(t, k, leaked.KID); now.KID == leaked.KID || now.State != issuer.Signing {
			t.Errorf("a leaked key is not replaced: %+v", now)
		}
		storetest.Wait(t, s, 5*time.Minute+feed.Margin+30*time.Minute) // ticks count the time in rows of ten minutes
		rotate(t, k, "")
		if _, others := count(t, s); others > 5 {
			t.Errorf("%d keys after the others have expired", others)
		}
	})
}

// A process remembers the latest thousand withdrawn keys, the latest last.
func TestTheMemoryOfWithdrawnKeysIsBounded(t *testing.T) {
	k, s, master := ring(t)
	set := keySet(master)
	var last string
	var kids []string
	for i := range 1100 {
		last = inState(t, s, issuer.Next)[0].KID
		revoke(t, k, last)
		if i%10 < 9 { // the database keeps only the latest twenty withdrawn keys, so one reading in ten rounds is enough
			continue
		}
		if err := s.Read(t.Context(), func(tx *store.Tx) error {
			read, err := set.Read(t.Context(), tx)
			kids = read.Withdrawn
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if len(kids) != 1000 || kids[len(kids)-1] != last {
		t.Errorf("%d ids, the last %q, want 1000 and %s", len(kids), kids[len(kids)-1], last)
	}
}

// Of the keys that were withdrawn, the latest are kept.
func TestWithdrawnKeysAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, s, _ := ring(t)
		var last string
		for i := range 60 {
			state := issuer.Next
			if i%2 == 0 {
				state = issuer.Signing
			}
			last = inState(t, s, state)[0].KID
			revoke(t, k, last)
			revoke(t, k, last) // changes nothing
			time.Sleep(time.Second)
		}
		withdrawn, others := count(t, s)
		if withdrawn != 20 || others > 4 { // at most four: the key that signs, the unseen key, the next key, and a retired key
			t.Errorf("%d withdrawn keys and %d others", withdrawn, others)
		}
		for _, key := range inState(t, s, issuer.Revoked) {
			if key.KID == last {
				return
			}
		}
		t.Errorf("the key withdrawn last is not kept")
	})
}
