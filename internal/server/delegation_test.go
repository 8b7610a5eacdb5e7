package server_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/server"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
)

// Each forged delegation is refused as DELEGATION_DENIED, is counted in the security record with
// the service and the subject, and writes nothing else.
func TestForgedDelegations(t *testing.T) {
	h := start(t, func(c *server.Config) { c.Issuer, c.Audience = thisServer, []string{"internal", "billing"} })
	f := newForeign(t, "ci", "https://ci.test", "ES256")
	h.trustIssuer(t, f)
	own := func(name, audience, to string) string { // makes a service account, and returns its own token for Watchword
		h.bind(t, "ci", name, h.serviceAs(t, name, func(u *store.User, _ time.Time) {
			u.Audiences, u.DelegatesTo = []string{audience}, []string{to}
		}))
		resp, err := h.exchange(t, f.sign(t, "ES256", f.claims(thisServer, name)), "watchword")
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetAccessToken()
	}
	notes, bills := own("notes", "internal", "billing"), own("bills", "billing", "internal")
	delegate := func(own, subject, audience string) (string, error) {
		resp, err := h.auth.DelegateToken(bearing(t.Context(), own), &watchwordv1.DelegateTokenRequest{SubjectToken: subject, Audience: audience})
		return resp.GetAccessToken(), err
	}
	alice := h.make(t, "reader")
	chain := []string{alice.GetAccessToken()} // the token of each step: the user's, and after each further service
	for i := range token.MaxActors {
		raw, err := delegate([]string{notes, bills}[i%2], chain[i], []string{"billing", "internal"}[i%2])
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		chain = append(chain, raw)
	}
	// counted returns how many delegations are recorded. The record of granted delegations names no
	// subject: delegations are counted by service, audience and hour.
	counted := func(success bool) (n int64) {
		for _, e := range h.events(t, &watchwordv1.ListEventsRequest{Type: "token.delegated"}) {
			if e.GetSuccess() == success && slices.Contains([]string{"notes", "bills"}, e.GetActorName()) && (success || e.GetUserName() == alice.name) {
				n += e.GetCount()
			}
		}
		return n
	}
	wait := func(success bool, want int64) {
		t.Helper()
		eventually(t, func() bool { return counted(success) == want }, func() string {
			return fmt.Sprintf("success %t: %d delegations are recorded, want %d", success, counted(success), want)
		})
	}
	wait(true, token.MaxActors)

	before := h.dump(t)
	forged := map[string][3]string{
		"a token that notes was not shown": {notes, chain[1], "billing"},
		"to where notes may not":           {notes, chain[0], "internal"},
		"a sixth actor":                    {bills, chain[token.MaxActors], "internal"},
		"the audience watchword":           {notes, chain[0], "watchword"},
	}
	for name, args := range forged {
		raw, err := delegate(args[0], args[1], args[2])
		wants(t, name, outcome(err), "DELEGATION_DENIED")
		if raw != "" {
			t.Errorf("%s: got a token", name)
		}
	}
	wait(false, int64(len(forged)))
	if changes := difference(before, h.dump(t)); changes != "" {
		t.Errorf("forgeries have changed the database:\n%s", changes)
	}
}
