package feed_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
)

// keys makes a database's first signing keys.
func keys(t *testing.T, s *store.Store) *seal.Keys {
	t.Helper()
	master, err := seal.Create(filepath.Join(t.TempDir(), "master"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, s, func(tx *feed.Tx) error { return issuer.Setup(tx.Tx, master, token.EdDSA) })
	return master
}

// If the issuer cannot load the signing keys, the feed still publishes revocations
// and the trust state.
func TestEventsGoOnThoughTheIssuerCannotTakeTheKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, filepath.Join(t.TempDir(), "f.db"))
		f := openFeed(t, s)
		unreadable, tried := errors.New("sealed under a master key that is not here"), make(chan error)
		f.OnKeys(func(ctx context.Context) error {
			select {
			case err := <-tried:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		run(t, f)
		w := watch(t, f)
		snapshot(t, w)
		keys(t, s)
		write(t, s, (*feed.Tx).KeysChanged)
		tried <- unreadable
		for next(t, w).GetChange().GetTrustState().GetKeys() == nil {
		}
		write(t, s, ended("one"))
		for next(t, w).GetChange().GetEndedSessions() == nil {
		}
		tried <- unreadable // again, though no key has changed
		tried <- nil
		for range 5 {
			for next(t, w).GetHeartbeat() == nil { // after a success, OnKeys is not called again
			}
		}
	})
}

// A key of an unknown kind, which a newer version may have written, is left out of
// the trust state.
func TestAKeyThatCannotBeReadIsLeftOut(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "f.db"))
	keys(t, s)
	write(t, s, func(tx *feed.Tx) error {
		return tx.InsertSigningKey(&store.SigningKey{
			KID: "newer", Algorithm: "ML-DSA-65", PublicKey: []byte("of another kind"), SealedKey: []byte("sealed"),
			PublishedAt: tx.Now(), SignsFrom: tx.Now(),
		})
	})
	var logged bytes.Buffer
	f, err := feed.Open(t.Context(), s, "https://auth.test", "database", slog.New(slog.NewTextHandler(&logged, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(logged.String(), "newer") {
		t.Errorf("nothing says which key is left out: %s", &logged)
	}
	for i := range 2 {
		if n := len(f.Hub().TrustState().GetKeys()); n != 2 {
			t.Errorf("%d keys, want 2", n)
		}
		write(t, s, ended(fmt.Sprint(i)))
		write(t, s, (*feed.Tx).KeysChanged)
		tail(t, f)
		if sessions, _ := snapshot(t, watch(t, f)); len(sessions) != i+1 {
			t.Errorf("received %v", sessions)
		}
	}
}
