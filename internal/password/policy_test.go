package password

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestCheckPolicy(t *testing.T) {
	for _, tt := range []struct {
		name, password, username string
		reason                   string // in the error's text; empty: CheckPolicy allows the password
	}{
		{"long enough", "tr0ubador", "alice", ""},
		{"exactly as long", "gq8z0vxe", "alice", ""},
		{"letters and spaces alone", "horse staple battery", "alice", ""},
		{"one short", "gq8z0vx", "alice", "fewer than 8"},
		{"seven characters in 14 bytes", "\u00e9\u00e8\u00ea\u00eb\u00e1\u00e0\u00e2", "alice", "fewer than 8"},
		{"eight characters in 16 bytes", "\u00e9\u00e8\u00ea\u00eb\u00e1\u00e0\u00e2\u00e4", "alice", ""},
		{"four characters, typed as eight", "e\u0301e\u0300e\u0302e\u0308", "alice", "fewer than 8"},
		{"user name", "margaret", "margaret", "user name"},
		{"user name in capitals", "MARGARET", "margaret", "user name"},
		{"user name in full width", "\uff4d\uff41\uff52\uff47\uff41\uff52\uff45\uff54", "margaret", "user name"},
		{"user name that the profile refuses", "Mar Garet", "mar garet", "user name"},
		{"begins with the user name", "margarethe", "margaret", ""},
		{"no user name", "gq8z0vxe", "", ""},
		{"one character", "zzzzzzzzzzzz", "alice", "single character"},
		{"one character of four bytes", strings.Repeat("\U0001f40e", 8), "alice", "single character"},
		{"two characters", "zzzzzzzzzzzy", "alice", ""},
		{"most used", "iloveyou", "alice", "most used"},
		{"most used, other case", "PassWord1", "alice", "most used"},
		{"the product's name", "Watchword", "alice", "most used"},
		{"begins with a most used password", "iloveyou and you", "alice", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := parse(t, tt.password).CheckPolicy(tt.username)
			if tt.reason == "" {
				if err != nil {
					t.Fatalf("CheckPolicy refused the password: %v", err)
				}
				return
			}
			if !errors.Is(err, ErrTooWeak) || !strings.Contains(err.Error(), tt.reason) {
				t.Fatalf("got %v, want ErrTooWeak with %q", err, tt.reason)
			}
			if strings.Contains(err.Error(), tt.password) {
				t.Errorf("the error shows the password: %v", err)
			}
		})
	}
	if err := (Password{}).CheckPolicy("alice"); !errors.Is(err, ErrTooWeak) {
		t.Errorf("zero Password: got error %v, want ErrTooWeak", err)
	}
}

// TestMostUsedAreReachable checks that the earlier rules let every entry pass. An entry
// that an earlier rule refuses has no effect.
func TestMostUsedAreReachable(t *testing.T) {
	if len(mostUsed) < 100 {
		t.Errorf("mostUsed has %d entries, want at least 100", len(mostUsed))
	}
	for _, w := range mostUsed {
		if utf8.RuneCountInString(w) < MinLength || w != strings.ToLower(w) || isOneCharacter(w) {
			t.Errorf("%q has no effect: an earlier rule refuses the password, or the entry is not in lower case", w)
		}
	}
}

func TestGenerate(t *testing.T) {
	form := regexp.MustCompile(`^[a-z2-7]{5}(-[a-z2-7]{5}){4}$`)
	seen := make(map[string]bool)
	for range 1000 {
		s := Generate()
		if !form.MatchString(s) || seen[s] {
			t.Fatalf("got %q, seen before: %v", s, seen[s])
		}
		seen[s] = true
		pw := parse(t, s)
		if err := pw.CheckPolicy("admin"); err != nil || pw.reveal() != s {
			t.Fatalf("%q: CheckPolicy returned %v, Parse returned %q", s, err, pw.reveal())
		}
	}
}
