package rpc_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
)

// installation is a database with signing keys, and replicas of a server on it.
type installation struct {
	path   string
	store  *store.Store
	master *seal.Keys
}

func install(t *testing.T) *installation {
	t.Helper()
	dir := t.TempDir()
	in := &installation{path: filepath.Join(dir, "i.db")}
	in.store = in.open(t)
	var err error
	if in.master, err = seal.Create(filepath.Join(dir, "master")); err != nil {
		t.Fatal(err)
	}
	in.write(t, func(tx *feed.Tx) error { return issuer.Setup(tx.Tx, in.master, token.EdDSA) })
	in.write(t, func(tx *feed.Tx) error { return tx.RaiseMaxLifetime(5 * time.Minute) })
	return in
}

func (in *installation) open(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), "sqlite:"+in.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func (in *installation) write(t *testing.T, fn func(*feed.Tx) error) {
	t.Helper()
	if err := feed.Direct(in.store).Write(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// issuer reads the present keys, and keeps them even if the database changes.
func (in *installation) issuer(t *testing.T) *issuer.Issuer {
	t.Helper()
	keys := in.keySet()
	if err := keys.Load(t.Context(), in.store); err != nil {
		t.Fatal(err)
	}
	return issuer.New(in.store, keys, "https://auth.test", "", 5*time.Minute)
}

func (in *installation) keySet() *issuer.KeySet {
	return issuer.NewKeySet(in.master, slog.New(slog.DiscardHandler))
}

// replica serves the bundle from a store, and reads the new events of the store.
func (in *installation) replica(t *testing.T, s *store.Store) *trust {
	t.Helper()
	tr := serveFeed(t, openFeed(t, s, in.keySet().Read))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { tr.feed.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return tr
}

// mint makes a token for a session.
func mint(t *testing.T, i *issuer.Issuer, session string) string {
	t.Helper()
	raw, _, err := i.Mint(t.Context(), time.Now(), issuer.Subject{
		UserID: "alice", Username: "alice", Version: 1, SessionID: session, Audience: []string{"internal"}, SessionEnd: time.Now().Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// A verifier that knows of a key's withdrawal connects to a replica that lost the database
// before it learned of the withdrawal. The key stays withdrawn for the verifier.
func TestAReplicaThatIsBehindUndoesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := install(t)
		lost := in.open(t)
		here, behind, fresh := in.replica(t, in.store), in.replica(t, lost), in.replica(t, in.open(t))
		var at atomic.Pointer[trust]
		at.Store(here)
		v, err := authn.NewVerifier(t.Context(), dial(t, func() *bufconn.Listener { return at.Load().listener }), authn.WithAudience("internal"))
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		thief := in.issuer(t)
		verdict := func(raw string) watchwordv1.ErrorReason {
			_, err := v.Verify(t.Context(), raw)
			return authn.Reason(err)
		}
		if reason := verdict(mint(t, thief, "one")); reason != 0 {
			t.Fatalf("before: %v", reason)
		}
		lost.Close()
		in.withdraw(t)
		ended := mint(t, in.issuer(t), "ended")
		in.write(t, func(tx *feed.Tx) error { return tx.SessionEnded("ended") })
		time.Sleep(time.Second)
		check := func(where string) {
			t.Helper()
			if reason := verdict(mint(t, thief, "two")); reason != watchwordv1.ErrorReason_ERROR_REASON_TOKEN_INVALID {
				t.Errorf("%s, a token of the withdrawn key: %v", where, reason)
			}
			if reason := verdict(ended); reason != watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED {
				t.Errorf("%s, a token of the ended session: %v", where, reason)
			}
		}
		check("where it was withdrawn")
		at.Store(behind)
		here.stop()
		for range 3 {
			select {
			case err := <-behind.ended:
				if status.Code(err) != codes.Unavailable {
					t.Errorf("sent away with %v", err)
				}
			case <-time.After(time.Minute):
				t.Error("served by who is behind")
			}
			synctest.Wait()
			check("where nobody has heard")
		}
		at.Store(fresh)
		behind.stop()
		time.Sleep(30 * time.Second)
		if stale := v.Status().Staleness; stale > 10*time.Second {
			t.Errorf("the verifier has heard nothing for %v", stale)
		}
		check("at a third replica")
	})
}

// withdraw withdraws the key that signs.
func (in *installation) withdraw(t *testing.T) {
	t.Helper()
	all, err := issuer.List(t.Context(), in.store, in.master)
	if err != nil {
		t.Fatal(err)
	}
	ring := issuer.NewKeyring(in.store, feed.Direct(in.store), in.keySet(), audit.New(in.store, slog.New(slog.DiscardHandler)))
	for _, key := range all {
		if key.State == issuer.Signing {
			if _, err := ring.Revoke(t.Context(), caller.AtCommandLine, key.KID); err != nil {
				t.Fatal(err)
			}
		}
	}
}
