package hub_test

import (
	"bytes"
	"context"
	"testing"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/hub"
)

// A resume token claims its greatest version only if a hub with the same key has made the
// token. For a claim above the hub's own greatest version, the hub is refreshed first.
func TestAResumeTokenClaimsTheGreatestVersion(t *testing.T) {
	const greatest = 1 << 50
	tokenOf := func(s *source, key string) []byte {
		s.SealResume([]byte(key))
		s.Publish(&hub.Update{Change: &watchwordv1.Change{TrustState: trust(1)}, Greatest: greatest})
		_, at := opening(t, watch(t, s, nil))
		return at
	}
	authentic := tokenOf(emptySource(), "the key of all replicas")
	s := newSource()
	asked := 0
	s.refresh = func(context.Context) error { asked++; return nil }
	forged := [][]byte{tokenOf(emptySource(), "another key"), authentic[:len(authentic)-1]}
	for i := range authentic {
		changed := bytes.Clone(authentic)
		changed[i] ^= 0x40
		forged = append(forged, changed)
	}
	for _, at := range forged {
		opening(t, watch(t, s, at))
	}
	if s.Claimed() != 0 || asked != 0 {
		t.Errorf("forged tokens claim the version %d, and bring %d refreshes", s.Claimed(), asked)
	}
	opening(t, watch(t, s, authentic))
	if s.Claimed() != greatest || asked != 1 {
		t.Errorf("the token claims the version %d, want %d, and brings %d refreshes, want 1", s.Claimed(), int64(greatest), asked)
	}
}
