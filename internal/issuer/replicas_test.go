package issuer_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
	"github.com/watchword-auth/watchword/internal/token"
)

// If ten replicas do the same at once, the result is that of one replica: one pair of keys on an
// empty database, one rotation in progress, one key that signs next.
func TestTenReplicasAtOnce(t *testing.T) {
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) {
		uri := new(t)
		master, err := seal.Create(filepath.Join(t.TempDir(), "master"))
		if err != nil {
			t.Fatal(err)
		}
		const replicas = 10
		var stores [replicas]*store.Store
		var rings [replicas]*issuer.Keyring
		for i := range stores {
			stores[i] = storetest.Open(t, uri)
			rings[i] = issuer.NewKeyring(stores[i], feed.Direct(stores[i]), keySet(master), audit.New(stores[i], slog.New(slog.DiscardHandler)))
		}
		s := stores[0]
		atOnce := func(do func(i int) error) {
			t.Helper()
			var tasks sync.WaitGroup
			for i := range replicas {
				tasks.Go(func() {
					if err := do(i); err != nil {
						t.Error(err)
					}
				})
			}
			tasks.Wait()
		}
		atOnce(func(i int) error {
			return feed.Direct(stores[i]).Write(context.Background(), func(tx *feed.Tx) error {
				if err := tx.Exclusive(); err != nil { // the first start takes the same lock
					return err
				}
				return errors.Join(issuer.Setup(tx.Tx, master, token.EdDSA), issuer.SetMaxAge(tx.Tx, maxAge), tx.RaiseMaxLifetime(5*time.Minute))
			})
		})
		if n := len(rows(t, s)); n != 2 {
			t.Fatalf("%d keys on what was an empty database", n)
		}
		first := signing(t, s)
		var rotated [replicas]issuer.Key
		atOnce(func(i int) (err error) {
			rotated[i], err = rings[i].Rotate(context.Background(), caller.AtCommandLine, "")
			return err
		})
		for _, key := range rotated {
			if key.KID != rotated[0].KID || key.KID == first.KID {
				t.Errorf("%s is rotated to, and %s", rotated[0].KID, key.KID)
			}
		}
		if n := len(rows(t, s)); n != 3 {
			t.Errorf("%d keys after one rotation", n)
		}
		checkChain(t, s, false)
		// If the signing key is withdrawn, the next key signs at once, and each replica gets the
		// same next key.
		atOnce(func(i int) (err error) {
			rotated[i], err = rings[i].Revoke(context.Background(), caller.AtCommandLine, first.KID)
			return err
		})
		checkChain(t, s, true)
		atOnce(func(i int) error {
			_, err := rings[i].Rotate(context.Background(), caller.AtCommandLine, []token.Algorithm{token.ES256, token.EdDSA}[i%2])
			return err
		})
		for _, key := range rows(t, s) {
			if !key.SignsUntil.IsZero() && !key.SignsUntil.After(key.SignsFrom) {
				t.Errorf("%s signs from %v until %v", key.KID, key.SignsFrom, key.SignsUntil)
			}
		}
		checkChain(t, s, true)
	})
}
