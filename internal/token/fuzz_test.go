package token

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/watchword-auth/watchword/internal/token/tokentest"
)

// FuzzParse gives any bytes to Parse. Parse must not panic. An accepted token must have
// three canonical parts and the key's algorithm, and the claims must stay the same
// after being signed and parsed again.
func FuzzParse(f *testing.F) {
	suite := tokentest.Load(f)
	keys := map[string]*SigningKey{}
	for _, k := range suite.Keys {
		key, err := ParseSigningKey(k.PKCS8)
		if err != nil {
			f.Fatal(err)
		}
		keys[key.Public().KID()] = key
	}
	for _, c := range suite.Cases {
		f.Add(c.Token)
	}
	var asked *SigningKey
	find := func(kid string) *PublicKey {
		asked = keys[kid]
		return asked.Public()
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := Parse(raw, find)
		if err != nil {
			if !errors.Is(err, ErrInvalid) || got != nil {
				t.Fatalf("Parse returned claims %v and error %v", got, err)
			}
			return
		}
		wantCanonical(t, raw, asked.Public())
		again, err := Sign(asked, got)
		if err != nil {
			t.Fatalf("Sign refused the claims of an accepted token: %v", err)
		}
		wantSame(t, got, again, find)
	})
}

func wantCanonical(t *testing.T, raw string, key *PublicKey) {
	t.Helper()
	split := strings.Split(raw, ".")
	if len(split) != 3 || len(raw) > MaxLength {
		t.Fatalf("Parse accepted %d parts, %d bytes", len(split), len(raw))
	}
	for _, part := range split {
		decoded, err := base64.RawURLEncoding.DecodeString(part)
		if err != nil || base64.RawURLEncoding.EncodeToString(decoded) != part {
			t.Fatalf("Parse accepted %q, which is not canonical base64url", part)
		}
	}
	var header struct{ Alg, Kid string }
	text, _ := base64.RawURLEncoding.DecodeString(split[0])
	if err := json.Unmarshal(text, &header); err != nil {
		t.Fatal(err)
	}
	if header.Alg != string(key.Algorithm()) || header.Kid != key.KID() {
		t.Fatalf("Parse accepted a header with alg %s and kid %s", header.Alg, header.Kid)
	}
}

func wantSame(t *testing.T, want *Claims, raw string, find func(string) *PublicKey) {
	t.Helper()
	got, err := Parse(raw, find)
	if err != nil {
		t.Fatalf("Parse refused the claims, signed again: %v", err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("signed again, the claims became %+v, want %+v", got, want)
	}
}

// FuzzClaims gives any bytes to the parser of claims, without a signature: the check of
// the signature would keep a fuzzer's changes away from the claims. encoding/json must
// read the same accepted claims, and the claims must stay the same after being written
// and read again.
func FuzzClaims(f *testing.F) {
	for _, c := range tokentest.Load(f).Cases {
		if p, ok := split(c.Token); ok {
			if payload, err := segments.DecodeString(p.payload); err == nil {
				f.Add(payload)
			}
		}
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		got, err := parts{payload: base64.RawURLEncoding.EncodeToString(payload)}.claims()
		if err != nil {
			if !errors.Is(err, ErrInvalid) || got != nil {
				t.Fatalf("parts.claims returned claims %v and error %v", got, err)
			}
			return
		}
		var other map[string]any
		if err := json.Unmarshal(payload, &other); err != nil {
			t.Fatalf("parts.claims accepted the payload, but encoding/json returned: %v", err)
		}
		sid, _ := other["sid"].(string)
		if other["iss"] != got.Issuer || other["sub"] != got.Subject || sid != got.SessionID || !sameActors(other, got.Actors) ||
			other["exp"] != float64(got.ExpiresAt.Unix()) || other["ver"] != float64(got.Version) {
			t.Fatalf("parts.claims read %+v, encoding/json read %v", got, other)
		}
		written, err := json.Marshal(got.wire())
		if err != nil {
			t.Fatal(err)
		}
		again, err := parts{payload: base64.RawURLEncoding.EncodeToString(written)}.claims()
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Fatalf("written again, the claims became %+v (error %v), want %+v", again, err, got)
		}
	})
}

// sameActors returns whether encoding/json has read the same actors, and nothing else of an
// actor.
func sameActors(claims map[string]any, actors []Actor) bool {
	for _, a := range actors {
		act, ok := claims["act"].(map[string]any)
		if !ok || act["sub"] != a.Subject || act["username"] != a.Username || act["ver"] != float64(a.Version) {
			return false
		}
		inner, known := act["act"], 3
		if inner != nil {
			known++
		}
		if len(act) != known {
			return false
		}
		claims = act
	}
	return claims["act"] == nil
}

// FuzzScanner compares the scanner with json.Valid: both accept the same texts, except those that
// are nested too deep for the scanner.
func FuzzScanner(f *testing.F) {
	for _, text := range []string{
		` [ ] `, `{"a":{},"b":[[],"",{"c":null}]}`, `[true,false,null]`, `"\u00e9\uABcd\n\/\"\\"`, `-0`, `0.10e+1`, `-12E-3`, "\"\x7f\xff\"",
		``, `{`, `[`, `[1`, `[1,]`, `[,1]`, `[1 2]`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{a:1}`, `{1:1}`, `{"a":1 "b":2}`, `[1}`, `{"a":1]`, `1 1`, `]`, `,`, `:`,
		`"`, `"\`, `"\"`, `"\x"`, `"\u00"`, `"\u00g0"`, `"\u 000"`, "\"\t\"", "\"\x00\"", `-`, `+1`, `01`, `-01`, `1.`, `.1`, `1.e1`, `1e`, `1e+`, `1ee1`,
		`tru`, `truee`, `True`, `nul`, "\v1", "\u00a01", strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth),
		strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1), strings.Repeat(`{"a":`, maxDepth+1) + "1" + strings.Repeat("}", maxDepth+1),
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s := scanner{text}
		value, ok := s.value(maxDepth)
		ok = ok && s.ended()
		if want := json.Valid([]byte(text)) && depthOf(text) <= maxDepth; ok != want {
			t.Fatalf("%q: the scanner returned %t, want %t", text, ok, want)
		}
		if ok && value != strings.Trim(text, " \t\r\n") {
			t.Fatalf("%q: the scanner cut %q", text, value)
		}
	})
}

// depthOf returns how deep objects and arrays are nested in valid JSON.
func depthOf(text string) (most int) {
	d, depth := json.NewDecoder(strings.NewReader(text)), 0
	for {
		token, err := d.Token()
		if err != nil { // io.EOF
			return most
		}
		switch token {
		case json.Delim('['), json.Delim('{'):
			depth++
			most = max(most, depth)
		case json.Delim(']'), json.Delim('}'):
			depth--
		}
	}
}

// FuzzObject compares the members from decodeObject with the members from encoding/json.
func FuzzObject(f *testing.F) {
	for _, c := range tokentest.Load(f).Cases {
		if p, ok := split(c.Token); ok {
			for _, part := range []string{p.header, p.payload} {
				if text, err := segments.DecodeString(part); err == nil {
					f.Add(text)
				}
			}
		}
	}
	f.Add([]byte(` { "a" : [ 1 , "]" ] , "\\\"" : { "}" : "\\" } , "c":-1.5e3,"d":null} `))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, ok := decodeObject(base64.RawURLEncoding.EncodeToString(data), nil)
		if !ok {
			return
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal(data, &want); err != nil {
			t.Fatalf("decodeObject accepted the text, but encoding/json returned: %v", err)
		}
		if len(got.members) != len(want) {
			t.Fatalf("decodeObject read %d members, encoding/json read %d", len(got.members), len(want))
		}
		for name, value := range want {
			if got.value(name) != string(value) {
				t.Fatalf("member %q: decodeObject read %q, encoding/json read %q", name, got.value(name), value)
			}
		}
	})
}

// FuzzForeignClaims compares the claims from decodeClaims with those from encoding/json.
func FuzzForeignClaims(f *testing.F) {
	f.Add([]byte(` { "sub" : "a\\u00e9\"" , "aud":["x", [], {"y":{"z":null}}], "exp":1.5e3,"ok":true,"no":false,"":-0} `))
	f.Add([]byte(`{"a":[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, ok := decodeClaims(base64.RawURLEncoding.EncodeToString(data))
		if !ok {
			return
		}
		d := json.NewDecoder(bytes.NewReader(data))
		d.UseNumber()
		var want map[string]any
		if err := d.Decode(&want); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("decodeClaims read %v, encoding/json read %v (%v)", got, want, err)
		}
	})
}

// An object with more than maxMembers members is refused, since each look-up goes through the
// list; one with as many is read.
func TestManyMembers(t *testing.T) {
	for _, n := range []int{maxMembers, maxMembers + 1} {
		var members []string
		for i := range n {
			members = append(members, fmt.Sprintf(`"m%d":%d`, i, i))
		}
		o, ok := decodeObject(base64.RawURLEncoding.EncodeToString([]byte("{"+strings.Join(members, ",")+"}")), nil)
		if ok != (n <= maxMembers) || ok && o.value("m63") != "63" {
			t.Errorf("%d members: %v, %t", n, o, ok)
		}
	}
}
