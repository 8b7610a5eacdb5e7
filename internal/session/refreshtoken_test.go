package session

import (
	"errors"
	"strings"
	"testing"
)

func testMACs() *macs {
	return &macs{keys: map[uint16]*macKey{1: newMACKey([]byte("an old key")), 2: newMACKey([]byte("the newest key"))}, newest: 2}
}

var someGeneration = generation{sessionID: "AAAAAAAAAAAAAAA_", number: 7}

func mustMint(t testing.TB, m *macs, g generation) string {
	t.Helper()
	token, err := m.mint(g)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestRefreshTokenRoundTrip(t *testing.T) {
	m := testMACs()
	token := mustMint(t, m, someGeneration)
	if len(token) != refreshLength || !strings.HasPrefix(token, refreshPrefix) {
		t.Fatalf("token %q has %d characters", token, len(token))
	}
	if got, err := m.parse(token); err != nil || got != someGeneration {
		t.Fatalf("parse = %+v, %v", got, err)
	}
	if again := mustMint(t, m, someGeneration); again != token {
		t.Fatal("the same generation is another token")
	}
	old := &macs{keys: m.keys, newest: 1}
	if _, err := m.parse(mustMint(t, old, someGeneration)); err != nil {
		t.Fatalf("a token of an older key: %v", err)
	}
	if _, err := old.mint(generation{sessionID: "short"}); err == nil {
		t.Fatal("minted for a malformed session id")
	}
}

func TestRefreshTokenTampered(t *testing.T) {
	m := testMACs()
	token := mustMint(t, m, someGeneration)
	hostile := map[string]string{
		"empty": "", "prefix alone": refreshPrefix, "no prefix": token[len(refreshPrefix):], "longer": token + "A",
		"shorter": token[:len(token)-1], "padded": token[:len(token)-1] + "=", "line break": token[:20] + "\n" + token[21:],
		"line break added": token[:20] + "\n" + token[20:], "standard base64": token[:len(token)-1] + "+",
		"other keys":  mustMint(t, &macs{keys: map[uint16]*macKey{2: newMACKey([]byte("a stranger's key"))}, newest: 2}, someGeneration),
		"no such key": mustMint(t, &macs{keys: map[uint16]*macKey{9: newMACKey([]byte("the newest key"))}, newest: 9}, someGeneration),
	}
	for i := range token {
		flipped := []byte(token)
		flipped[i] = 'A' + (flipped[i]+1)%26
		if string(flipped) != token {
			hostile["character "+string(rune('0'+i%10))+"/"+token[i:i+1]+"@"+string(rune(i))] = string(flipped)
		}
	}
	for name, s := range hostile {
		if g, err := m.parse(s); !errors.Is(err, ErrRefreshInvalid) {
			t.Errorf("%s: parsed %q as %+v, %v", name, s, g, err)
		}
	}
}

func FuzzParseRefreshToken(f *testing.F) {
	m := testMACs()
	f.Add(mustMint(f, m, someGeneration))
	f.Add(refreshPrefix + strings.Repeat("A", refreshLength-len(refreshPrefix)))
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		g, err := m.parse(s)
		if err != nil {
			if !errors.Is(err, ErrRefreshInvalid) {
				t.Fatalf("error %v", err)
			}
			return
		}
		// An accepted text must be exactly the text that one of the keys mints for these values.
		for id := range m.keys {
			if mustMint(t, &macs{keys: m.keys, newest: id}, g) == s {
				return
			}
		}
		t.Fatalf("accepted a second form %q of %+v", s, g)
	})
}
