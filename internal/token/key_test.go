package token_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"math/big"
	"strings"
	"testing"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/token/tokentest"
)

func TestKeysRoundTripThroughPKCS8AndJWK(t *testing.T) {
	for _, alg := range algorithms {
		t.Run(string(alg), func(t *testing.T) {
			key := generateKey(t, alg)
			if got := key.Public().Algorithm(); got != alg {
				t.Errorf("got algorithm %s, want %s", got, alg)
			}
			pkcs8, err := key.MarshalPKCS8()
			if err != nil {
				t.Fatal(err)
			}
			again, err := token.ParseSigningKey(pkcs8)
			if err != nil {
				t.Fatal(err)
			}
			public, err := token.FromJWK(key.Public().JWK())
			if err != nil {
				t.Fatal(err)
			}
			if again.Public().KID() != key.Public().KID() || public.KID() != key.Public().KID() {
				t.Error("the decoded keys have another kid")
			}
			if _, err := token.Parse(sign(t, again, typical()), finder(public)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestThumbprint uses the examples of RFC 7638 section 3.1 and RFC 8037 appendix A.3.
func TestThumbprint(t *testing.T) {
	modulus := "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
	n, err := base64.RawURLEncoding.DecodeString(modulus)
	if err != nil {
		t.Fatal(err)
	}
	x, err := base64.RawURLEncoding.DecodeString("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
	if err != nil {
		t.Fatal(err)
	}
	for want, key := range map[string]crypto.PublicKey{
		"NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs": &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537},
		"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k": ed25519.PublicKey(x),
	} {
		got, err := token.NewPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		if got.KID() != want[:16] {
			t.Errorf("kid %s, want %s", got.KID(), want[:16])
		}
	}
}

func TestNewPublicKeyCopiesTheKey(t *testing.T) {
	edKey, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey := &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 2047, 1), E: 65537}
	for _, c := range []struct {
		key   crypto.PublicKey
		spoil func()
	}{
		{edKey, func() { edKey[0] ^= 1 }},
		{rsaKey, func() { rsaKey.N.SetInt64(3) }},
	} {
		got, err := token.NewPublicKey(c.key)
		if err != nil {
			t.Fatal(err)
		}
		before := got.JWK().String()
		c.spoil()
		got.JWK().Alg = "none"
		if got.JWK().String() != before {
			t.Errorf("%T: changing the caller's key or JWK changed the PublicKey", c.key)
		}
	}
}

func TestNewPublicKeyRefuses(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	odd := func(bits int) *big.Int { return new(big.Int).SetBit(big.NewInt(1), bits-1, 1) }
	hugeExponent := math.MaxInt32
	hugeExponent += 2 // negative on a machine of 32 bits
	for name, key := range map[string]crypto.PublicKey{
		"nothing":           nil,
		"secret":            []byte("a secret of thirty-two bytes too"),
		"string":            "key",
		"private key":       ed25519.NewKeyFromSeed(make([]byte, 32)),
		"empty Ed25519":     ed25519.PublicKey(nil),
		"long Ed25519":      make(ed25519.PublicKey, 33),
		"nil ECDSA":         (*ecdsa.PublicKey)(nil),
		"empty ECDSA":       &ecdsa.PublicKey{},
		"P-384":             p384.Public(),
		"nil RSA":           (*rsa.PublicKey)(nil),
		"empty RSA":         &rsa.PublicKey{},
		"short RSA":         &rsa.PublicKey{N: odd(2047), E: 65537},
		"long RSA":          &rsa.PublicKey{N: odd(4097), E: 65537},
		"even RSA":          &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2047), E: 65537},
		"negative RSA":      &rsa.PublicKey{N: new(big.Int).Neg(odd(2048)), E: 65537},
		"exponent 1":        &rsa.PublicKey{N: odd(2048), E: 1},
		"exponent 3":        &rsa.PublicKey{N: odd(2048), E: 3},
		"even exponent":     &rsa.PublicKey{N: odd(2048), E: 65538},
		"huge exponent":     &rsa.PublicKey{N: odd(2048), E: hugeExponent},
		"negative exponent": &rsa.PublicKey{N: odd(2048), E: -65537},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := token.NewPublicKey(key); err == nil || got != nil {
				t.Errorf("NewPublicKey returned %v and error %v, want an error", got, err)
			}
		})
	}
}

// TestEd25519Points gives NewPublicKey all points of small order, encodings that are not
// canonical, and a y off the curve.
func TestEd25519Points(t *testing.T) {
	for name, encoded := range map[string]string{
		"order 1":                  "0100000000000000000000000000000000000000000000000000000000000000",
		"order 2":                  "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"order 4":                  "0000000000000000000000000000000000000000000000000000000000000000",
		"order 4, other":           "0000000000000000000000000000000000000000000000000000000000000080",
		"order 8":                  "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"order 8, other sign":      "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
		"order 8, other y":         "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"order 8, both":            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
		"zero with a sign":         "0100000000000000000000000000000000000000000000000000000000000080",
		"y of p":                   "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"y of p + 1":               "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"y of p + 3, on the curve": "f0ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"y of 2, off the curve":    "0200000000000000000000000000000000000000000000000000000000000000",
	} {
		key, err := hex.DecodeString(encoded)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := token.NewPublicKey(ed25519.PublicKey(key)); err == nil {
			t.Errorf("%s: NewPublicKey accepted the key", name)
		}
	}
	for range 50 {
		key, _, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := token.NewPublicKey(key); err != nil {
			t.Errorf("%x: %v", key, err)
		}
	}
}

func TestFromJWKRefuses(t *testing.T) {
	suite := tokentest.Load(t)
	ed, ec, rsaKey := suite.Keys[0], suite.Keys[1], suite.Keys[2]
	type change func(*watchwordv1.JsonWebKey)
	check := func(name string, key tokentest.Key, spoil change) {
		t.Run(key.JWK.GetAlg()+" "+name, func(t *testing.T) {
			good, err := token.FromJWK(key.JWK)
			if err != nil {
				t.Fatal(err)
			}
			jwk := good.JWK()
			spoil(jwk)
			if got, err := token.FromJWK(jwk); err == nil || got != nil {
				t.Errorf("FromJWK accepted %v", jwk)
			}
		})
	}
	for i, key := range suite.Keys {
		other := suite.Keys[(i+1)%3].JWK
		check("no kty", key, func(j *watchwordv1.JsonWebKey) { j.Kty = "" })
		check("other kty", key, func(j *watchwordv1.JsonWebKey) { j.Kty = other.GetKty() })
		check("kty oct", key, func(j *watchwordv1.JsonWebKey) { j.Kty = "oct" })
		check("other crv", key, func(j *watchwordv1.JsonWebKey) { j.Crv = "P-384" })
		check("no alg", key, func(j *watchwordv1.JsonWebKey) { j.Alg = "" })
		check("other alg", key, func(j *watchwordv1.JsonWebKey) { j.Alg = other.GetAlg() })
		check("alg none", key, func(j *watchwordv1.JsonWebKey) { j.Alg = "none" })
		check("use enc", key, func(j *watchwordv1.JsonWebKey) { j.Use = "enc" })
		check("no kid", key, func(j *watchwordv1.JsonWebKey) { j.Kid = "" })
		check("other kid", key, func(j *watchwordv1.JsonWebKey) { j.Kid = other.GetKid() })
		check("short kid", key, func(j *watchwordv1.JsonWebKey) { j.Kid = j.Kid[:15] })
	}
	check("no x", ed, func(j *watchwordv1.JsonWebKey) { j.X = "" })
	check("padded x", ed, func(j *watchwordv1.JsonWebKey) { j.X += "=" })
	check("left-over bits", ed, func(j *watchwordv1.JsonWebKey) { j.X = leftOver(j.X) })
	check("line break", ed, func(j *watchwordv1.JsonWebKey) { j.X += "\n" })
	check("long x", ed, func(j *watchwordv1.JsonWebKey) { j.X += "AAAA" })
	check("an n as well", ed, func(j *watchwordv1.JsonWebKey) { j.N = "AQAB" })
	check("other point", ed, func(j *watchwordv1.JsonWebKey) { j.X = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" })
	check("off the curve", ec, func(j *watchwordv1.JsonWebKey) { j.Y = j.X })
	check("no y", ec, func(j *watchwordv1.JsonWebKey) { j.Y = "" })
	check("bad y", ec, func(j *watchwordv1.JsonWebKey) { j.Y = "!" })
	check("coordinates of 31 and 33 bytes", ec, moveByte)
	check("leading zero", ec, func(j *watchwordv1.JsonWebKey) { j.X = encode(append([]byte{0}, decode(j.X)...)) })
	check("leading zero", rsaKey, func(j *watchwordv1.JsonWebKey) { j.N = encode(append([]byte{0}, decode(j.N)...)) })
	check("leading zero in e", rsaKey, func(j *watchwordv1.JsonWebKey) { j.E = encode([]byte{0, 1, 0, 1}) })
	check("short e", rsaKey, func(j *watchwordv1.JsonWebKey) { j.E = "Aw" })
	check("long e", rsaKey, func(j *watchwordv1.JsonWebKey) { j.E = encode([]byte{1, 0, 0, 0, 1}) })
	check("bad e", rsaKey, func(j *watchwordv1.JsonWebKey) { j.E = "?" })
	check("bad n", rsaKey, func(j *watchwordv1.JsonWebKey) { j.N = "A" })
	check("enormous n", rsaKey, func(j *watchwordv1.JsonWebKey) { j.N = strings.Repeat("A", 1<<20) })
	if _, err := token.FromJWK(nil); err == nil {
		t.Error("FromJWK accepted nil")
	}
}

// moveByte moves the last byte of x to the front of y: together, x and y still encode
// the same point.
func moveByte(j *watchwordv1.JsonWebKey) {
	x, y := decode(j.X), decode(j.Y)
	j.X, j.Y = encode(x[:31]), encode(append([]byte{x[31]}, y...))
}

func decode(s string) []byte {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

func TestFromJWKWithoutUse(t *testing.T) {
	jwk := tokentest.Load(t).Keys[0].JWK
	jwk.Use = ""
	got, err := token.FromJWK(jwk)
	if err != nil {
		t.Fatal(err)
	}
	if use := got.JWK().GetUse(); use != "sig" {
		t.Errorf("got use %q, want sig", use)
	}
}

func TestParseSigningKeyRefuses(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	inputs := [][]byte{nil, {}, []byte("-----BEGIN PRIVATE KEY-----")}
	for _, key := range []any{weak, p384} {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		inputs = append(inputs, der, der[:len(der)-1])
	}
	for _, input := range inputs {
		if got, err := token.ParseSigningKey(input); err == nil || got != nil {
			t.Errorf("%.20x…: ParseSigningKey returned %v and error %v, want an error", input, got, err)
		}
	}
	if _, err := token.GenerateKey("none"); err == nil {
		t.Error("GenerateKey accepted the algorithm none")
	}
	if _, err := new(token.SigningKey).MarshalPKCS8(); err == nil || new(token.SigningKey).Public() != nil {
		t.Error("the zero SigningKey has a private or a public key")
	}
}

// TestSigningKeyRedactsItself prints a key in many ways, as a mistake in a log call
// might. The output must not contain the key's last bytes in any encoding.
func TestSigningKeyRedactsItself(t *testing.T) {
	suite := tokentest.Load(t)
	for _, k := range suite.Keys {
		key, err := token.ParseSigningKey(k.PKCS8)
		if err != nil {
			t.Fatal(err)
		}
		text := prints(t, key)
		if !strings.Contains(text, key.Public().KID()) {
			t.Errorf("the output lacks the key's id: %s", text)
		}
		tail := k.PKCS8[len(k.PKCS8)-12:]
		decimal := strings.Trim(fmt.Sprint(tail), "[]")
		for _, secret := range []string{
			string(tail), decimal, strings.ReplaceAll(decimal, " ", ", "), strings.ReplaceAll(decimal, " ", ","),
			hex.EncodeToString(tail), strings.ToUpper(hex.EncodeToString(tail)),
			encode(tail), base64.StdEncoding.EncodeToString(tail), "PrivateKey", "0x",
		} {
			if strings.Contains(text, secret) {
				t.Errorf("the output of the %s key contains %q: %s", k.JWK.GetAlg(), secret, text)
			}
		}
	}
}

func prints(t *testing.T, key *token.SigningKey) string {
	t.Helper()
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb+"\n", key)
		fmt.Fprintf(&out, verb+"\n", *key)
		fmt.Fprintf(&out, verb+"\n", []any{key, *key})
		fmt.Fprintf(&out, verb+"\n", struct{ Key any }{*key})
	}
	for _, v := range []any{key, *key, map[string]any{"key": key}} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("key", "pointer", key, "value", *key, "group", slog.GroupValue(slog.Any("in", key)))
	}
	fmt.Fprint(&out, token.SigningKey{}, new(token.SigningKey))
	return out.String()
}

// TestSigningKeyInUnexportedField prints a struct with a key in an unexported field: fmt
// calls no methods there.
func TestSigningKeyInUnexportedField(t *testing.T) {
	k := tokentest.Load(t).Keys[0]
	key, err := token.ParseSigningKey(k.PKCS8)
	if err != nil {
		t.Fatal(err)
	}
	seed := strings.Trim(fmt.Sprint(k.PKCS8[len(k.PKCS8)-8:]), "[]")
	text := fmt.Sprintf("%v %+v", struct{ key token.SigningKey }{*key}, struct{ key *token.SigningKey }{key})
	if strings.Contains(text, seed) {
		t.Errorf("the output contains bytes of the key: %s", text)
	}
}
