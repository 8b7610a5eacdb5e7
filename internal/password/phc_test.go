package password

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// somePHC is well formed; the tables below change parts of somePHC.
const (
	someSalt = "c2FsdHNhbHRzYWx0c2FsdA"                      // 16 bytes
	someTag  = "dGFndGFndGFndGFndGFndGFndGFndGFndGFndGFndGE" // 32 bytes
	somePHC  = "$argon2id$v=19$m=19456,t=2,p=1$" + someSalt + "$" + someTag
)

func TestDecode(t *testing.T) {
	r, err := decode(somePHC)
	if err != nil {
		t.Fatal(err)
	}
	if r.params != Default || string(r.salt) != "saltsaltsaltsalt" || len(r.tag) != tagLength {
		t.Errorf("decode returned %+v", r)
	}
	if r.encode() != somePHC {
		t.Errorf("encode returned %s, want %s", r.encode(), somePHC)
	}
}

func TestDecodeBounds(t *testing.T) {
	phc := func(m, t, p uint64, salt, tag int) string {
		b64 := base64.RawStdEncoding.EncodeToString
		return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", m, t, p,
			b64(bytes.Repeat([]byte{7}, salt)), b64(bytes.Repeat([]byte{8}, tag)))
	}
	for _, tt := range []struct {
		name string
		phc  string
		ok   bool
	}{
		{"least", phc(8, 1, 1, minSaltLength, minTagLength), true},
		{"libsodium MODERATE", phc(262144, 3, 1, 16, 32), true},
		{"RFC 9106, second choice", phc(65536, 3, 4, 16, 32), true},
		{"longest parts", phc(maxMemory, 4, maxLanes, maxPartLength, maxPartLength), true},
		{"no memory", phc(0, 2, 1, 16, 32), false},
		{"memory under 8 KiB a lane", phc(31, 1, 4, 16, 32), false},
		{"memory over", phc(maxMemory+1, 1, 1, 16, 32), false},
		{"memory of terabytes", phc(1<<32-1, 1, 1, 16, 32), false},
		{"memory over 32 bits", phc(1<<32+19456, 2, 1, 16, 32), false},
		{"no passes", phc(19456, 0, 1, 16, 32), false},
		{"work over", phc(maxMemory, 5, 1, 16, 32), false},
		{"passes over", phc(8, maxPasses+1, 1, 16, 32), false},
		{"passes without end", phc(8, 1<<32-1, 1, 16, 32), false},
		{"no lanes", phc(19456, 2, 0, 16, 32), false},
		{"lanes over", phc(19456, 2, maxLanes+1, 16, 32), false},
		{"lanes over 8 bits", phc(19456, 2, 257, 16, 32), false},
		{"salt too short", phc(19456, 2, 1, minSaltLength-1, 32), false},
		{"salt too long", phc(19456, 2, 1, maxPartLength+1, 32), false},
		{"no tag", phc(19456, 2, 1, 16, 0), false},
		{"tag too short", phc(19456, 2, 1, 16, minTagLength-1), false},
		{"tag too long", phc(19456, 2, 1, 16, maxPartLength+1), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := decode(tt.phc); (err == nil) != tt.ok {
				t.Errorf("decode(%s) returned error %v, want success: %v", tt.phc, err, tt.ok)
			}
		})
	}
}

// malformed holds strings that decode must refuse. FuzzDecode starts with the same
// strings.
var malformed = map[string]string{
	"nothing":                "",
	"plain text":             "saltsalt",
	"no leading dollar":      somePHC[1:],
	"dollar at the end":      somePHC + "$",
	"space before":           " " + somePHC,
	"line end":               somePHC + "\n",
	"NUL at the end":         somePHC + "\x00",
	"bcrypt":                 "$2b$12$abcdefghijklmnopqrstuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu",
	"argon2i":                strings.Replace(somePHC, "argon2id", "argon2i", 1),
	"argon2d":                strings.Replace(somePHC, "argon2id", "argon2d", 1),
	"in capitals":            strings.Replace(somePHC, "argon2id", "ARGON2ID", 1),
	"version 16":             strings.Replace(somePHC, "v=19", "v=16", 1),
	"no version":             strings.Replace(somePHC, "v=19$", "", 1),
	"empty version":          strings.Replace(somePHC, "v=19", "", 1),
	"another order":          strings.Replace(somePHC, "m=19456,t=2", "t=2,m=19456", 1),
	"parameter missing":      strings.Replace(somePHC, ",p=1", "", 1),
	"parameter twice":        strings.Replace(somePHC, ",p=1", ",p=1,p=1", 1),
	"unknown parameter":      strings.Replace(somePHC, ",p=1", ",p=1,keyid=x", 1),
	"negative":               strings.Replace(somePHC, "t=2", "t=-2", 1),
	"plus sign":              strings.Replace(somePHC, "t=2", "t=+2", 1),
	"leading zero":           strings.Replace(somePHC, "t=2", "t=02", 1),
	"hexadecimal":            strings.Replace(somePHC, "t=2", "t=0x2", 1),
	"underscore":             strings.Replace(somePHC, "19456", "19_456", 1),
	"space in a number":      strings.Replace(somePHC, "t=2", "t= 2", 1),
	"line end in parameters": strings.Replace(somePHC, "p=1", "p=1\n", 1),
	"padding":                somePHC + "=",
	"base64url":              strings.Replace(somePHC, "$c2F", "$-_F", 1),
	"line end in base64":     strings.Replace(somePHC, someSalt, someSalt[:8]+"\r\n"+someSalt[8:], 1),
	"loose bits at the end":  strings.Replace(somePHC, someSalt, someSalt[:21]+"B", 1),
	"no salt":                strings.Replace(somePHC, someSalt, "", 1),
	"no tag":                 strings.Replace(somePHC, someTag, "", 1),
	"cut off":                somePHC[:40],
	"very long":              somePHC + strings.Repeat("A", 1<<20),
	"dollars":                strings.Repeat("$", 200),
}

func TestDecodeRefusesMalformed(t *testing.T) {
	for name, phc := range malformed {
		t.Run(name, func(t *testing.T) {
			_, err := decode(phc)
			if !errors.Is(err, errCorrupt) {
				t.Fatalf("got error %v, want errCorrupt", err)
			}
			// The fixed text repeats no part of the hash.
			if err.Error() != errCorrupt.Error() {
				t.Errorf("got the text %q, want errCorrupt's text", err)
			}
		})
	}
}

func TestParamsClamped(t *testing.T) {
	for _, tt := range []struct{ in, want Params }{
		{Params{}, Default},
		{Params{Memory: 65536}, Params{65536, 2, 1}},
		{Params{Time: 3}, Params{19456, 3, 1}},
		{Params{Memory: 1, Time: 1}, Params{8, 1, 1}},
		{Params{Memory: 8, Time: 1, Threads: 4}, Params{32, 1, 4}},
		{Params{Memory: 1 << 31, Time: 1 << 31, Threads: 255}, Params{maxMemory, 4, maxLanes}},
	} {
		if got := tt.in.clamped(); got != tt.want || got.clamped() != got {
			t.Errorf("%+v: got %+v, want %+v", tt.in, got, tt.want)
		}
	}
}

func TestWeakerThan(t *testing.T) {
	of := func(m, time uint32, p uint8, salt, tag int) record {
		return record{Params{m, time, p}, make([]byte, salt), make([]byte, tag)}
	}
	for _, tt := range []struct {
		name string
		r    record
		now  Params
		want bool
	}{
		{"the same", of(19456, 2, 1, 16, 32), Default, false},
		{"less memory", of(12288, 2, 1, 16, 32), Default, true},
		{"fewer passes", of(19456, 1, 1, 16, 32), Default, true},
		{"more of both", of(65536, 3, 1, 16, 32), Default, false},
		{"more memory for fewer passes", of(47104, 1, 1, 16, 32), Default, false},
		{"and back", of(19456, 2, 1, 16, 32), Params{47104, 1, 1}, true},
		{"other lanes", of(19456, 2, 1, 16, 32), Params{19456, 2, 4}, false},
		{"short salt", of(19456, 2, 1, 8, 32), Default, true},
		{"short tag", of(19456, 2, 1, 16, 16), Default, true},
	} {
		if got := tt.r.weakerThan(tt.now); got != tt.want {
			t.Errorf("%s: weakerThan returned %v, want %v", tt.name, got, tt.want)
		}
	}
}

// FuzzDecode gives any string to decode. encode must return the same accepted string,
// and the parameters must lie within the bounds. The test computes no hash, because a
// hash beyond the bounds might never end.
func FuzzDecode(f *testing.F) {
	f.Add(somePHC)
	for _, phc := range malformed {
		f.Add(phc)
	}
	f.Fuzz(func(t *testing.T, phc string) {
		r, err := decode(phc)
		if err != nil {
			if err.Error() != errCorrupt.Error() {
				t.Fatalf("got the text %q, want errCorrupt's text", err)
			}
			return
		}
		p := r.params
		if r.encode() != phc {
			t.Fatalf("decode accepted %q, and encode returned %q", phc, r.encode())
		}
		if p.Memory > maxMemory || uint64(p.Memory)*uint64(p.Time) > maxWork || p.Threads > maxLanes ||
			p.Memory < 8*uint32(p.Threads) || p.Time < 1 || p.Threads < 1 {
			t.Fatalf("decode accepted parameters out of bounds: %+v", p)
		}
		if len(r.salt) > maxPartLength || len(r.tag) > maxPartLength || len(r.tag) < minTagLength {
			t.Fatalf("decode accepted a salt of %d bytes and a tag of %d bytes", len(r.salt), len(r.tag))
		}
	})
}
