package server_test

import (
	"fmt"
	"strings"
	"testing"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/server"
)

// The largest user that the rules allow can sign in and call, with the largest
// issuer, audiences and signature: an access token has at most 8192 bytes, and no rule says that a
// user can be too large for one.
func TestLargestUser(t *testing.T) {
	h := start(t, func(c *server.Config) {
		c.SigningAlg = "RS256"
		c.Issuer = "https://" + strings.Repeat("i", 248)
		c.Audience = nil
		for i := range 4 {
			c.Audience = append(c.Audience, fmt.Sprint(i)+strings.Repeat("a", 255))
		}
	})
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
			if err := h.login(a); err != nil {
				t.Fatal(err)
			}
			t.Logf("an access token of %d bytes", len(a.GetAccessToken()))
			if _, err := h.users.ListUsers(a.as(t.Context()), &watchwordv1.ListUsersRequest{PageSize: 1}); err != nil {
				t.Error(err)
			}
		})
	}
}
