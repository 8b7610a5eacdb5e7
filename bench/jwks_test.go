package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/server"
)

// TestAWithdrawnKeyDiesInLibraries withdraws the key that signs, by RevokeKey. Two libraries with
// a cached JWKS, set up as their documents say, must refuse the withdrawn key from the first token
// on that the unseen key has signed, and must refuse no good token.
func TestAWithdrawnKeyDiesInLibraries(t *testing.T) {
	const maxAge = 2 * time.Second
	w, err := startWatchword("", func(c *server.Config) { c.JWKSMaxAge = maxAge })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	conn, err := grpc.NewClient(w.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	auth := watchwordv1.NewAuthServiceClient(conn)
	login := func() string {
		t.Helper()
		pair, err := w.login(auth, "watchword")
		if err != nil {
			t.Fatal(err)
		}
		return pair.GetAccessToken()
	}

	url := "http://" + w.http + "/.well-known/jwks.json"
	byKeyfunc, err := keyfunc.NewDefaultCtx(t.Context(), []string{url})
	if err != nil {
		t.Fatal(err)
	}
	byOIDC := oidc.NewRemoteKeySet(t.Context(), url)
	libraries := map[string]func(raw string) error{
		"keyfunc": func(raw string) error { _, err := jwt.Parse(raw, byKeyfunc.Keyfunc); return err },
		"go-oidc": func(raw string) error { _, err := byOIDC.VerifySignature(context.Background(), raw); return err },
	}
	good := func(raw, when string) {
		t.Helper()
		for name, verify := range libraries {
			if err := verify(raw); err != nil {
				t.Errorf("%s refuses a good token %s: %v", name, when, err)
			}
		}
	}

	leaked := login()
	good(leaked, "before the withdrawal")
	_, err = watchwordv1.NewKeyServiceClient(conn).RevokeKey(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+leaked),
		&watchwordv1.RevokeKeyRequest{Kid: kidOf(t, leaked)})
	if err != nil {
		t.Fatal(err)
	}
	withdrawn, successor := time.Now(), login()
	good(successor, "after the withdrawal")
	for name, verify := range libraries {
		if verify(leaked) != nil {
			t.Errorf("%s has read the JWKS before the unseen key signs: this test shows nothing", name)
		}
	}
	unseen := login()
	for ; kidOf(t, unseen) == kidOf(t, successor); unseen = login() {
		if time.Since(withdrawn) > time.Minute {
			t.Fatal("the unseen key does not sign")
		}
	}
	good(unseen, "of the unseen key")
	for name, verify := range libraries {
		if verify(leaked) == nil {
			t.Errorf("%s trusts the withdrawn key after a token of the unseen key", name)
		}
	}
	good(unseen, "at the end")
	t.Logf("the unseen key signs %v after the withdrawal", time.Since(withdrawn))
}

// kidOf returns the id of the key that signed a token.
func kidOf(t *testing.T, raw string) string {
	t.Helper()
	encoded, _, _ := strings.Cut(raw, ".")
	header, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		t.Fatal(err)
	}
	var fields struct{ Kid string }
	if err := json.Unmarshal(header, &fields); err != nil {
		t.Fatal(err)
	}
	return fields.Kid
}
