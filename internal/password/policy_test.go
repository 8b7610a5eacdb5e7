package password

import (
	"errors"
	"regexp"
	"strings"
	"testing"
)

// The texts of the rules, as in the errors.
const (
	tooShort  = "fewer than 15 characters"
	equalName = "equals the user name"
	repeated  = "repeats a part"
	few       = "at most four parts"
	listed    = "list of common passwords"
)

func TestPolicy(t *testing.T) {
	for _, tt := range []struct {
		name, password, username string
		reason                   string // a part of the error's text; empty: Check allows the password
	}{
		{"exactly as long", "gq8z0vxeu4wkb7n", "alice", ""},
		{"letters and spaces alone", "horse staple battery", "alice", ""},
		{"one short", "gq8z0vxeu4wkb7", "alice", tooShort},
		{"14 characters in 28 bytes", "éèêëáàâäíìîïóò", "alice", tooShort},
		{"15 characters in 30 bytes", "éèêëáàâäíìîïóòô", "alice", ""},
		{"14 characters, typed as 28", "e\u0301o\u0300e\u0302a\u0308u\u0301i\u0300o\u0302u\u0308o\u0301a\u0300u\u0302i\u0308a\u0301e\u0300", "alice", tooShort},

		{"user name", "margaret.thatcher", "margaret.thatcher", equalName},
		{"user name in capitals", "MARGARET.THATCHER", "margaret.thatcher", equalName},
		{"user name in full width", "ｍａｒｇａｒｅｔ．ｔｈａｔｃｈｅｒ", "margaret.thatcher", equalName},
		{"user name that the profile refuses", "Margaret Thatcher", "margaret thatcher", equalName},
		{"user name in reversed order", "thatcher.margaret", "margaret.thatcher", few},
		{"user name and digits", "alice1234567890", "alice", few},
		{"user name, again and again", "alicealicealice", "alice", repeated},
		{"begins with the user name", "margaret at gq8z0v", "margaret", ""},
		{"no user name", "gq8z0vxeu4wkb7n", "", ""},
		{"user name of one letter", "a gq8z0vxeu4wkb7", "a", ""},

		{"the service's name, twice", "watchwordwatchword", "alice", repeated},
		{"the service's name and digits", "Watchword123456", "alice", few},
		{"the service's name and a word", "watchword-password", "alice", few},
		{"begins with the service's name", "watchword gq8z0v", "alice", ""},

		{"one character", "zzzzzzzzzzzzzzz", "alice", repeated},
		{"one character of four bytes", strings.Repeat("\U0001f40e", 15), "alice", repeated},
		{"one character and another", "zzzzzzzzzzzzzzy", "alice", few},
		{"a short part, cut off", "gq8z0vxgq8z0vxg", "alice", repeated},
		{"a part of 14 characters, twice", strings.Repeat("gq8z0vxeu4wkb7", 2), "alice", repeated},
		{"a part of 15 characters, twice", strings.Repeat("gq8z0vxeu4wkb7n", 2), "alice", ""},
		{"a common word, twice", "passwordpassword", "alice", repeated},
		{"a common word, twice, and a digit", "PasswordPassword1", "alice", few},
		{"digits", "123456789012345", "alice", few},
		{"digits downwards", "987654321098765", "alice", few},
		{"digits in pairs", "112233445566778", "alice", few},
		{"the alphabet", "abcdefghijklmnop", "alice", few},
		{"rows of keys", "qwertyuiopasdfgh", "alice", few},
		{"rows of keys backwards", "poiuytrewqlkjhgf", "alice", few},
		{"rows of German keys", "qwertzuiop123456", "alice", few},
		{"columns of keys", "1qaz2wsx3edc4rfv", "alice", few},
		{"two rows by turns", "1q2w3e4r5t6y7u8i", "alice", few},
		{"four common words", "adminsecrethellomaster", "alice", few},
		{"common words among others", "admin of the secret tower", "alice", ""},
		{"a common word and others", "passwordgq8z0vx", "alice", ""},
		{"a date and a word", "14 September 2026 at noon", "alice", ""},
		{"longer than texts with few parts", strings.Repeat("a", 40) + "bcd" + strings.Repeat("e", 40), "alice", ""},

		{"in the list", "the quick brown fox", "alice", listed},
		{"in the list, other case", "The Quick Brown Fox", "alice", listed},
		{"in the list, in another form", "caf\u00e9 caf\u00e9 au lait!", "alice", listed},
		{"begins with a password of the list", "the quick brown fox jumps", "alice", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			list, err := ReadList(strings.NewReader("the quick brown fox\ncafe\u0301 cafe\u0301 au lait!"), DefaultMinLength)
			if err != nil {
				t.Fatal(err)
			}
			err = Policy{List: list}.Check(parse(t, tt.password), tt.username)
			if tt.reason == "" {
				if err != nil {
					t.Fatalf("Check refused the password: %v", err)
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
	if err := (Policy{}).Check(Password{}, "alice"); !errors.Is(err, ErrTooWeak) {
		t.Errorf("zero Password: got error %v, want ErrTooWeak", err)
	}
}

// The least length is a setting, and never below 8.
func TestLeastLength(t *testing.T) {
	for _, tt := range []struct {
		least    int
		password string
		ok       bool
	}{
		{0, "gq8z0vxeu4wkb7", false}, {0, "gq8z0vxeu4wkb7n", true}, {8, "gq8z0vx", false}, {8, "gq8z0vxe", true},
		{1, "gq8z0vx", false}, {-1, "gq8z0vx", false}, {1, "gq8z0vxe", true}, {20, "gq8z0vxeu4wkb7nm2fp", false}, {20, "gq8z0vxeu4wkb7nm2fpd", true},
	} {
		if err := (Policy{MinLength: tt.least}).Check(parse(t, tt.password), "alice"); (err == nil) != tt.ok {
			t.Errorf("a least length of %d, %d characters: %v", tt.least, len(tt.password), err)
		}
	}
}

// With the lowest least length, the most frequent leaked passwords are refused too.
func TestMostUsed(t *testing.T) {
	for _, pw := range strings.Fields(`0987654321 1122334455 112233445566 12121212 123123123 12341234 12345678 12345678a
		123456789 1234567890 123456789q 123456abc 123456qwerty 12345qwert 1234abcd 1234qwer 123abc123 123qweasd 147258369
		1q2w3e4r 1q2w3e4r5t6y 1qaz2wsx 1qaz2wsx3edc 789456123 87654321 a12345678 aa123456 abc12345 abcd1234 abcdefgh
		admin123 administrator alexander asdf1234 asdfasdf asdfghjkl baseball butterfly changeme123 chocolate computer
		football1 hello123 iloveyou1 internet jennifer jonathan letmein123 liverpool maverick metallica michelle midnight
		minecraft p@ssw0rd p@ssword pa$$w0rd pa55word passw0rd1 password password! password1! password123 password1234
		princess1 q1w2e3r4t5 qazwsxedc qwer1234 qweasdzxc qwertyuiop qwerty123456 samantha secret123 september spiderman
		starwars sunshine superman test1234 testtest trustno1 victoria watchword123 welcome123 whatever zaq1zaq1 zxcvbnm123`) {
		if err := (Policy{MinLength: LeastMinLength}).Check(parse(t, pw), "alice"); !errors.Is(err, ErrTooWeak) {
			t.Errorf("%s: got %v, want ErrTooWeak", pw, err)
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
		if err := (Policy{}).Check(pw, "admin"); err != nil || pw.reveal() != s {
			t.Fatalf("%q: Check returned %v, Parse returned %q", s, err, pw.reveal())
		}
	}
}
