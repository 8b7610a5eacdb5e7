package issuer_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
	"github.com/watchword-auth/watchword/internal/token"
)

// wire is a connection that can be cut.
type wire struct {
	grpc.ClientConnInterface

	mu  sync.Mutex
	cut context.Context // ends when the wire is cut
}

func (w *wire) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	w.mu.Lock()
	cut := w.cut
	w.mu.Unlock()
	if cut.Err() != nil {
		return nil, status.Error(codes.Unavailable, "cut")
	}
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(cut, cancel)
	return w.ClientConnInterface.NewStream(ctx, desc, method, opts...)
}

// restore connects the wire again, and returns a function that cuts the wire.
func (w *wire) restore() (cut func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut, cut = context.WithCancel(context.Background())
	return cut
}

// A verifier cannot miss a withdrawn key: the key set is state and not an event, and
// every stream begins with the key set. (A thief with a leaked key makes new tokens for
// as long as any verifier trusts the key.)
func TestAVerifierThatWasAwayLearnsOfAWithdrawal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, master, _ := setup(t, token.EdDSA)
		const life = 5 * time.Minute
		if err := feed.Direct(s).Write(t.Context(), func(tx *feed.Tx) error { return tx.RaiseMaxLifetime(life) }); err != nil {
			t.Fatal(err)
		}
		f, err := feed.Open(t.Context(), s, feed.Origin{Issuer: name, DatabaseID: "database", Keys: keySet(master).Read}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { f.Run(ctx) })
		defer running.Wait()
		defer stop()
		w := &wire{ClientConnInterface: f.Hub().Conn()}
		cut := w.restore()
		verifier, err := authn.NewVerifier(t.Context(), w, authn.WithAudience("internal"))
		if err != nil {
			t.Fatal(err)
		}
		defer verifier.Close()

		leaked := signing(t, s).KID
		thief := open(t, s, master) // keeps the key in memory
		verdict := func() watchwordv1.ErrorReason {
			subject := alice
			subject.SessionEnd = time.Now().Add(time.Hour)
			raw, _, err := thief.Mint(t.Context(), time.Now(), subject)
			if err != nil {
				t.Fatal(err)
			}
			_, err = verifier.Verify(t.Context(), raw)
			return authn.Reason(err)
		}
		if reason := verdict(); reason != 0 {
			t.Fatalf("before: %v", reason)
		}
		cut()
		ring := issuer.NewKeyring(s, feed.Direct(s), keySet(master), audit.New(s, slog.New(slog.DiscardHandler)))
		revoke(t, ring, leaked)
		storetest.Wait(t, s, life+feed.Margin+30*time.Minute)
		// Pruning never deletes the newest event: this event makes the newest event one without
		// news about keys.
		if err := feed.Direct(s).Write(t.Context(), func(tx *feed.Tx) error { return tx.SessionEnded("later") }); err != nil {
			t.Fatal(err)
		}
		if err := f.Prune(t.Context()); err != nil {
			t.Fatal(err)
		}
		err = s.Read(t.Context(), func(tx *store.Tx) error {
			events, err := tx.Events(0, 10)
			if len(events) != 1 || events[0].Subject != "later" {
				t.Errorf("%d events are kept", len(events))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if reason := verdict(); reason != 0 {
			t.Fatalf("away, it goes on with what it knows: %v", reason)
		}
		restored := time.Now()
		defer w.restore()()
		for verdict() != watchwordv1.ErrorReason_ERROR_REASON_TOKEN_INVALID {
			if time.Since(restored) > time.Minute {
				t.Fatal("the withdrawal is not known")
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Logf("known %v after the wire was whole again", time.Since(restored))
		if err := verifier.Close(); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
