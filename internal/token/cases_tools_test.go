package token_test

import (
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"math/big"
	"slices"
	"strconv"
	"strings"
)

// tools adds what the usual attack tools try (jwt_tool and its like), beyond the cases above.
func (c *cases) tools() {
	c.toolsAlgorithms()
	c.toolsKeys()
	c.toolsSignatures()
	c.toolsNesting()
}

// toolsAlgorithms adds every spelling of none, and the other HMACs with a public key.
func (c *cases) toolsAlgorithms() {
	for n := range 16 {
		name := []byte("none")
		for i := range name {
			if n&(1<<i) != 0 {
				name[i] -= 'a' - 'A'
			}
		}
		header := c.ed.header().with("alg", quote(string(name)))
		c.invalid("spelling "+string(name)+", no signature", encode(header.String())+"."+encode(claims().String())+".")
		c.invalid("spelling "+string(name)+", the old signature", encode(header.String())+"."+encode(claims().String())+"."+encode(c.ed.sign(encode(c.ed.header().String())+"."+encode(claims().String()))))
	}
	for _, alg := range []string{"none ", " none", "none\x00", "n\u043ene", "HS256 ", "hs256"} {
		c.invalid("alg "+strconv.QuoteToASCII(alg), encode(c.ed.header().with("alg", quote(alg)).String())+"."+encode(claims().String())+".")
	}
	for _, s := range []jwsSigner{c.ed, c.ec, c.rsa} {
		for _, form := range publicForms(s) {
			for _, mac := range []struct {
				alg string
				new func() hash.Hash
			}{{"HS384", sha512.New384}, {"HS512", sha512.New}} {
				c.invalid(mac.alg+" with the "+s.alg+" key as "+form.name, hmacSigned(mac.new, mac.alg, s.header(), []byte(form.value)))
			}
			// The alg is the one that the verifier expects, but the signature is an HMAC.
			c.invalid("HMAC under alg "+s.alg+" with the key as "+form.name, hmacSigned(sha256.New, s.alg, s.header(), []byte(form.value)))
		}
	}
}

// hmacSigned returns a token with an HMAC as signature.
func hmacSigned(h func() hash.Hash, alg string, header object, secret []byte) string {
	input := encode(header.with("alg", quote(alg)).String()) + "." + encode(claims().String())
	mac := hmac.New(h, secret)
	mac.Write([]byte(input))
	return input + "." + encode(mac.Sum(nil))
}

// toolsKeys adds a kid that a naive verifier reads as a path, as SQL, as a command or as an
// address, signed by the secret that the naive verifier would find there.
func (c *cases) toolsKeys() {
	for _, kid := range []struct{ name, secret string }{
		{"/dev/null", ""}, {"../../../../../../dev/null", ""}, {"..\\..\\nul", ""}, {"/proc/sys/kernel/randomize_va_space", "2"},
		{"file:///dev/null", ""}, {"/dev/null\x00" + c.ed.kid, ""}, {c.ed.kid + "/../../dev/null", ""},
		{"' UNION SELECT 'attacker' -- ", "attacker"}, {"x' UNION SELECT 'attacker", "attacker"}, {c.ed.kid + "' OR '1'='1", ""},
		{"|sleep 10", ""}, {"$(sleep 10)", ""}, {"`id`", ""}, {"; id #", ""},
		{"https://evil.example/key", "attacker"}, {"{{7*7}}", ""}, {"${jndi:ldap://evil.example/a}", ""}, {c.ed.kid + "\n" + c.ec.kid, ""},
		{strings.Repeat("A", 4000), ""},
	} {
		label := strings.ReplaceAll(strings.ReplaceAll(strconv.QuoteToASCII(kid.name), c.ed.kid, "KID"), c.ec.kid, "OTHER")
		if len(label) > 60 {
			label = label[:60] + "…"
		}
		header := c.ed.header().with("kid", quote(kid.name))
		c.invalid("kid "+label+", HS256", hmacSigned(sha256.New, "HS256", header, []byte(kid.secret)))
		c.invalid("kid "+label+", our signature", c.ed.jws(header, claims()))
	}
	// The header has a key or the address of a key, also together with a kid of the issuer.
	jwk := c.attacker.publicJWK()
	for _, m := range []struct{ name, value string }{
		{"jwk", jwk}, {"jwk", "{}"}, {"jwk", "null"}, {"jwk", quote(jwk)}, {"jwks", `{"keys":[` + jwk + `]}`},
		{"jku", `"http://127.0.0.1:1/jwks.json"`}, {"jku", `"file:///etc/passwd"`}, {"jku", quote(issuer + "@evil.example/")}, {"jku", `["https://evil.example"]`},
		{"x5u", `"https://evil.example/cert.pem"`}, {"x5c", `["MIIB","MIIC"]`}, {"x5c", `"MIIB"`},
	} {
		c.invalid("attacker's key by "+m.name+" "+strings.ReplaceAll(m.value, jwk, "JWK"), c.attacker.jws(c.attacker.header().and(m.name, m.value), claims()))
	}
}

// toolsSignatures adds ECDSA signatures of special numbers (the psychic signature of
// CVE-2022-21449 and its like), and signatures that are words.
func (c *cases) toolsSignatures() {
	order := elliptic.P256().Params().N
	number := func(n *big.Int) []byte { return n.FillBytes(make([]byte, 32)) }
	numbers := []struct {
		name  string
		value []byte
	}{
		{"0", number(new(big.Int))}, {"1", number(big.NewInt(1))}, {"n-1", number(new(big.Int).Sub(order, big.NewInt(1)))},
		{"n", number(order)}, {"n+1", number(new(big.Int).Add(order, big.NewInt(1)))}, {"p", number(elliptic.P256().Params().P)},
	}
	input := encode(c.ec.header().String()) + "." + encode(claims().String())
	for _, r := range numbers {
		for _, s := range numbers {
			c.invalid("ES256 signature r "+r.name+", s "+s.name, input+"."+encode(slices.Concat(r.value, s.value)))
		}
	}
	c.invalid("ES256 signature of zeros in DER", input+"."+encode([]byte{0x30, 6, 2, 1, 0, 2, 1, 0}))
	for _, s := range []jwsSigner{c.ed, c.ec, c.rsa} {
		input := encode(s.header().String()) + "." + encode(claims().String())
		for _, word := range []string{"null", "undefined", "none", "0", "AA", "AAAA", "e30"} {
			c.invalid(s.alg+" signature "+word, input+"."+word)
		}
	}
	// The identity point and a point of small order as R, with S of zero.
	for n, r := range [][]byte{{0: 1, 31: 0}, make([]byte, 32), {0: 1, 31: 0x80}, slices.Repeat([]byte{0xff}, 32)} {
		input := encode(c.ed.header().String()) + "." + encode(claims().String())
		c.invalid(fmt.Sprintf("EdDSA signature of a special point %d", n), input+"."+encode(append(slices.Clone(r), make([]byte, 32)...)))
	}
}

// toolsNesting adds tokens in other tokens, other kinds of JOSE objects, and claims that are
// meant for a parser's confusion.
func (c *cases) toolsNesting() {
	good := c.ed.mint(claims())
	header := c.ed.header()
	c.invalid("nested JWT", c.ed.text(header.and("cty", `"JWT"`).String(), good))
	c.invalid("nested JWT, quoted", c.ed.text(header.and("cty", `"JWT"`).String(), quote(good)))
	c.invalid("nested JWT in a nested JWT", c.ed.text(header.String(), c.ed.text(header.String(), good)))
	c.invalid("nested JWT of the attacker around ours", c.attacker.text(header.and("cty", `"JWT"`).String(), good))
	c.invalid("claims as an attacker's token", c.ed.text(header.String(), c.attacker.mint(claims())))
	for _, m := range []object{
		{{"enc", `"A256GCM"`}, {"alg", `"dir"`}}, {{"alg", `"RSA-OAEP"`}, {"enc", `"A128CBC-HS256"`}}, {{"alg", `"PBES2-HS256+A128KW"`}, {"p2c", "2000000000"}, {"p2s", `"AA"`}, {"enc", `"A128GCM"`}},
	} {
		jwe := append(m, header.without("alg")...)
		c.invalid("JWE "+m[0].name+" "+m[0].value, encode(jwe.String())+".."+encode("iv")+"."+encode(claims().String())+"."+encode("tag"))
		c.invalid("JWE header "+m[0].value+" in a JWS", c.ed.jws(jwe, claims()))
	}
	for _, name := range []string{"__proto__", "constructor"} {
		c.invalid("roles by "+name, c.ed.mint(claims().without("roles").and(name, `{"roles":["admin"]}`)))
	}
	for _, claim := range claims() {
		missing := c.invalid
		if claim.name == "sid" { // the token is one of a service account
			missing = c.ok
		}
		missing("claim "+claim.name+" nested", c.ed.mint(claims().without(claim.name).and("claims", "{"+quote(claim.name)+":"+claim.value+"}")))
		missing("claim "+claim.name+" in the header alone", c.ed.jws(header.and(claim.name, claim.value), claims().without(claim.name)))
		c.invalid("claim "+claim.name+" with another value first", c.ed.mint(append(object{{claim.name, "0"}}, claims()...)))
		c.invalid("claim "+claim.name+" with another value last", c.ed.mint(claims().and(claim.name, "0")))
		missing("claim "+claim.name+" with a blank in the name", c.ed.mint(claims().without(claim.name).and(claim.name+" ", claim.value)))
	}
	for _, value := range []string{"NaN", "-Infinity", "1e999", "-1e999", "1E400", "9e99999999", "-9223372036854775808", "9007199254740993", "00", "1_000", "0b1", "\u0661", "1.", ".5", "- 1"} {
		for _, name := range []string{"exp", "iat", "ver"} {
			c.invalid("number "+strconv.QuoteToASCII(value)+" as "+name, c.ed.mint(claims().with(name, value)))
		}
	}
	// The margin of the suite's verifiers is five minutes, and their time is at 60.
	c.ok("issued within the margin", c.ed.mint(claims().with("iat", at(355)).with("exp", at(600))))
	c.refused("issued after the margin", c.ed.mint(claims().with("iat", at(366)).with("exp", at(600))), tokenInvalid)
	c.refused("issued in a century", c.ed.mint(claims().with("iat", at(3155760000)).with("exp", at(3155760100))), tokenInvalid)
	c.refused("issued at the end of time", c.ed.mint(claims().with("iat", "253402300700").with("exp", "253402300799")), tokenInvalid)
	c.refused("issued after the margin, for another audience", c.ed.mint(claims().with("iat", at(366)).with("exp", at(600)).with("aud", `["billing"]`)), "AUDIENCE_MISMATCH")
}
