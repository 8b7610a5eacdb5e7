package password

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/secure/precis"
)

// MinLength holds the fewest characters of a new password, counted in code points after
// normalization. The value comes from NIST SP 800-63B. Revision 4 asks for 15
// characters if the account has no second factor.
const MinLength = 8

// ErrTooWeak means that a new password breaks the policy. The text of a wrapping error
// names the broken rule for people, and repeats no part of the password.
var ErrTooWeak = errors.New("password too weak")

// CheckPolicy checks p as a new password for the user username. The rules follow NIST:
// a least length, and a list of often guessed passwords. A rule about kinds of
// characters is left out, because such a rule leads people to "Password1!".
// CheckPolicy computes no hash.
//
// Call CheckPolicy for new passwords alone: after the rules change, an old password
// must still log in.
//
// Errors: ErrTooWeak if p breaks a rule.
func (p Password) CheckPolicy(username string) error {
	text := p.reveal()
	switch {
	case utf8.RuneCountInString(text) < MinLength:
		return fmt.Errorf("%w: the password has fewer than %d characters", ErrTooWeak, MinLength)
	case isName(text, username):
		return fmt.Errorf("%w: the password equals the user name", ErrTooWeak)
	case isOneCharacter(text):
		return fmt.Errorf("%w: the password repeats a single character", ErrTooWeak)
	case slices.Contains(mostUsed, strings.ToLower(text)):
		return fmt.Errorf("%w: the password is among the most used passwords", ErrTooWeak)
	}
	return nil
}

// isName compares text with a user name, by the PRECIS profile for user names (RFC
// 8265, section 3.3) and without the profile. The second comparison catches a name
// that the profile refuses.
func isName(text, username string) bool {
	return strings.EqualFold(text, username) || precis.UsernameCaseMapped.Compare(text, username)
}

func isOneCharacter(text string) bool {
	first, _ := utf8.DecodeRuneInString(text)
	return strings.Trim(text, string(first)) == ""
}

// Generate returns a password of 125 random bits for a person to read and type: five
// groups of five lower-case letters and digits. Only the digits 2 to 7 occur, so
// readers cannot confuse 0 with o, or 1 with l. The password meets the policy.
func Generate() string {
	letters := strings.ToLower(rand.Text()) // base32: five bits in each character
	groups := make([]string, 5)
	for i := range groups {
		groups[i] = letters[5*i : 5*i+5]
	}
	return strings.Join(groups, "-")
}

// mostUsed holds the most frequent leaked passwords of at least MinLength characters,
// in lower case, and the product's name. The list stops an attacker's first hundred
// guesses; the bounds on logins stop the next million.
var mostUsed = strings.Fields(`
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
