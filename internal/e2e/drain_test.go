package e2e

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// TestAStopRefusesNoCall stops a server while callers call without a retry policy. The server
// answers every call that a client has sent before the client knows of the stop. Only a call
// that finds no server any more fails, because no connection can be made.
func TestAStopRefusesNoCall(t *testing.T) {
	for range 3 {
		s := serve(t, t.TempDir())
		pair := dial(t, s.grpcAddr).login(t, "admin", s.admin)
		var callers sync.WaitGroup
		var calls atomic.Int64
		for range 16 {
			c := dial(t, s.grpcAddr)
			callers.Go(func() {
				for {
					_, err := c.Verify(t.Context(), &watchwordv1.VerifyRequest{AccessToken: pair.GetAccessToken()})
					switch {
					case err == nil:
						calls.Add(1)
					case strings.Contains(err.Error(), "connection error"):
						return
					default:
						t.Errorf("a call during the stop: %v", err)
						return
					}
				}
			})
		}
		eventually(t, runTimeout, "calling", func() error { return atLeast(calls.Load(), 500) })
		s.stop(t)
		callers.Wait()
	}
}

// atLeast returns an error while n is below least.
func atLeast(n, least int64) error {
	if n < least {
		return fmt.Errorf("%d of %d", n, least)
	}
	return nil
}
