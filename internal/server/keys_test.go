package server_test

import (
	"testing"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/server"
)

// A rotation refuses no good token; a withdrawal refuses every token of the key
// as soon as it is acknowledged, and new ones are good.
func TestRotateAndRevokeKey(t *testing.T) {
	eachEngine(t, func(t *testing.T, on func(*server.Config)) {
		h := start(t, on, func(c *server.Config) { c.JWKSMaxAge = 0 })
		a := h.make(t)
		for _, alg := range []string{"", "ES256", "RS256", "EdDSA"} {
			before := a.GetAccessToken()
			rotated, err := h.keys.RotateKey(h.admin.as(t.Context()), &watchwordv1.RotateKeyRequest{Algorithm: alg})
			if err != nil || rotated.GetKey().GetState() != watchwordv1.KeyState_KEY_STATE_SIGNING {
				t.Fatalf("rotate to %q: %v, %v", alg, rotated, err)
			}
			wants(t, "a token of before", h.verify(t, before), "ok")
			h.relogin(t, a)
			wants(t, "a token of after", h.verify(t, a.GetAccessToken()), "ok")
			h.relogin(t, h.admin)

			leaked := rotated.GetKey().GetKid()
			signs, err := h.keys.RevokeKey(h.admin.as(t.Context()), &watchwordv1.RevokeKeyRequest{Kid: leaked})
			if err != nil || signs.GetKey().GetKid() == leaked {
				t.Fatalf("revoke: %v, %v", signs, err)
			}
			wants(t, "a token of the leaked key", h.verify(t, a.GetAccessToken()), "TOKEN_INVALID")
			wants(t, "a token of the retired key", h.verify(t, before), "ok")
			h.relogin(t, a)
			h.relogin(t, h.admin)
			wants(t, "a token after the withdrawal", h.verify(t, a.GetAccessToken()), "ok")
		}
	})
}

// An admin withdraws twenty keys in an hour at most: each withdrawal costs every verifier memory.
func TestWithdrawalsAreBounded(t *testing.T) {
	h := start(t)
	withdraw := func() error {
		h.relogin(t, h.admin) // the call may have withdrawn the key that signs
		listed, err := h.keys.ListKeys(h.admin.as(t.Context()), &watchwordv1.ListKeysRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range listed.GetKeys() {
			if key.GetState() == watchwordv1.KeyState_KEY_STATE_NEXT {
				_, err = h.keys.RevokeKey(h.admin.as(t.Context()), &watchwordv1.RevokeKeyRequest{Kid: key.GetKid()})
				return err
			}
		}
		t.Fatal("no next key")
		return nil
	}
	for i := range 20 {
		if err := withdraw(); err != nil {
			t.Fatalf("withdrawal %d: %v", i, err)
		}
	}
	wants(t, "one more", outcome(withdraw()), "OVERLOADED")
}
