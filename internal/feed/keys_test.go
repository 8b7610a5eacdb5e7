package feed_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
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

func keySet(master *seal.Keys) *issuer.KeySet {
	return issuer.NewKeySet(master, slog.New(slog.DiscardHandler))
}

// While the key set in the database cannot be used, the feed still publishes revocations,
// and reads the key set again after each heartbeat.
func TestEventsGoOnThoughTheKeysCannotBeUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, filepath.Join(t.TempDir(), "f.db"))
		set := keySet(keys(t, s))
		usable, reads := false, 0
		f := openWith(t, s, func(ctx context.Context, tx *store.Tx) (feed.KeySet, error) {
			if reads++; usable {
				return set.Read(ctx, tx)
			}
			return feed.KeySet{Again: true}, nil
		})
		run(t, f)
		w := watch(t, f)
		snapshot(t, w)
		write(t, s, ended("one"))
		for next(t, w).GetChange().GetEndedSessions() == nil {
		}
		before := reads
		usable = true
		for next(t, w).GetChange().GetTrustState().GetKeys() == nil { // though no event says that a key has changed
		}
		if before == reads {
			t.Error("the keys were not read again")
		}
		after := reads
		for range 5 {
			for next(t, w).GetHeartbeat() == nil {
			}
		}
		if reads != after {
			t.Errorf("read %d times after a success", reads-after)
		}
	})
}

// If somebody puts an earlier key set back without an event, the log of a server that knows the
// newer key set says so after some heartbeats. Reading the keys again sends nothing to watchers.
func TestAnEarlierKeySetIsNoticedWithoutAnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, filepath.Join(t.TempDir(), "f.db"))
		master := keys(t, s)
		var earlier []*store.SigningKey
		if err := s.Read(t.Context(), func(tx *store.Tx) (err error) { earlier, err = tx.SigningKeys(); return err }); err != nil {
			t.Fatal(err)
		}
		discard := slog.New(slog.DiscardHandler)
		ring := issuer.NewKeyring(s, feed.Direct(s), issuer.NewKeySet(master, discard), audit.New(s, discard))
		if _, err := ring.Revoke(t.Context(), caller.AtCommandLine, earlier[0].KID); err != nil {
			t.Fatal(err)
		}
		var logged bytes.Buffer
		f := openWith(t, s, issuer.NewKeySet(master, slog.New(slog.NewTextHandler(&logged, nil))).Read)
		run(t, f)
		w := watch(t, f)
		snapshot(t, w)
		err := s.Write(t.Context(), func(tx *store.Tx) error {
			now, err := tx.SigningKeys()
			for _, row := range now {
				err = errors.Join(err, tx.DeleteSigningKey(row.KID))
			}
			for _, row := range earlier {
				err = errors.Join(err, tx.InsertSigningKey(row))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for beats := 0; beats < 30; {
			switch m := next(t, w); {
			case m.GetHeartbeat() != nil:
				beats++
			case m.GetChange().GetTrustState() != nil:
				t.Errorf("received a trust state after %d heartbeats: %v", beats, m)
			}
		}
		if n := strings.Count(logged.String(), issuer.ErrRolledBack.Error()); n != 1 {
			t.Errorf("%d lines about the earlier key set, want one:\n%s", n, &logged)
		}
	})
}

// A key of an unknown kind, which a newer version may have written, is left out of
// the trust state.
func TestAKeyThatCannotBeReadIsLeftOut(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "f.db"))
	set := keySet(keys(t, s))
	newer := &store.SigningKey{KID: "newer", Algorithm: "ML-DSA-65", PublicKey: []byte("of another kind"), SealedKey: []byte("sealed")}
	var logged bytes.Buffer
	f, err := feed.Open(t.Context(), s, feed.Origin{
		Issuer: "https://auth.test", DatabaseID: "database",
		Keys: func(ctx context.Context, tx *store.Tx) (feed.KeySet, error) {
			read, err := set.Read(ctx, tx)
			read.Rows = append(slices.Clone(read.Rows), newer)
			return read, err
		},
	}, slog.New(slog.NewTextHandler(&logged, nil)))
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
