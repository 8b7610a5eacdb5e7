package password

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// parse returns the Password for s, and ends the test if Parse refuses s.
func parse(t testing.TB, s string) Password {
	t.Helper()
	pw, err := Parse(s)
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	return pw
}

func TestParseNormalizes(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"ASCII stays", "Correct Horse 1!", "Correct Horse 1!"},
		{"case stays", "PaSsWoRd", "PaSsWoRd"},
		{"spaces at the ends stay", " secret ", " secret "},
		{"decomposed accent", "cafe\u0301", "caf\u00e9"},
		{"composed accent", "caf\u00e9", "caf\u00e9"},
		{"Hangul jamo compose", "\u1112\u1161\u11ab", "\ud55c"},
		{"no-break space", "a\u00a0b", "a b"},
		{"ideographic space", "a\u3000b", "a b"},
		{"em space, Ogham space", "a\u2003b\u1680c", "a b c"},
		{"full width stays", "\uff30\uff41\uff53\uff53", "\uff30\uff41\uff53\uff53"},
		{"compatibility ligature stays", "\ufb01", "\ufb01"},
		{"sharp s stays", "stra\u00dfe", "stra\u00dfe"},
		{"emoji", "\U0001f40e\U0001f50b", "\U0001f40e\U0001f50b"},
		{"right to left", "\u05e9\u05dc\u05d5\u05dd", "\u05e9\u05dc\u05d5\u05dd"},
		// RFC 8265, table 3.
		{"RFC 8265, 12", "correct horse battery staple", "correct horse battery staple"},
		{"RFC 8265, 13", "Correct Horse Battery Staple", "Correct Horse Battery Staple"},
		{"RFC 8265, 14", "\u03c0\u00df\u00e5", "\u03c0\u00df\u00e5"},
		{"RFC 8265, 15", "Jack of \u2666s", "Jack of \u2666s"},
		{"RFC 8265, 16", "foo\u1680bar", "foo bar"},
		{"as long as allowed", strings.Repeat("x", MaxLength), strings.Repeat("x", MaxLength)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := parse(t, tt.in).reveal(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"empty":                  "",
		"one byte too long":      strings.Repeat("x", MaxLength+1),
		"too long in bytes":      strings.Repeat("\u00e9", MaxLength/2+1),
		"not UTF-8":              "sesame\xff",
		"cut within a character": "sesame\xc3",
		"surrogate half":         "sesame\xed\xa0\x80",
		"control (RFC 8265, 18)": "my cat is a \tby",
		"line end":               "sesame\n",
		"NUL":                    "sesame\x00",
		"delete":                 "sesame\x7f",
		"zero width space":       "sesame\u200b",
		"soft hyphen":            "sesame\u00ad",
		"unassigned":             "sesame\u0378",
		"private use":            "sesame\ue000",
		"old Hangul jamo alone":  "sesame\u1112",
		"a pile of accents":      "sesame" + strings.Repeat("\u0301", 200),
	} {
		t.Run(name, func(t *testing.T) {
			pw, err := Parse(in)
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("got %v, want ErrMalformed", err)
			}
			if pw.secret != nil {
				t.Error("Parse returned a password beside the error")
			}
			if strings.Contains(err.Error(), "sesame") {
				t.Errorf("the error shows the password: %v", err)
			}
		})
	}
}

// holder has passwords in exported and unexported fields. fmt calls no methods on
// unexported fields.
type holder struct {
	Open   Password
	hidden Password
	nested struct{ pw *Password }
}

func TestPasswordRedactsItself(t *testing.T) {
	const secret = "xyzzy-plugh"
	pw := parse(t, secret)
	h := holder{Open: pw, hidden: pw}
	h.nested.pw = &pw

	var out strings.Builder
	for _, verb := range "vsqxXdobcUteEfFgGpT" {
		for _, flags := range []string{"", "+", "#", "-40", "040", " ", ".3"} {
			format := "%" + flags + string(verb) + "\n"
			for _, arg := range []any{pw, &pw, h, &h, []Password{pw}, map[string]Password{"k": pw}, any(pw)} {
				fmt.Fprintf(&out, format, arg)
			}
		}
	}
	fmt.Fprintln(&out, pw, pw.String(), errors.New(fmt.Sprint(pw)))
	for _, enc := range []func(any) ([]byte, error){json.Marshal, xml.Marshal} {
		b, err := enc(struct{ Password Password }{pw})
		if err != nil {
			t.Logf("encoding: %v", err)
		}
		out.Write(b)
	}
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(handler).Info("login", "password", pw, "pointer", &pw, "holder", h, slog.Group("g", "p", pw))
	}

	got := out.String()
	for _, leak := range []string{secret, "xyzzy", fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret), fmt.Sprint([]byte(secret))} {
		if strings.Contains(got, leak) {
			t.Errorf("output contains %q", leak)
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		if got := fmt.Sprintf(verb, pw); got != redacted {
			t.Errorf("%s printed %q, want %q", verb, got, redacted)
		}
	}
}

func TestPasswordAsJSONAndLogs(t *testing.T) {
	pw := parse(t, "xyzzy-plugh")
	if b, err := json.Marshal(pw); err != nil || string(b) != `"[redacted]"` {
		t.Errorf("JSON: got %s, error %v", b, err)
	}
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("login", "password", pw)
	if !strings.Contains(out.String(), "password=[redacted]") {
		t.Errorf("slog wrote %s, want password=[redacted]", &out)
	}
	var request struct{ Password Password }
	if err := json.Unmarshal([]byte(`{"Password": "xyzzy-plugh"}`), &request); err == nil || request.Password.secret != nil {
		t.Error("json.Unmarshal made a Password without Parse")
	}
}

// FuzzParse normalizes any string twice. The second normalization must change nothing:
// otherwise a password might stop matching the stored hash.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"cafe\u0301", "a\u3000b", "\xff", "\u1112\u1161\u11ab", "l\u00b7l", "\u0958", "\U0001d160"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		once, err := Parse(s)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("error %v does not match ErrMalformed", err)
			}
			return
		}
		if len(once.reveal()) > MaxLength {
			return // normalizing may lengthen the text; MaxLength bounds the text before that
		}
		twice, err := Parse(once.reveal())
		if err != nil || twice.reveal() != once.reveal() {
			t.Fatalf("Parse turned %q into %q, and %[2]q into %q, error %v", s, once.reveal(), twice.reveal(), err)
		}
	})
}
