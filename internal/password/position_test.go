package password

import (
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/text/secure/precis"
	"golang.org/x/text/unicode/norm"
)

// The error names the position of a refused character and its kind, and shows no part of
// the text.
func TestPositionOfARefusedCharacter(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"control", "sesame\tdoor", "character 7 is not allowed: a control character"},
		{"first", "\x00sesame", "character 1 is not allowed: a control character"},
		{"last", "sesame\n", "character 7 is not allowed: a control character"},
		{"the first of two", "ses\x7fame\n", "character 4 is not allowed: a control character"},
		{"after characters of two bytes", "ééé\x01", "character 4 is not allowed: a control character"},
		{"after composed accents", "e\u0301e\u0301\x01", "character 3 is not allowed: a control character"},
		{"after composed Hangul", "\u1112\u1161\u11ab\x01", "character 2 is not allowed: a control character"},
		{"after an emoji", "\U0001f40e\x01", "character 2 is not allowed: a control character"},
		{"zero width space", "sesame\u200b", "character 7 is not allowed: an invisible character"},
		{"soft hyphen", "ses\u00adame", "character 4 is not allowed: an invisible character"},
		{"variation selector", "ses\ufe0fame", "character 4 is not allowed: an invisible character"},
		{"private use", "sesame\ue000", "character 7 is not allowed: a character for private use"},
		{"unassigned", "sesame\u0378", "character 7 is not allowed: not assigned"},
		{"old Hangul", "sesame\u1112", "character 7 is not allowed: not for passwords"},
		{"not UTF-8", "ses\xffame", "character 4 is not UTF-8"},
		{"not UTF-8, after characters of two bytes", "éé\xc3", "character 3 is not UTF-8"},
		{"a replacement character is UTF-8", "\ufffd\xff", "character 2 is not UTF-8"},

		{"joiner without its neighbor", "sesame\u200d", "character 7 is not allowed beside its neighbors"},
		{"middle dot without its neighbors", "ses\u00b7ame", "character 4 is not allowed beside its neighbors"},
		{"middle dot behind a good one", "l\u00b7l sesame \u00b7", "character 12 is not allowed beside its neighbors"},
		{"middle dot before a good one", "\u00b7 sesame l\u00b7l", "character 1 is not allowed beside its neighbors"},
		{"Greek sign without its neighbor", "sesame \u0375x", "character 8 is not allowed beside its neighbors"},
		{"Hebrew mark without its neighbor", "x\u05f3", "character 2 is not allowed beside its neighbors"},
		{"Katakana dot without Japanese", "sesame\u30fb", "character 7 is not allowed beside its neighbors"},
		{"digits of two Arabic kinds", "12\u0661\u0662 \u06f1", "character 6 is not allowed beside its neighbors"},
		{"a bad character counts first", "\u00b7 sesame\x01", "character 9 is not allowed: a control character"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse(tt.in)
			if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "ses") || strings.ContainsAny(err.Error(), "\x00\x01\t\n\x7f\u00b7\u200b") {
				t.Errorf("the error shows a part of the text: %q", err)
			}
		})
	}
	for _, good := range []string{"col\u00b7lecció", "\u0375α", "א\u05f3", "カ\u30fbカ", "क\u094d\u200dष", "\u0661\u0662"} {
		if _, err := Parse(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
}

// Every character that the profile OpaqueString allows is accepted alone as a password, or is in
// inContext, the characters that the profile allows only beside certain others.
func TestCharactersInContext(t *testing.T) {
	allowed := precis.OpaqueString.Allowed()
	for r := rune(0x80); r <= 0x10ffff; r++ {
		if 0xd800 <= r && r <= 0xdfff || !allowed.Contains(r) {
			continue
		}
		if _, err := precis.OpaqueString.String(string(r)); err != nil && !strings.ContainsAny(string(inContext), norm.NFC.String(string(r))) {
			t.Errorf("%U is allowed, refused alone, and not in inContext", r)
		}
	}
}

// A text made to take long is refused in less time than a hash takes.
func TestRefusalOfALongText(t *testing.T) {
	text := strings.Repeat("l\u00b7", MaxLength/3-1) + "l\u200d"
	least := time.Hour
	for range 5 {
		began := time.Now()
		if _, err := Parse(text); err == nil {
			t.Fatal("Parse accepted the text")
		}
		least = min(least, time.Since(began))
	}
	t.Logf("%v", least)
	if least > time.Second {
		t.Errorf("the refusal of %d bytes took %v", len(text), least)
	}
}
