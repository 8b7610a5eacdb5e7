package password

import (
	"iter"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The most frequent leaked passwords are short. The frequent leaked passwords of
// DefaultMinLength (15) characters are made of a few parts: "123456789012345",
// "passwordpassword", "qwertyuiopasdfgh", "alice1234567890". A small list of parts therefore
// refuses more passwords than a long list of passwords would, and need not be read when the
// server starts.

const (
	// fewParts is the largest number of parts of a password that isFewParts refuses. An
	// attacker has some hundred words and rows to choose each part from.
	fewParts = 4
	// leastPart is the fewest characters of a part. Shorter parts are single characters.
	leastPart = 3
	// longText is the greatest number of characters of a text that isFewParts takes apart:
	// isFewParts treats a longer text as many parts. The bound also limits the work of
	// isFewParts, which grows with the cube of the length.
	longText = 64
)

// rows holds sequences of characters that people type as passwords: neighboring keys of common
// keyboards, the alphabet and digits. A part of a password can follow a row in both directions.
var rows = bothDirections(
	"abcdefghijklmnopqrstuvwxyz", "01234567890", "aabbccddeeffgghhiijjkk", "0011223344556677889900", "13579", "02468",
	"qwertyuiop[]", "asdfghjkl;'", "zxcvbnm,./", "`1234567890-=", "~!@#$%^&*()_+",
	"qwertzuiop", "yxcvbnm", "azertyuiop", "qsdfghjklm", "wxcvbn",
	"1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik,9ol.0p;/", "qazwsxedcrfvtgbyhnujmikolp", "qweasdzxc",
	"1q2w3e4r5t6y7u8i9o0p", "q1w2e3r4t5y6u7i8o9p0", "147258369", "789456123",
)

// words holds the words of the most frequent leaked passwords, in lower case, and the word
// watchword.
var words = runesOf(strings.Fields(`
	watchword password passwort passw0rd p@ssword p@ssw0rd pa$$word pa$$w0rd pa55word pass word
	admin administrator root user login welcome letmein changeme change secret default master
	guest test testing temp hello server service system internal public private access account
	abc123 a1b2c3 trustno1 iloveyou love qwerty asdf zaq1 xsw2
	alexander andrea andrew anthony ashley austin barcelona baseball basketball batman butterfly
	charlie chelsea chocolate computer cookie corvette daniel dragon flower football freedom
	george ginger google harley hunter internet jennifer jessica jonathan jordan joshua killer
	liverpool maggie matrix matthew maverick mercedes metallica michael michelle midnight
	minecraft monkey monster mustang naruto nicole orange pepper phoenix pokemon princess purple
	ranger robert samantha samsung september shadow silver soccer spiderman starwars summer
	sunshine superman thomas tigger victoria whatever william winter yellow
`))

func runesOf(texts []string) [][]rune {
	all := make([][]rune, len(texts))
	for i, text := range texts {
		all[i] = []rune(text)
	}
	return all
}

func bothDirections(texts ...string) [][]rune {
	all := runesOf(texts)
	for _, row := range runesOf(texts) {
		slices.Reverse(row)
		all = append(all, row)
	}
	return all
}

// repeats returns whether text consists of repetitions of a part with fewer than most
// characters. The last repetition of the part can be incomplete.
func repeats(text string, most int) bool {
	t := []rune(text)
	// border[i] is the length of the longest proper prefix of t[:i] that t[:i] also ends
	// with (the failure function of Knuth, Morris and Pratt).
	border := make([]int, len(t)+1)
	for i := 1; i < len(t); i++ {
		b := border[i]
		for b > 0 && t[b] != t[i] {
			b = border[b]
		}
		if t[b] == t[i] {
			b++
		}
		border[i+1] = b
	}
	period := len(t) - border[len(t)]
	return period < most && 2*period <= len(t)
}

// isFewParts returns whether text, without regard to case, is a sequence of at most
// fewParts parts. A part is a word of words, the username or a word in it, a piece of a
// row, a repetition of something earlier in the text, or a single character.
func isFewParts(text, username string) bool {
	t := []rune(strings.ToLower(text))
	if len(t) > longText {
		return false
	}
	known := slices.Concat(words, wordsOf(username))
	parts := make([]int, len(t)+1) // parts[n]: the least number of parts of the first n characters of t
	for i := range parts {
		parts[i] = i // each of the first i characters as a part of its own
	}
	for i := range t {
		for length := range partsAt(t, i, known) {
			parts[i+length] = min(parts[i+length], parts[i]+1)
		}
	}
	return parts[len(t)] <= fewParts
}

// partsAt yields the length of each part (see isFewParts) of t that begins at index i.
func partsAt(t []rune, i int, words [][]rune) iter.Seq[int] {
	return func(yield func(int) bool) {
		longest := 1 // the longest part at i that is in a row or a repetition; every shorter length, down to leastPart, is a part too
		for _, row := range rows {
			for at, r := range row {
				if r == t[i] {
					longest = max(longest, common(row[at:], t[i:]))
				}
			}
		}
		for earlier := range i {
			longest = max(longest, common(t[earlier:], t[i:]))
		}
		if !yield(1) { // a single character is a part
			return
		}
		for length := leastPart; length <= longest; length++ {
			if !yield(length) {
				return
			}
		}
		for _, word := range words {
			if common(word, t[i:]) == len(word) && !yield(len(word)) {
				return
			}
		}
	}
}

// common returns the length of the longest common prefix of a and b.
func common(a, b []rune) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// wordsOf returns a username and the words in the username, in lower case.
func wordsOf(username string) [][]rune {
	name := strings.ToLower(username)
	texts := append(strings.FieldsFunc(name, func(r rune) bool { return !unicode.IsLetter(r) }), name)
	texts = slices.DeleteFunc(texts, func(text string) bool { return utf8.RuneCountInString(text) < leastPart })
	return runesOf(texts)
}
