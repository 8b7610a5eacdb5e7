package federation

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// known reports whether x checks an assertion without checking the signature: another call has
// the turn of the network, and the caller of check does not wait.
func known(t *testing.T, x *Exchanger, raw string) bool {
	t.Helper()
	const from caller.Source = "2001:db8::1"
	leave, err := x.checks.Enter(t.Context(), from.Network())
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	gone, cancel := context.WithCancel(caller.WithSource(t.Context(), from))
	cancel()
	_, err = x.check(gone, raw, new(attempt))
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("the check: %v", err)
	}
	return err == nil
}

// The signature of an assertion is checked once, if the assertion was exchanged, and as long as
// the issuer has the key.
func TestASignatureIsCheckedOnce(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for alg, key := range map[string]crypto.Signer{"ES256": ec, "RS256": rs, "EdDSA": ed} {
		t.Run(alg, func(t *testing.T) { testCheckedOnce(t, alg, key, other) })
	}
}

func testCheckedOnce(t *testing.T, alg string, key, other crypto.Signer) {
	own := func(keys ...members) string { return string(setOf(t, keys...)) }
	mine := jwkOf(t, key.Public()).with(members{"kid": "k", "alg": alg})
	another := jwkOf(t, other.Public()).with(members{"kid": "k", "alg": "EdDSA"})
	w := newWorld(t, storetest.SQLite(t), own(mine))
	w.issuer(t, "ci")
	keys := OpenKeys(w.store, slog.New(slog.DiscardHandler))
	defer keys.Close()
	x := NewExchanger(w.store, keys, nil, w.audit, "https://auth.test")

	now := time.Now()
	of := jwt.NewWithClaims(jwt.GetSigningMethod(alg), jwt.MapClaims{
		"iss": "https://ci", "sub": "job", "aud": "https://auth.test", "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	})
	of.Header["kid"] = "k"
	raw, err := of.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	step := func(what string, want error, wantKnown bool) {
		t.Helper()
		if _, err := x.judgeAndRecord(caller.WithSource(t.Context(), "2001:db8::1"), raw); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
		if got := known(t, x, raw); got != wantKnown {
			t.Errorf("%s: the assertion is known: %v", what, got)
		}
	}
	enable := func(disabled bool, id string) {
		t.Helper()
		if err := w.store.Write(t.Context(), func(tx *store.Tx) error {
			u, err := tx.User(id)
			if err == nil {
				u.Disabled = disabled
				err = tx.UpdateUser(u)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	change := func(jwks string) {
		t.Helper()
		if _, err := w.UpdateIssuer(t.Context(), operator, "ci", Change{Source: &KeySource{Jwks: jwks}}); err != nil {
			t.Fatal(err)
		}
	}

	step("without a binding", ErrUnbound, false)
	id := w.account(t, "job", store.KindService)
	enable(true, id)
	binding := w.bind(t, "ci", "job", id)
	step("of a disabled account", ErrDisabled, false)
	enable(false, id)
	step("exchanged", nil, true)
	if known(t, x, raw[:len(raw)-8]+"AAAAAAAA") {
		t.Error("a forged signature is known")
	}
	change(own(mine, another.with(members{"kid": "next"})))
	step("the same key in another document", nil, true)
	change(own(another))
	step("another key with the same kid", ErrInvalid, false)
	change(own(mine))
	step("the key again", nil, true)
	if err := w.DeleteBinding(t.Context(), operator, binding.ID); err != nil {
		t.Fatal(err)
	}
	step("without a binding again", ErrUnbound, true)
	if err := w.DeleteIssuer(t.Context(), operator, "ci"); err != nil {
		t.Fatal(err)
	}
	step("of a removed issuer", ErrInvalid, false)
}

// The memory for assertions is bounded, and an assertion in use outlasts thousands of others.
func TestSeenIsBounded(t *testing.T) {
	var s seen
	text := func(i int) string { return fmt.Sprintf("%01000d", i) }
	busy := &checked{}
	s.put("busy", busy)
	for i := range 10_000 {
		s.put(text(i), &checked{})
		if s.get("busy") != busy {
			t.Fatalf("the assertion in use is forgotten after %d others", i)
		}
	}
	if n, most := len(s.newer)+len(s.older), 2*seenBytes/busy.size(1000); n > most || n < most/3 {
		t.Errorf("%d assertions of 1000 bytes are remembered, want %d to %d", n, most/3, most)
	}
	if s.get(text(0)) != nil || s.get(text(9999)) == nil {
		t.Error("the oldest assertion is remembered, or the newest is forgotten")
	}
	long := strings.Repeat("a", maxSeenLength+1)
	if s.put(long, busy); s.get(long) != nil {
		t.Error("a long assertion is remembered")
	}
}

// Claims can take far more memory than their text. The server remembers no more memory for an
// assertion with such claims than for other assertions.
func TestSeenIsBoundedInMemory(t *testing.T) {
	for name, claims := range map[string]string{
		"objects":        `{"a":[` + strings.Repeat(`{"":0},`, 400) + `0]}`,
		"nested objects": strings.Repeat(`{"":`, 15) + "0" + strings.Repeat("}", 15),
		"empty objects":  `{"a":[` + strings.Repeat(`{},`, 900) + `0]}`,
		"numbers":        `{"a":[` + strings.Repeat(`0,`, 1400) + `0]}`,
		"short texts":    `{"a":[` + strings.Repeat(`"b",`, 700) + `0]}`,
		"Kubernetes":     `{"aud":["https://auth.test"],"exp":1,"iat":1,"iss":"https://k.test","kubernetes.io":{"namespace":"shop","pod":{"name":"orders-5d4f","uid":"0c"},"serviceaccount":{"name":"orders","uid":"0d"}},"sub":"system:serviceaccount:shop:orders"}`,
	} {
		var s seen
		before := heap()
		for i := range 4000 {
			text := fmt.Sprint(i) + claims
			decoder := json.NewDecoder(strings.NewReader(claims))
			decoder.UseNumber()
			c := &checked{}
			if err := decoder.Decode(&c.claims); err != nil {
				t.Fatal(err)
			}
			s.put(text, c)
		}
		if taken := heap() - before; taken > 2*seenBytes {
			t.Errorf("%s: %d assertions take %d KiB", name, len(s.newer)+len(s.older), taken>>10)
		} else {
			t.Logf("%s: %d assertions take %d KiB", name, len(s.newer)+len(s.older), taken>>10)
		}
		runtime.KeepAlive(&s)
	}
}

// heap returns the memory in use, in bytes.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
