package server_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// jsonObject is a header or claims. A nil value removes a member from another object.
type jsonObject map[string]any

func (o jsonObject) with(other jsonObject) jsonObject {
	all := maps.Clone(o)
	maps.Copy(all, other)
	maps.DeleteFunc(all, func(_ string, value any) bool { return value == nil })
	return all
}

// foreign is a platform that issues tokens, with one key for each kid.
type foreign struct {
	name, iss string
	keys      map[string]crypto.Signer
	algs      map[string]string // the algorithm of each key
}

var foreignKeys = map[string]crypto.Signer{} // a key for each algorithm, made once: RSA keys take long to make

func foreignKey(t testing.TB, alg string) crypto.Signer {
	t.Helper()
	if key := foreignKeys[alg]; key != nil {
		return key
	}
	key, err := newForeignKey(alg)
	if err != nil {
		t.Fatal(err)
	}
	foreignKeys[alg] = key
	return key
}

func newForeignKey(alg string) (crypto.Signer, error) {
	switch alg {
	case "EdDSA":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case "ES256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ES384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	}
	return rsa.GenerateKey(rand.Reader, 2048)
}

// newForeign returns a platform with a key for each algorithm, whose kid is the name of the
// algorithm.
func newForeign(t testing.TB, name, iss string, algs ...string) *foreign {
	f := &foreign{name: name, iss: iss, keys: map[string]crypto.Signer{}, algs: map[string]string{}}
	for _, alg := range algs {
		f.keys[alg], f.algs[alg] = foreignKey(t, alg), alg
	}
	return f
}

func (f *foreign) jwks(t testing.TB) string {
	t.Helper()
	set := jose.JSONWebKeySet{}
	for kid, key := range f.keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: key.Public(), KeyID: kid, Algorithm: f.algs[kid], Use: "sig"})
	}
	text, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// claims are those of a good assertion for a server, now.
func (f *foreign) claims(audience, subject string) jsonObject {
	now := time.Now().Unix()
	return jsonObject{"iss": f.iss, "sub": subject, "aud": audience, "iat": now, "exp": now + 600}
}

// sign signs claims by the key with a kid.
func (f *foreign) sign(t testing.TB, kid string, claims jsonObject) string {
	t.Helper()
	return compact(t, f.keys[kid], f.algs[kid], jsonObject{"alg": f.algs[kid], "kid": kid, "typ": "JWT"}, claims)
}

// compact signs any header and claims. For the algorithm none, the signature is empty.
func compact(t testing.TB, key any, alg string, header, claims any) string {
	t.Helper()
	part := func(v any) string {
		text, isText := v.(string)
		if !isText {
			raw, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			text = string(raw)
		}
		return base64.RawURLEncoding.EncodeToString([]byte(text))
	}
	input := part(header) + "." + part(claims)
	signature, err := jwt.GetSigningMethod(alg).Sign(input, key)
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// trustIssuer makes a platform a trusted issuer by its key set.
func (h *harness) trustIssuer(t testing.TB, f *foreign, edits ...func(*store.Issuer)) {
	t.Helper()
	row := &store.Issuer{Name: f.name, Issuer: f.iss, Jwks: f.jwks(t), MaxLifetime: time.Hour, CreatedAt: time.Now(), UpdatedAt: time.Now()}
	for _, edit := range edits {
		edit(row)
	}
	h.behind(t, func(tx *feed.Tx) error { return tx.InsertIssuer(row) })
}

// service makes a service account with roles, and returns the id of the account.
func (h *harness) service(t testing.TB, name string, roles ...string) string {
	t.Helper()
	id := user.NewID()
	h.behind(t, func(tx *feed.Tx) error {
		return tx.InsertUser(&store.User{ID: id, Kind: store.KindService, Username: name, Roles: roles, Version: 1, CreatedAt: tx.Now(), UpdatedAt: tx.Now()})
	})
	return id
}

// bind binds a subject of an issuer, with further claims NAME/NAME=VALUE, to an account.
func (h *harness) bind(t testing.TB, issuer, subject, account string, claims ...string) {
	t.Helper()
	row := &store.Binding{ID: user.NewID(), Issuer: issuer, Subject: subject, UserID: account, CreatedAt: time.Now()}
	for _, c := range claims {
		path, value, _ := strings.Cut(c, "=")
		row.Claims = append(row.Claims, store.BoundClaim{Path: strings.Split(path, "/"), Value: value})
	}
	h.behind(t, func(tx *feed.Tx) error { return tx.InsertBinding(row) })
}

// exchange exchanges an assertion, and returns the outcome.
func (h *harness) exchange(t testing.TB, assertion string, audience ...string) (*watchwordv1.ExchangeTokenResponse, error) {
	t.Helper()
	return h.auth.ExchangeToken(t.Context(), &watchwordv1.ExchangeTokenRequest{SubjectToken: assertion, Audience: audience})
}

// refusedExchanges counts the refused exchanges of the security record, by reason and detail.
func (h *harness) refusedExchanges(t *testing.T) map[string]int64 {
	t.Helper()
	found := map[string]int64{}
	for _, e := range h.events(t, &watchwordv1.ListEventsRequest{Type: "token.exchanged"}) {
		if !e.GetSuccess() {
			found[fmt.Sprint(e.GetReason(), " ", e.GetDetail())] += e.GetCount()
		}
	}
	return found
}
