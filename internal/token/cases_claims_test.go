package token_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/watchword-auth/watchword/internal/token"
)

// signature adds tokens with wrong signatures.
func (c *cases) signature() {
	for _, s := range []jwsSigner{c.ed, c.ec, c.rsa} {
		input := encode(s.header().String()) + "." + encode(claims().String())
		good := s.sign(input)
		bad := func(name string, sig []byte) {
			c.invalid(s.alg+" signature "+name, input+"."+encode(sig))
		}
		bad("empty", nil)
		bad("of one byte", []byte{0})
		bad("of zeros", make([]byte, len(good)))
		bad("of ones", slices.Repeat([]byte{0xff}, len(good)))
		bad("short by its last byte", good[:len(good)-1])
		bad("short by its first byte", good[1:])
		bad("cut in half", good[:len(good)/2])
		bad("with a byte after it", append(slices.Clone(good), 0))
		bad("with a byte before it", append([]byte{0}, good...))
		bad("twice", slices.Repeat(good, 2))
		bad("with its first bit flipped", flipped(good, 0))
		bad("with its middle bit flipped", flipped(good, len(good)/2))
		bad("with its last bit flipped", flipped(good, len(good)-1))
		bad("of other claims", s.sign(encode(s.header().String())+"."+encode(claims().with("ver", "1").String())))
		bad("of the payload alone", s.sign(encode(claims().String())))
		other := encode(claims().with("roles", `["admin"]`).String())
		c.invalid(s.alg+" signature under changed claims", encode(s.header().String())+"."+other+"."+encode(good))
	}
	input := encode(c.ec.header().String()) + "." + encode(claims().String())
	c.invalid("ES256 signature in DER", input+"."+encode(c.ec.der(input)))
	wide := c.ec.sign(input)
	wide = slices.Concat(make([]byte, 16), wide[:32], make([]byte, 16), wide[32:])
	c.invalid("ES256 signature of 48-byte halves", input+"."+encode(wide))
	c.invalid("EdDSA signature with S above the order", c.bigS())
}

func flipped(sig []byte, at int) []byte {
	sig = slices.Clone(sig)
	sig[at] ^= 1
	return sig
}

// bigS adds the order of the group to the signature's S. Lax verifiers accept the sum
// (RFC 8032 section 5.1.7).
func (c *cases) bigS() string {
	// 2^252 + 27742317777372353535851937790883648493, the lowest byte first.
	order := [32]byte{
		0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
		31: 0x10,
	}
	input := encode(c.ed.header().String()) + "." + encode(claims().String())
	sig := c.ed.sign(input)
	carry := 0
	for i, b := range order {
		sum := int(sig[32+i]) + int(b) + carry
		sig[32+i], carry = byte(sum), sum>>8
	}
	return input + "." + encode(sig)
}

// json adds well-signed tokens with malformed JSON as payload.
func (c *cases) json() {
	text := claims().String()
	for _, payload := range []string{
		"null", "true", "0", `"x"`, "[]", "{}", "{", "[" + text + "]", text + text, text + "x", text + "\x00", text + " {}",
		"\ufeff" + text, strings.Replace(text, "}", ",}", 1), strings.Replace(text, ":", "", 1), strings.ReplaceAll(text, `"`, `'`),
		"//\n" + text, text[:len(text)-1], strings.Repeat("[", 5000), strings.Repeat(`{"a":`, 1000) + "1" + strings.Repeat("}", 1000),
	} {
		name := strings.ReplaceAll(strconv.QuoteToASCII(payload), `\"`, `"`)
		name = strings.ReplaceAll(name, strings.Trim(text, "{}"), "CLAIMS")
		if len(name) > 60 {
			name = name[:60] + "…"
		}
		c.invalid(fmt.Sprintf("payload text of %d bytes %s", len(payload), name), c.ed.text(c.ed.header().String(), payload))
	}
	for _, claim := range claims() {
		c.invalid("claim "+claim.name+" twice", c.ed.mint(claims().and(claim.name, claim.value)))
	}
	c.invalid("unknown claim twice", c.ed.mint(claims().and("x", "1").and("x", "2")))
	c.invalid("claim sub twice, once in escapes", c.ed.text(c.ed.header().String(), strings.TrimSuffix(text, "}")+`,"\u0073ub":"x"}`))
	c.invalid("another issuer first", c.ed.mint(append(object{{"iss", `"https://evil.example"`}}, claims()...)))
	for _, name := range []string{"iss", "sub", "jti", "sid", "username"} {
		c.invalid("claim "+name+" of invalid UTF-8", c.ed.mint(claims().with(name, `"`+"a\xffb"+`"`)))
		c.invalid("claim "+name+" with a zero byte", c.ed.mint(claims().with(name, `"a\u0000b"`)))
	}
	c.invalid("role with a zero byte", c.ed.mint(claims().with("roles", `["\u0000"]`)))
	c.invalid("audience with a zero byte", c.ed.mint(claims().with("aud", `["internal","a\u0000"]`)))
	c.invalid("role of invalid UTF-8", c.ed.mint(claims().with("roles", `["`+"\xc3"+`"]`)))
	c.invalid("audience of invalid UTF-8", c.ed.mint(claims().with("aud", `["internal","`+"\xed\xa0\x80"+`"]`)))
	c.invalid("unknown claim of invalid UTF-8", c.ed.mint(claims().and("x", `"`+"\xff"+`"`)))
	c.invalid("name of invalid UTF-8", c.ed.text(c.ed.header().String(), strings.TrimSuffix(text, "}")+`,"`+"\xff"+`":1}`))
	c.invalid("half a surrogate pair", c.ed.mint(claims().with("username", `"a\ud800"`)))
	c.invalid("replacement character", c.ed.mint(claims().with("sub", `"a`+"\ufffd"+`"`)))
	c.invalid("control character in a string", c.ed.mint(claims().with("username", "\"a\nb\"")))
}

// missing adds tokens without one of the claims, and tokens with nbf.
func (c *cases) missing() {
	for _, claim := range claims() {
		if claim.name == "sid" { // a service account has no session
			c.ok("claim sid missing", c.ed.mint(claims().without("sid")))
		} else {
			c.invalid("claim "+claim.name+" missing", c.ed.mint(claims().without(claim.name)))
		}
		c.invalid("claim "+claim.name+" null", c.ed.mint(claims().with(claim.name, "null")))
		if upper := strings.ToUpper(claim.name); upper != claim.name && claim.name != "sid" {
			c.invalid("claim "+claim.name+" in capitals", c.ed.mint(claims().without(claim.name).and(upper, claim.value)))
		}
	}
	c.invalid("nbf in the past", c.ed.mint(claims().and("nbf", at(-60))))
	c.invalid("nbf in the future", c.ed.mint(claims().and("nbf", at(3600))))
	c.invalid("nbf null", c.ed.mint(claims().and("nbf", "null")))
}

// mistyped adds tokens with a claim of a wrong type.
func (c *cases) mistyped() {
	c.ok("client_id", c.ed.mint(claims().and("client_id", `"web"`)))
	for _, value := range []string{`""`, "1", "null", `["web"]`, `"a\u0000"`} {
		c.invalid("client_id "+value, c.ed.mint(claims().and("client_id", value)))
	}
	for _, name := range []string{"iss", "sub", "jti", "sid", "username"} {
		for _, value := range []string{`""`, "1", "true", `["x"]`, `{"x":1}`} {
			c.invalid(name+" "+value, c.ed.mint(claims().with(name, value)))
		}
	}
	for _, value := range []string{`""`, "[]", "1", "true", "{}", `{"0":"internal"}`, `[""]`, "[1]", "[null]", `["internal",null]`, `["internal",""]`, `["internal",1]`, `[["internal"]]`} {
		c.invalid("aud "+value, c.ed.mint(claims().with("aud", value)))
	}
	for _, value := range []string{`""`, `"admin"`, `"admin editor"`, "1", "true", "{}", `{"admin":true}`, `[""]`, "[1]", "[null]", `["admin",null]`, `[["admin"]]`} {
		c.invalid("roles "+value, c.ed.mint(claims().with("roles", value)))
	}
	for _, value := range []string{`"1"`, "true", "[]", "{}", "-1", "1.0", "1.5", "1e3", "9007199254740992", "9223372036854775808", "1e300"} {
		c.invalid("ver "+value, c.ed.mint(claims().with("ver", value)))
	}
}

// times adds tokens with malformed times.
func (c *cases) times() {
	for _, name := range []string{"iat", "exp"} {
		for _, value := range []string{
			`""`, quote(at(60)), "true", "[]", "{}", "[" + at(60) + "]",
			"-1", "0", "-0", "-" + at(60), at(60) + ".0", at(60) + ".5", "9.46684860e8", "1e300", "-1e300", "1e-300",
			"253402300800", "9223372036854775807", "9223372036854775808", "-9223372036854775809",
			"18446744073709551616" + strings.Repeat("0", 400), `"2000-01-01T00:01:00Z"`, at(60) + "000", "0x386d4380", "00946684860", "+" + at(60), "NaN", "Infinity",
		} {
			label := value
			if len(label) > 30 {
				label = label[:30] + "…"
			}
			c.invalid(name+" "+label, c.ed.mint(claims().with(name, value)))
		}
	}
	c.invalid("exp at iat", c.ed.mint(claims().with("exp", at(0))))
	c.invalid("exp before iat", c.ed.mint(claims().with("iat", at(3600)).with("exp", at(3599))))
}

// actor returns a good member of the claim act.
func actor() object {
	return object{{"sub", `"S0earchSearchSea1"`}, {"username", `"search"`}, {"ver", "946684000"}}
}

// chain returns the claim act with a number of actors. innermost is the last actor.
func chain(actors int, innermost object) string {
	act := innermost.String()
	for range actors - 1 {
		act = actor().and("act", act).String()
	}
	return act
}

// actors adds tokens with the claim act (RFC 8693 section 4.1), well formed and malformed, with
// one actor and with an actor inside another one.
func (c *cases) actors() {
	good := func(name, raw string) {
		c.ok(name, raw)
		c.list[len(c.list)-1].Delegated = true
	}
	mint := func(act string) string { return c.ed.mint(claims().and("act", act)) }
	for n := 1; n <= token.MaxActors; n++ {
		good(fmt.Sprintf("actors: %d", n), mint(chain(n, actor())))
	}
	good("actor of a service account", c.ed.mint(claims().without("sid").and("act", chain(1, actor()))))
	good("actors with white space", mint(" { \"ver\" : 1 ,\t\"username\":\"a\",\"act\"\n: "+chain(1, actor())+" , \"sub\":\"b\" } "))
	good("actor with a member's name in escapes", mint(strings.Replace(chain(1, actor()), `"sub"`, `"\u0073ub"`, 1)))
	good("the same actor twice", mint(chain(2, actor())))
	good("actor that is the subject", mint(chain(1, actor().with("sub", `"Vg5qT0yZc3RhbmRz"`))))
	c.invalid("actors: 6", mint(chain(6, actor())))
	c.invalid("actors: 100", mint(chain(100, object{})))
	for _, value := range []string{"null", `""`, `"search"`, "1", "true", "[]", "{}", "[" + actor().String() + "]"} {
		c.invalid("act "+value, mint(value))
		c.invalid("act within act "+value, mint(actor().and("act", value).String()))
	}
	for _, depth := range []int{1, 2, token.MaxActors} {
		for _, m := range actor() {
			name := fmt.Sprintf("actor %d: %s ", depth, m.name)
			c.invalid(name+"missing", mint(chain(depth, actor().without(m.name))))
			c.invalid(name+"twice", mint(chain(depth, actor().and(m.name, m.value))))
			for _, value := range []string{"null", `""`, "-1", "1.0", `"1\u0000"`, `"\ud800"`, "9007199254740992", "[]", "{}"} {
				c.invalid(name+value, mint(chain(depth, actor().with(m.name, value))))
			}
		}
		for _, member := range []string{"iss", "aud", "exp", "sid", "roles", "ACT", "x", ""} {
			c.invalid(fmt.Sprintf("actor %d: a member %q", depth, member), mint(chain(depth, actor().and(member, `"x"`))))
		}
		c.invalid(fmt.Sprintf("actor %d: act twice", depth), mint(chain(depth, actor().and("act", actor().String()).and("act", actor().String()))))
		c.invalid(fmt.Sprintf("actor %d: of invalid UTF-8", depth), mint(chain(depth, actor().with("username", "\"\xff\""))))
	}
	c.invalid("act twice, another actor", c.ed.mint(claims().and("act", actor().String()).and("act", actor().with("sub", `"x"`).String())))
	c.ok("claim ACT is unknown", c.ed.mint(claims().and("ACT", "1")))
	c.ok("claim may_act is unknown", c.ed.mint(claims().and("may_act", chain(1, actor()))))
	past := claims().with("iat", at(-600)).with("exp", at(-300))
	c.refused("expired with an actor", c.ed.mint(past.and("act", chain(1, actor()))), "TOKEN_EXPIRED")
	c.refused("another audience with an actor", c.ed.mint(claims().with("aud", `["billing"]`).and("act", chain(1, actor()))), "AUDIENCE_MISMATCH")
}
