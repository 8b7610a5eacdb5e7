package authn_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// of returns whether a user or service account is the subject of the token or an actor.
func (m *modelToken) of(user string) bool { return m.user == user || slices.Contains(m.actors, user) }

// modelToken is a token and the answer that Verify must give for the token.
type modelToken struct {
	raw, session, user string // session is empty for a token of a service account
	actors             []string
	key                int
	expires            time.Time
	verdict            string // expected, apart from expiry; since the verifier's last connection
}

// A verifier and a small model go through a day of random events, and must give the same
// answer for every token. Without a connection, the verifier uses its newest trust bundle.
func TestADayOfTokens(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var stopped any
		synctest.Test(t, func(t *testing.T) {
			defer func() { stopped = recover() }() // rapid stops a run by a panic; the panic must not leave the bubble
			issuer := authntest.New()
			v := issuer.NewVerifier(t, authn.WithAudience("test"))
			began := time.Now()
			var ahead time.Duration
			var tokens []*modelToken
			key, connected, sessions, ended := 0, true, 0, map[string]bool{}
			now := func() time.Time { return time.Now().Add(ahead) }
			decide := func(verdict string, concerns func(*modelToken) bool) {
				for _, m := range tokens {
					// Verify gives the first reason in the order of its contract, so a reason
					// stays if the new one comes later in the order.
					if concerns(m) && (m.verdict == "ok" || m.verdict == "TOKEN_STALE" || verdict == "TOKEN_INVALID") {
						m.verdict = verdict
					}
				}
			}
			anyToken := func() *modelToken { return rapid.SampledFrom(tokens).Draw(rt, "token") }
			check := func() {
				for i, m := range tokens {
					want := m.verdict
					if !now().Before(m.expires) && want != "TOKEN_INVALID" {
						want = "TOKEN_EXPIRED"
					}
					for range 2 { // the second time with the token cached
						_, err := v.Verify(t.Context(), m.raw)
						if got := name(err); got != want {
							rt.Fatalf("token %d: %s, want %s", i, got, want)
						}
					}
				}
			}
			for step := 0; now().Sub(began) < 24*time.Hour && step < 120; step++ {
				actions := []string{"mint", "mint", "mint", "wait", "cut"}
				if connected && len(tokens) > 0 {
					actions = append(actions, "end session", "end user", "rights", "rotate", "withdraw", "advance")
				}
				switch rapid.SampledFrom(actions).Draw(rt, "action") {
				case "mint":
					if !connected {
						continue // the verifier may not know the server's key
					}
					u := authntest.User{Name: rapid.SampledFrom([]string{"ann", "bob", "notes", "search"}).Draw(rt, "user"), Lifetime: time.Duration(rapid.IntRange(1, 3400).Draw(rt, "life")) * time.Second}
					if rapid.Bool().Draw(rt, "new session") {
						sessions++
					}
					if u.SessionID = fmt.Sprintf("%s-%d", u.Name, sessions); u.Name == "notes" || u.Name == "search" {
						u.Kind, u.SessionID = watchwordv1.UserKind_USER_KIND_SERVICE, ""
					}
					actors := rapid.SampledFrom([][]string{nil, nil, {"notes"}, {"search", "notes"}, {"notes", "search", "notes"}}).Draw(rt, "actors")
					if actors != nil {
						u.Lifetime += 2 * time.Minute // each withdrawal of a key may set the iat of the next delegated tokens a second ahead
					}
					for _, a := range actors {
						u.Actors = append(u.Actors, authntest.User{Name: a})
					}
					raw := issuer.Token(u)
					if ended[u.SessionID] {
						continue // no server mints a token for an ended session
					}
					tokens = append(tokens, &modelToken{raw, u.SessionID, u.Name, actors, key, now().Truncate(time.Second).Add(u.Lifetime), "ok"})
				case "end session":
					m := anyToken()
					if m.verdict == "TOKEN_INVALID" || m.session == "" {
						continue
					}
					issuer.EndSession(m.raw)
					ended[m.session] = true
					decide("TOKEN_REVOKED", func(o *modelToken) bool { return o.session == m.session })
				case "end user":
					m := anyToken()
					ends := rapid.SampledFrom(append(m.actors, m.user)).Draw(rt, "ends")
					issuer.EndUser(authntest.User{Name: ends})
					decide("TOKEN_REVOKED", func(o *modelToken) bool { return o.of(ends) })
				case "rights":
					m := anyToken()
					changes := rapid.SampledFrom(append(m.actors, m.user)).Draw(rt, "changes")
					issuer.ChangeRights(authntest.User{Name: changes})
					decide("TOKEN_STALE", func(o *modelToken) bool { return o.of(changes) && o.verdict == "ok" })
				case "rotate":
					issuer.RotateKey()
					key++
				case "withdraw":
					m := anyToken()
					issuer.WithdrawKey(m.raw)
					if m.key == key {
						key++
					}
					decide("TOKEN_INVALID", func(o *modelToken) bool { return o.key == m.key || o.actors != nil })
				case "advance":
					d := time.Duration(rapid.IntRange(0, 3600).Draw(rt, "seconds")) * time.Second
					issuer.Advance(d)
					ahead += d
				case "wait":
					time.Sleep(time.Duration(rapid.IntRange(0, 1800).Draw(rt, "seconds")) * time.Second)
				case "cut":
					if connected {
						issuer.Disconnect()
					} else {
						issuer.Reconnect()
						time.Sleep(11 * time.Second)
					}
					connected = !connected
				}
				check()
			}
		})
		if stopped != nil && !rt.Failed() {
			panic(stopped) // rapid takes panics of one line for the same failure
		}
		if stopped != nil {
			panic(stopped)
		}
	})
}
