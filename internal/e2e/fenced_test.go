package e2e

import (
	"regexp"
	"testing"
	"time"

	"google.golang.org/grpc/credentials/insecure"

	"github.com/watchword-auth/watchword/authn"
)

// TestSlowAFormerPrimaryIsNotFresh takes the synchronous standby away from the primary, as when
// the standby has taken the primary's place and the network has parted them. The primary still
// answers. A verifier with RefuseWhenStale must refuse calls soon after its time, the log must say
// why, and everything must work again when commits do.
func TestSlowAFormerPrimaryIsNotFresh(t *testing.T) {
	slow(t)
	in := install(t, "--access-ttl", "1h")
	in.follow(true)
	r := in.replicate(t)
	c := r.dial(t)
	const stale, proven = 10 * time.Second, 12 * time.Second
	verifier, err := authn.NewVerifier(callCtx(t), dialConn(t, r.door.addr(), insecure.NewCredentials()),
		authn.WithAudience("internal"), authn.WithMaxStaleness(stale, authn.RefuseWhenStale))
	if err != nil {
		t.Fatal(err)
	}
	defer verifier.Close()
	pair := c.login(t, "admin", in.admin)
	verify := func() error { _, err := verifier.Verify(t.Context(), pair.GetAccessToken()); return err }
	for began := time.Now(); time.Since(began) < stale+proven; time.Sleep(50 * time.Millisecond) {
		if err := verify(); err != nil {
			t.Fatalf("while the standby confirms every commit: %v", err)
		}
	}
	in.standby.Kill()
	took := eventually(t, stale+proven+runTimeout, "refusing by a verifier of the former primary", func() error {
		return checkRefusal(verify(), "BUNDLE_STALE")
	})
	if most := stale + proven + 10*time.Second; took > most { // a heartbeat comes every five seconds
		t.Errorf("refused after %v, want at most %v", took, most)
	}
	r.now().awaitLog(t, regexp.MustCompile(`level=WARN msg="the database (is not available|does not commit)`))
	in.standby.Restart()
	back := eventually(t, runTimeout, "accepting again", verify)
	t.Logf("refused %v after the standby was gone, and accepted %v after it was back", took, back)
}
