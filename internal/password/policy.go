package password

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/secure/precis"
)

// MinLength is the fewest characters (code points, after normalization) that a
// new password may have: what NIST SP 800-63B has long asked for. Its fourth
// revision asks for 15 where nothing but the password guards an account.
const MinLength = 8

// ErrTooWeak says that a password breaks the policy for new ones. The text of
// an error that wraps it names the rule, for people to read, and nothing of the
// password.
var ErrTooWeak = errors.New("password too weak")

// CheckPolicy says whether p may become the password of the user called
// username. As NIST advises it asks for length and refuses what is guessed
// first; it has no rules about kinds of characters, which make people choose
// "Password1!". It costs no hash. The error matches [ErrTooWeak].
//
// Call it for new passwords alone: an old one that the rules would refuse today
// must still log in.
func (p Password) CheckPolicy(username string) error {
	text := p.reveal()
	switch {
	case utf8.RuneCountInString(text) < MinLength:
		return fmt.Errorf("%w: it has fewer than %d characters", ErrTooWeak, MinLength)
	case isName(text, username):
		return fmt.Errorf("%w: it is the user name", ErrTooWeak)
	case isOneCharacter(text):
		return fmt.Errorf("%w: it repeats a single character", ErrTooWeak)
	case mostUsed[strings.ToLower(text)]:
		return fmt.Errorf("%w: it is one of the most used passwords", ErrTooWeak)
	}
	return nil
}

// isName compares as user names are compared (RFC 8265, section 3.3), and also
// plainly: a name that the profile refuses can still be a bad password.
func isName(text, username string) bool {
	return strings.EqualFold(text, username) || precis.UsernameCaseMapped.Compare(text, username)
}

func isOneCharacter(text string) bool {
	first, _ := utf8.DecodeRuneInString(text)
	return strings.Trim(text, string(first)) == ""
}

// Generate makes a password of 125 random bits, to be shown once and typed by a
// person: five groups of five, lower case letters and the digits 2 to 7, so
// that neither 0 and o nor 1 and l can be mistaken. It meets the policy.
func Generate() string {
	letters := strings.ToLower(rand.Text()) // base32: five bits each
	groups := make([]string, 5)
	for i := range groups {
		groups[i] = letters[5*i : 5*i+5]
	}
	return strings.Join(groups, "-")
}

// mostUsed holds, in lower case, the passwords of at least MinLength characters
// that lead the lists of leaked ones, and our own name. It stops the first
// hundred guesses; the bounds on guessing stop the next million.
var mostUsed = set(`
	012345678 0123456789 0987654321 1122334455 11223344 112233445566
	12121212 123123123 12341234 123454321 1234554321 12345678 12345678a
	123456789 1234567890 12345678910 1234567891 123456789a 123456789q
	123456abc 123456qwerty 12345qwert 1234abcd 1234qwer 123654789 123698745
	123abc123 123qweasd 135792468 13579246 147258369 147852369 1q2w3e4r
	1q2w3e4r5t 1q2w3e4r5t6y 1qaz2wsx 1qaz2wsx3edc 1qazxsw2 23456789
	741852963 789456123 87654321 963852741 987654321 9876543210 a1234567
	a12345678 a123456789 a1b2c3d4 aa123456 aa12345678 abc12345 abc123456
	abcd1234 abcdefgh abcdefg1 admin123 admin1234 administrator alexander
	asdf1234 asdfasdf asdfghjk asdfghjkl asdfghjkl1 baseball basketball
	butterfly changeit changeme changeme1 changeme123 chocolate computer
	corvette football football1 hello123 iloveyou iloveyou1 iloveyou2
	internet jennifer jonathan letmein1 letmein123 liverpool maverick
	metallica michelle midnight minecraft p@ssw0rd p@ssword pa$$w0rd
	pa55word passw0rd passw0rd1 password password! password01 password1
	password1! password12 password123 password1234 password2 princess
	princess1 q1w2e3r4 q1w2e3r4t5 qazwsxedc qqww1122 qwer1234 qweasdzxc
	qwertyui qwertyuiop qwerty12 qwerty123 qwerty1234 qwerty12345
	qwerty123456 samantha secret123 september spiderman starwars sunshine
	sunshine1 superman test1234 testtest trustno1 victoria watchword
	watchword1 watchword123 welcome1 welcome123 whatever zaq12wsx zaq1zaq1
	zxcvbnm1 zxcvbnm123
`)

func set(words string) map[string]bool {
	m := make(map[string]bool)
	for _, w := range strings.Fields(words) {
		m[w] = true
	}
	return m
}
