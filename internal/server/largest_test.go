package server_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/server"
)

// The largest user that the rules allow can sign in and call, with the largest
// issuer, client id, audiences and signature: an access token has at most 8192 bytes, and
// no rule says that a user can be too large for one.
func TestLargestUser(t *testing.T) {
	var long, short []string
	for i := range 4 {
		long = append(long, fmt.Sprint(i)+strings.Repeat("a", 252))
	}
	for i := range 205 {
		short = append(short, fmt.Sprintf("%c%c", 'a'+i%26, 'A'+i/26))
	}
	for name, names := range map[string][]string{"four long audiences": long, "many short audiences": short} {
		cfg := config(t.TempDir())
		cfg.SigningAlg, cfg.Issuer, cfg.ClientID, cfg.Audience = "RS256", "https://"+strings.Repeat("i", 248), strings.Repeat("c", 128), names
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) {
			largestUser(t, names[:min(len(names), mostNamed)], start(t, func(c *server.Config) {
				c.SigningAlg, c.Issuer, c.ClientID, c.Audience = cfg.SigningAlg, cfg.Issuer, cfg.ClientID, cfg.Audience
			}))
		})
	}
}

// mostNamed is the number of audiences that one login can name.
const mostNamed = 64

func largestUser(t *testing.T, names []string, h *harness) {
	roles := []string{"admin"}
	for i := range 31 {
		roles = append(roles, strings.Repeat("r", 62)+string(rune('a'+i/26))+string(rune('a'+i%26)))
	}
	for name, username := range map[string]string{
		"letters":          strings.Repeat("a", 256),
		"quotes":           strings.Repeat(`"`, 256),
		"angle brackets":   strings.Repeat("<", 256),
		"outside of ASCII": strings.Repeat("ü", 128),
	} {
		t.Run(name, func(t *testing.T) {
			a := &account{name: username, password: "a good password for it"}
			created, err := h.users.CreateUser(h.admin.as(t.Context()), &watchwordv1.CreateUserRequest{Username: username, Password: a.password, Roles: roles})
			if err != nil {
				t.Fatal(err)
			}
			if len(created.GetUser().GetRoles()) != 32 {
				t.Fatal(created)
			}
			if err := h.login(a, names...); err != nil {
				t.Fatal(err)
			}
			t.Logf("an access token of %d bytes", len(a.GetAccessToken()))
			if _, err := h.sessions.ListSessions(a.as(t.Context()), &watchwordv1.ListSessionsRequest{PageSize: 1}); err != nil {
				t.Error(err)
			}
		})
	}
}

// A session can be refreshed to its last moment, and then it has expired: the rest of its
// lifetime can be too short for a token, which must not be an INTERNAL error.
func TestRefreshToTheEndOfASession(t *testing.T) {
	h := start(t, func(c *server.Config) {
		c.AccessTTL, c.RefreshTTL, c.SessionTTL, c.RefreshGrace = time.Second, time.Second, 1500*time.Millisecond, 0
	})
	for range 2 {
		if err := h.login(h.admin); err != nil {
			t.Fatal(err)
		}
		for began := time.Now(); time.Since(began) < 2*time.Second; time.Sleep(20 * time.Millisecond) {
			resp, err := h.auth.Refresh(t.Context(), &watchwordv1.RefreshRequest{RefreshToken: h.admin.GetRefreshToken()})
			if outcome(err) == "REFRESH_TOKEN_EXPIRED" {
				break
			}
			if err != nil {
				t.Fatalf("%v after the login: %v", time.Since(began), err)
			}
			h.admin.TokenPair = resp.GetTokens()
			if h.admin.GetExpiresIn().AsDuration() <= 0 {
				t.Errorf("%v after the login: an access token for %v", time.Since(began), h.admin.GetExpiresIn().AsDuration())
			}
		}
		wants(t, "after its end", h.refresh(t, h.admin.GetRefreshToken()), "REFRESH_TOKEN_EXPIRED")
		time.Sleep(300 * time.Millisecond) // the next login begins at another fraction of a second
	}
}
