package server_test

import (
	"fmt"
	"runtime"
	"testing"

	"go.uber.org/goleak"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
)

// heap returns the memory in use, after a collection of garbage.
func heap() int {
	var m runtime.MemStats
	for range 2 { // the second run frees objects with a finalizer
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// Verifiers connect, receive the whole bundle, verify tokens and close. Afterwards neither the
// verifiers nor the server keep a goroutine or memory.
func TestComingAndGoingLeavesNothing(t *testing.T) {
	const rounds, verifiers, sessions = 20, 3, 1_000
	h := start(t)
	h.behind(t, func(tx *feed.Tx) error {
		for i := range sessions {
			if err := tx.SessionEnded(fmt.Sprintf("%016d", i)); err != nil {
				return err
			}
		}
		return nil
	})
	first := *h.admin
	h.relogin(t, h.admin)
	// The feed knows every event from before this acknowledged logout.
	if _, err := h.auth.Logout(t.Context(), &watchwordv1.LogoutRequest{RefreshToken: first.GetRefreshToken()}); err != nil {
		t.Fatal(err)
	}
	round := func() {
		for range verifiers {
			v, err := authn.NewVerifier(t.Context(), h.conn, authn.WithAudience(caller.AdminAudience))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := v.Verify(t.Context(), h.admin.GetAccessToken()); err != nil {
				t.Error(err)
			}
			if n := v.Status().EndedSessions; n < sessions {
				t.Errorf("it knows of %d sessions", n)
			}
			if err := v.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	round() // the first round opens connections that stay open
	was, running := heap(), goleak.IgnoreCurrent()
	for range rounds {
		round()
	}
	goleak.VerifyNone(t, running)
	// A leaked verifier with these sessions would take some 60 KB.
	grown := heap() - was
	t.Logf("after %d verifiers the heap has grown by %d bytes", rounds*verifiers, grown)
	if grown > 1<<20 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
}
