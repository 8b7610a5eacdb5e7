package rpc_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/test/bufconn"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/hub"
)

// fillUp takes every place that is left, by watchers with a certificate each.
func (tr *trust) fillUp(t *testing.T) {
	t.Helper()
	for i := 0; ; i++ {
		w, err := tr.feed.Hub().Watch(t.Context(), hub.Peer{Name: fmt.Sprint("DNS ", i), Certified: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(w.Close)
		synctest.Wait()
		select {
		case err := <-tr.ended:
			if !errors.Is(err, hub.ErrEvicted) {
				t.Errorf("a stream ended with %v", err)
			}
			return
		default:
		}
	}
}

// A client that loses its place for a stream gets the error at once, even if the client reads
// nothing and the server waits for the client to read.
func TestAWatcherThatReadsNothingGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := serveTrust(t, many)
		began := time.Now()
		for range 2 {
			tr.watch(t)
		}
		synctest.Wait()
		tr.fillUp(t)
		if took := time.Since(began); took != 0 {
			t.Errorf("the stream ended after %v", took)
		}
	})
}

// A verifier that loses its place for a stream resumes at another replica, and misses no
// revocation.
func TestAVerifierThatLosesItsPlaceMissesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := install(t)
		tr := in.replica(t, in.store)
		tr.watch(t) // a second stream of the same peer, which now holds most
		synctest.Wait()
		v, err := authn.NewVerifier(t.Context(), dial(t, func() *bufconn.Listener { return tr.listener }), authn.WithAudience("internal"))
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		raw := mint(t, in.issuer(t), "one")
		if _, err := v.Verify(t.Context(), raw); err != nil {
			t.Fatal(err)
		}
		tr.fillUp(t)
		in.write(t, func(tx *feed.Tx) error { return tx.SessionEnded("one") })
		time.Sleep(2 * time.Second)
		if _, err := v.Verify(t.Context(), raw); authn.Reason(err) != watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED {
			t.Errorf("after the eviction: %v", err)
		}
		if stale := v.Status().Staleness; stale > 10*time.Second {
			t.Errorf("the verifier has received nothing for %v", stale)
		}
	})
}
