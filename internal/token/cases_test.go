package token_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/token/tokentest"
)

const tokenInvalid = "TOKEN_INVALID"

// cases collects the cases of the suite.
type cases struct {
	keyring
	list []tokentest.Case
}

func allCases(f keyring) []tokentest.Case {
	c := &cases{keyring: f}
	c.good()
	c.policy()
	c.algorithm()
	c.key()
	c.header()
	c.parts()
	c.encoding()
	c.signature()
	c.json()
	c.missing()
	c.mistyped()
	c.times()
	c.actors()
	c.tools()
	return c.list
}

func (c *cases) ok(name, raw string) {
	c.list = append(c.list, tokentest.Case{Name: name, Token: raw, Want: tokentest.OK, Parse: tokentest.OK})
}

func (c *cases) refused(name, raw, reason string) {
	c.list = append(c.list, tokentest.Case{Name: name, Token: raw, Want: reason, Parse: tokentest.OK})
}

func (c *cases) invalid(name, raw string) {
	c.list = append(c.list, tokentest.Case{Name: name, Token: raw, Want: tokenInvalid, Parse: tokentest.Invalid})
}

func at(seconds int64) string { return strconv.FormatInt(issued+seconds, 10) }

func (c *cases) good() {
	for _, s := range []jwsSigner{c.ed, c.ec, c.rsa} {
		c.ok(s.alg, s.mint(claims()))
		c.ok(s.alg+", type with prefix", s.jws(s.header().with("typ", `"application/at+jwt"`), claims()))
	}
	mint := c.ed.mint
	c.ok("type in capitals", c.ed.jws(c.ed.header().with("typ", `"AT+JWT"`), claims()))
	c.ok("two audiences", mint(claims().with("aud", `["internal","billing"]`)))
	c.ok("two audiences, ours last", mint(claims().with("aud", `["billing","internal"]`)))
	c.ok("audience as a string", mint(claims().with("aud", `"internal"`)))
	c.ok("no roles", mint(claims().with("roles", `[]`)))
	c.ok("one role", mint(claims().with("roles", `["viewer"]`)))
	c.ok("version 0", mint(claims().with("ver", `0`)))
	c.ok("largest version", mint(claims().with("ver", `9007199254740991`)))
	c.ok("username beyond ASCII", mint(claims().with("username", `"zoë-漢字-🙂"`)))
	c.ok("username in escapes", mint(claims().with("username", `"\u0061l\u0069ce\ud83d\ude42\/\""`)))
	c.ok("claim's name in escapes", c.ed.text(c.ed.header().String(), strings.Replace(claims().String(), `"sub"`, `"\u0073ub"`, 1)))
	c.ok("unknown claim", mint(claims().and("note", `{"a":[1,2,{"b":null}],"exp":"x"}`)))
	c.ok("claim that differs in case", mint(claims().and("ISS", `"https://evil.example"`)))
	c.ok("unknown header parameter", c.ed.jws(c.ed.header().and("x5t", `"abc"`), claims()))
	c.ok("white space in JSON", c.ed.text(" \t\r\n"+c.ed.header().String()+"\n", "\n"+claims().String()+" "))
	c.ok("claims in another order", mint(reversed(claims())))
	c.ok("last second", mint(claims().with("iat", at(-239)).with("exp", at(61))))
	c.ok("short life", mint(claims().with("exp", at(90))))
	c.ok("longest token", longest(c.ed, token.MaxLength))
}

func reversed(o object) object {
	o = slices.Clone(o)
	slices.Reverse(o)
	return o
}

// longest returns a token of at most length bytes, padded as far as base64 allows.
func longest(s jwsSigner, length int) string {
	pad := length * 3 / 4
	for {
		raw := s.mint(claims().and("pad", quote(strings.Repeat("x", pad))))
		if len(raw) <= length {
			return raw
		}
		pad -= max(1, (len(raw)-length)*3/4)
	}
}

// policy adds well-formed tokens with a claim that a verifier must refuse.
func (c *cases) policy() {
	mint := c.ed.mint
	past := claims().with("iat", at(-600)).with("exp", at(-300))
	c.refused("another issuer", mint(claims().with("iss", `"https://evil.example"`)), tokenInvalid)
	c.refused("issuer with a slash", mint(claims().with("iss", quote(issuer+"/"))), tokenInvalid)
	c.refused("issuer in capitals", mint(claims().with("iss", quote(strings.ToUpper(issuer)))), tokenInvalid)
	c.refused("issuer with a space", mint(claims().with("iss", quote(issuer+" "))), tokenInvalid)
	c.refused("issuer as a prefix", mint(claims().with("iss", quote(issuer+".evil.example"))), tokenInvalid)
	c.refused("another issuer, expired", mint(past.with("iss", `"https://evil.example"`)), tokenInvalid)
	c.refused("another audience", mint(claims().with("aud", `["billing"]`)), "AUDIENCE_MISMATCH")
	c.refused("another audience as a string", mint(claims().with("aud", `"billing"`)), "AUDIENCE_MISMATCH")
	c.refused("audience as a prefix", mint(claims().with("aud", `["internal-tools","intern"]`)), "AUDIENCE_MISMATCH")
	c.refused("audience in capitals", mint(claims().with("aud", `["INTERNAL"]`)), "AUDIENCE_MISMATCH")
	c.refused("another audience, expired", mint(past.with("aud", `["billing"]`)), "AUDIENCE_MISMATCH")
	c.refused("expired", mint(past), "TOKEN_EXPIRED")
	c.refused("expired this very second", mint(claims().with("iat", at(-240)).with("exp", at(60))), "TOKEN_EXPIRED")
	c.refused("expired long ago", mint(claims().with("iat", "1").with("exp", "2")), "TOKEN_EXPIRED")
	c.refused("life too long by a second", mint(claims().with("exp", at(301))), tokenInvalid)
	c.refused("life of a century", mint(claims().with("exp", at(3155760000))), tokenInvalid)
	c.refused("life to the end of time", mint(claims().with("exp", "253402300799")), tokenInvalid)
}

// algorithm adds attacks on the choice of the algorithm (RFC 8725 sections 2.1, 3.1).
func (c *cases) algorithm() {
	for _, alg := range []string{"none", "None", "NONE", "nOnE", ""} {
		header := c.ed.header().with("alg", quote(alg))
		c.invalid("alg "+quote(alg)+", no signature", encode(header.String())+"."+encode(claims().String())+".")
		c.invalid("alg "+quote(alg)+", a good signature", c.ed.jws(header, claims()))
	}
	for _, s := range []jwsSigner{c.ed, c.ec, c.rsa} {
		for _, form := range publicForms(s) {
			c.invalid("HS256 with the "+s.alg+" key as "+form.name, c.hs256(s, []byte(form.value)))
		}
	}
	c.invalid("HS256 with an empty secret", c.hs256(c.ed, nil))
	for _, s := range []jwsSigner{c.ed, c.ec, c.rsa} {
		for _, alg := range []string{"EdDSA", "ES256", "RS256"} {
			if alg != s.alg {
				c.invalid(alg+" with an "+s.alg+" key", s.jws(s.header().with("alg", quote(alg)), claims()))
			}
		}
	}
	c.invalid("ES256 signature under an EdDSA kid", c.ec.jws(c.ec.header().with("kid", quote(c.ed.kid)), claims()))
	c.invalid("EdDSA signature under an ES256 kid", c.ed.jws(c.ed.header().with("kid", quote(c.ec.kid)), claims()))
	for _, alg := range []string{`"PS256"`, `"RS384"`, `"RS512"`} {
		c.invalid("alg "+alg, c.rsa.jws(c.rsa.header().with("alg", alg), claims()))
	}
	for _, alg := range []string{`"eddsa"`, `"EDDSA"`, `"Ed25519"`, `"EdDSA "`, `"EdDSA\u0000"`, `null`, `1`, `["EdDSA"]`, `{}`, `true`} {
		c.invalid("alg "+alg, c.ed.jws(c.ed.header().with("alg", alg), claims()))
	}
	c.invalid("no alg", c.ed.jws(c.ed.header().without("alg"), claims()))
	c.invalid("alg in capitals", c.ed.jws(c.ed.header().without("alg").and("ALG", `"EdDSA"`), claims()))
}

// publicForms returns the public key in forms that a naive verifier might use as an
// HMAC secret.
func publicForms(s jwsSigner) object {
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		s.t.Fatal(err)
	}
	key, err := token.NewPublicKey(s.key.Public())
	if err != nil {
		s.t.Fatal(err)
	}
	jwk := key.JWK()
	return object{
		{"DER", string(der)},
		{"PEM", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))},
		// The last 32 bytes: for Ed25519 the raw key, for the others the end of a
		// point or of the exponent and modulus.
		{"bytes", string(der[len(der)-32:])},
		{"JWK parameter", jwk.X + jwk.N},
		{"kid", s.kid},
	}
}

func (c *cases) hs256(s jwsSigner, secret []byte) string {
	input := encode(s.header().with("alg", `"HS256"`).String()) + "." + encode(claims().String())
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(input))
	return input + "." + encode(mac.Sum(nil))
}

// key adds attacks on the choice of the key.
func (c *cases) key() {
	header := c.ed.header()
	c.invalid("no kid", c.ed.jws(header.without("kid"), claims()))
	for _, kid := range []string{
		`""`, `null`, `0`, `true`, `{}`, `[]`, `[` + quote(c.ed.kid) + `]`, `"AAAAAAAAAAAAAAAA"`,
		quote(c.ed.kid + " "), quote(c.ed.kid[:15]), quote(strings.ToLower(c.ed.kid) + "x"),
		`"../../../../dev/null"`, `"' OR 1=1 --"`, quote(c.ed.kid + "\x00"),
	} {
		c.invalid("kid "+strings.ReplaceAll(kid, c.ed.kid, "KID"), c.ed.jws(header.with("kid", kid), claims()))
	}
	c.invalid("attacker's key under our kid", c.attacker.mint(claims()))
	c.invalid("attacker's key, no kid", c.attacker.jws(header.without("kid"), claims()))
	jwk := c.attacker.publicJWK()
	c.invalid("attacker's jwk", c.attacker.jws(header.and("jwk", jwk), claims()))
	c.invalid("attacker's jwk, its own kid", c.attacker.jws(header.with("kid", `"attacker"`).and("jwk", jwk), claims()))
	c.invalid("attacker's jwk, no kid", c.attacker.jws(header.without("kid").and("jwk", jwk), claims()))
	for _, name := range []string{"jku", "x5u"} {
		c.invalid("attacker's "+name, c.attacker.jws(header.and(name, `"https://evil.example/jwks.json"`), claims()))
	}
	c.invalid("attacker's x5c", c.attacker.jws(header.and("x5c", `["MIIB"]`), claims()))
	// Signed with a good key, but with a header that our issuer never writes.
	c.invalid("our own jwk", c.ed.jws(header.and("jwk", c.ed.publicJWK()), claims()))
	c.invalid("jku, our signature", c.ed.jws(header.and("jku", quote(issuer+"/.well-known/jwks.json")), claims()))
	c.invalid("x5u null, our signature", c.ed.jws(header.and("x5u", `null`), claims()))
	c.invalid("x5c, our signature", c.ed.jws(header.and("x5c", `[]`), claims()))
}

func (s jwsSigner) publicJWK() string {
	key, err := token.NewPublicKey(s.key.Public())
	if err != nil {
		s.t.Fatal(err)
	}
	j := key.JWK()
	return fmt.Sprintf(`{"kty":%q,"crv":%q,"x":%q,"kid":%q,"alg":"EdDSA","use":"sig"}`, j.Kty, j.Crv, j.X, j.Kid)
}

// header adds well-signed tokens with other faults of the header.
func (c *cases) header() {
	header := c.ed.header()
	c.invalid("no typ", c.ed.jws(header.without("typ"), claims()))
	for _, typ := range []string{
		`"JWT"`, `"jwt"`, `""`, `"at"`, `"rt+jwt"`, `"id+jwt"`, `"at+jwt "`, `" at+jwt"`, `"at+jwt;v=1"`,
		`"text/at+jwt"`, `"application/application/at+jwt"`, `null`, `1`, `["at+jwt"]`, `{}`,
	} {
		c.invalid("typ "+typ, c.ed.jws(header.with("typ", typ), claims()))
	}
	for _, crit := range []string{`[]`, `["exp"]`, `["b64"]`, `["urn:example:unknown"]`, `["alg"]`, `[""]`, `null`, `"exp"`, `{}`} {
		c.invalid("crit "+crit, c.ed.jws(header.and("crit", crit), claims()))
	}
	c.invalid("crit b64, b64 false", c.ed.jws(header.and("b64", "false").and("crit", `["b64"]`), claims()))
	c.invalid("crit b64, b64 true", c.ed.jws(header.and("b64", "true").and("crit", `["b64"]`), claims()))
	c.invalid("b64 false", c.ed.jws(header.and("b64", "false"), claims()))
	c.invalid("crit that names a present parameter", c.ed.jws(header.and("urn:example:a", "1").and("crit", `["urn:example:a"]`), claims()))
	for _, m := range header {
		c.invalid("header with two equal "+m.name, c.ed.jws(header.and(m.name, m.value), claims()))
	}
	c.invalid("header with alg none first", c.ed.jws(append(object{{"alg", `"none"`}}, header...), claims()))
	c.invalid("header with alg none last", c.ed.jws(header.and("alg", `"none"`), claims()))
	c.invalid("header with typ JWT first", c.ed.jws(append(object{{"typ", `"JWT"`}}, header...), claims()))
	c.invalid("header with an escaped second alg", c.ed.text(strings.TrimSuffix(header.String(), "}")+`,"\u0061lg":"none"}`, claims().String()))
	c.invalid("header with two equal unknown parameters", c.ed.jws(header.and("x", "1").and("x", "1"), claims()))
	for _, text := range []string{"", "null", "true", "1", `"EdDSA"`, "[]", "{}", "{", "}", "[" + header.String() + "]",
		header.String() + "{}", header.String() + "x", header.String() + "\x00", header.String() + ",", "\ufeff" + header.String(),
		strings.Replace(header.String(), "}", ",}", 1), strings.ReplaceAll(header.String(), `"`, `'`),
		header.and("x", `"`+"\xff"+`"`).String(),
	} {
		name := strings.ReplaceAll(strings.ReplaceAll(strconv.QuoteToASCII(text), c.ed.kid, "KID"), `\"`, `"`)
		c.invalid("header text "+name, c.ed.text(text, claims().String()))
	}
}

// parts adds texts of more or fewer than three parts, and texts other than a token.
func (c *cases) parts() {
	good := c.ed.mint(claims())
	p := strings.Split(good, ".")
	c.invalid("one part", p[0])
	c.invalid("two parts", p[0]+"."+p[1])
	c.invalid("four parts", good+"."+p[2])
	c.invalid("four parts, the last empty", good+".")
	c.invalid("four parts, the first empty", "."+good)
	c.invalid("five parts, as a JWE", good+"."+p[1]+"."+p[2])
	c.invalid("empty header", "."+p[1]+"."+p[2])
	c.invalid("empty header, signed", c.ed.raw("", p[1]))
	c.invalid("empty payload", p[0]+".."+p[2])
	c.invalid("empty payload, signed", c.ed.raw(p[0], ""))
	c.invalid("empty signature", p[0]+"."+p[1]+".")
	c.invalid("only dots", "..")
	c.invalid("one dot", ".")
	c.invalid("many dots", strings.Repeat(".", 8000))
	c.invalid("parts in another order", p[1]+"."+p[0]+"."+p[2])
	c.invalid("two tokens", good+good)
	c.invalid("two tokens with a comma", good+","+good)
	c.invalid("scheme in front", "Bearer "+good)
	c.invalid("quoted", `"`+good+`"`)
	c.invalid("JSON serialization", fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, p[0], p[1], p[2]))
	c.invalid("refresh token", "wwr1_AQFiOFh3LTFwTHJTXzRuUWUwAAAAAAAAAAFrRjN4OV9RbS0yQXBYdw")
	c.invalid("some word", "token")
	c.invalid("too long by one", longest(c.ed, token.MaxLength)+"A")
	c.invalid("too long, well signed", longest(c.ed, token.MaxLength+400))
}

// encoding adds tokens in base64 that lax decoders accept. Where a part of the signed
// text is wrong, the signature is over the wrong text.
func (c *cases) encoding() {
	// White space at the end gives every part left-over bits.
	header, payload := padded(c.ed.header().String()), padded(claims().String())
	good := c.ed.raw(encode(header), encode(payload))
	c.ok("base64 with left-over bits of zero", good)
	p := strings.Split(good, ".")
	c.invalid("left-over bits in the header", c.ed.raw(leftOver(p[0]), p[1]))
	c.invalid("left-over bits in the payload", c.ed.raw(p[0], leftOver(p[1])))
	c.invalid("left-over bits in the signature", p[0]+"."+p[1]+"."+leftOver(p[2]))
	for _, pad := range []string{"=", "==", "A", "\n", "\r\n", " ", "\t", "\x00", "%3D", "é"} {
		name := strconv.QuoteToASCII(pad)
		c.invalid("header and "+name, c.ed.raw(p[0]+pad, p[1]))
		c.invalid("payload and "+name, c.ed.raw(p[0], p[1]+pad))
		c.invalid("signature and "+name, good+pad)
	}
	c.invalid("line break within the header", c.ed.raw(p[0][:8]+"\n"+p[0][8:], p[1]))
	c.invalid("line break within the payload", c.ed.raw(p[0], p[1][:8]+"\r\n"+p[1][8:]))
	c.invalid("line break within the signature", p[0]+"."+p[1]+"."+p[2][:8]+"\n"+p[2][8:])
	c.invalid("space in front", " "+good)
	c.invalid("line break in front", "\n"+good)
	std := base64.RawStdEncoding.EncodeToString
	other := claims().with("username", `"~~~???>>>"`).String()
	c.invalid("plain base64", c.ed.raw(p[0], std([]byte(other))))
	c.ok("the same in base64url", c.ed.raw(p[0], encode(other)))
	c.invalid("base64 twice", c.ed.raw(p[0], encode(p[1])))
	c.invalid("no base64", c.ed.raw(c.ed.header().String(), claims().String()))
}

// padded appends spaces until the last character of text's base64 has left-over bits.
func padded(text string) string {
	for len(text)%3 != 1 {
		text += " "
	}
	return text
}

// leftOver sets the lowest left-over bit of the last character.
func leftOver(part string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, part[len(part)-1])
	return part[:len(part)-1] + string(alphabet[last|1])
}
