package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// tailLength is the length of a search text, in bytes. The end of a secret is searched: a log
// with the end of a token leaks the token's signature, and the beginning of a token is the
// same in many tokens.
const tailLength = 20

// secretSet holds search texts for secrets: the end of each secret, as it is and in the
// encodings in which a program may write it. A suite has thousands of secrets, so [find]
// reads a text once, and looks up each position by its first bytes.
type secretSet struct {
	mu     sync.RWMutex
	count  int
	forms  map[uint64][]form // the search texts, by their first 8 bytes
	filter [1 << 18]uint64   // a bit for each hash of 8 bytes that begin a form: most positions need no map
	tiny   []form            // shorter than 8 bytes
}

// form is a search text, and what the text shows.
type form struct{ text, kind, encoding string }

func (f form) String() string { return f.kind + " " + f.encoding }

func newSecretSet() *secretSet { return &secretSet{forms: map[uint64][]form{}} }

// secrets holds the passwords, tokens and keys of all tests. No process may log a secret,
// and no watchword process may get a secret as an argument.
var secrets = newSecretSet()

// noteSecret adds s to secrets and returns s.
func noteSecret(s string) string {
	secrets.note(s)
	return s
}

// leaks returns which of the secrets are in a text.
func leaks(text string) []string { return secrets.find([]byte(text)) }

// note adds the forms of a secret. An empty secret has none.
func (s *secretSet) note(secret string) {
	if secret == "" {
		return
	}
	kind, raw := "a password", []byte(nil)
	switch {
	case strings.HasPrefix(secret, "eyJ"):
		kind, raw = "an access token", unbase64(secret[strings.LastIndexByte(secret, '.')+1:])
	case strings.HasPrefix(secret, "wwrt_"):
		kind, raw = "a refresh token", unbase64(strings.TrimPrefix(secret, "wwrt_"))
	case strings.HasPrefix(secret, "wwmk1_"):
		kind, raw = "a master key", unbase64(strings.TrimPrefix(secret, "wwmk1_"))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	s.addLocked(form{secret, kind, "as it is"})
	s.addEncodedLocked(kind, []byte(secret))
	for encoding, escaped := range map[string]string{
		"in JSON": jsonText(secret), "in a URL's query": url.QueryEscape(secret), "in a URL's path": url.PathEscape(secret),
		"quoted": strings.Trim(strconv.Quote(secret), `"`), "quoted in ASCII": strings.Trim(strconv.QuoteToASCII(secret), `"`),
	} {
		if escaped != secret {
			s.addLocked(form{escaped, kind, encoding})
		}
	}
	if len(raw) >= 16 {
		s.addLocked(form{string(raw), kind, "in bytes"})
		s.addEncodedLocked(kind+"'s bytes", raw)
	}
}

// addEncodedLocked adds forms in hex and base64. In base64 the text depends on the number of
// bytes before the secret, so there are three; a text of whole triples does not depend on the
// bytes after it.
func (s *secretSet) addEncodedLocked(kind string, secret []byte) {
	tail := secret[max(0, len(secret)-24):]
	lower := hex.EncodeToString(tail)
	s.addLocked(form{lower, kind, "in hex"})
	s.addLocked(form{strings.ToUpper(lower), kind, "in hex"})
	for skip := range min(3, len(tail)) {
		triples := tail[skip : skip+(len(tail)-skip)/3*3]
		standard, forURLs := base64.StdEncoding.EncodeToString(triples), base64.URLEncoding.EncodeToString(triples)
		s.addLocked(form{standard, kind, "in base64"})
		if forURLs != standard {
			s.addLocked(form{forURLs, kind, "in base64url"})
		}
	}
}

// addLocked adds the end of a form. A form of less than six bytes would be found by chance.
func (s *secretSet) addLocked(f form) {
	f.text = strings.Clone(f.text[max(0, len(f.text)-tailLength):])
	switch {
	case len(f.text) < 6:
	case len(f.text) < 8:
		s.tiny = append(s.tiny, f)
	default:
		key := binary.LittleEndian.Uint64([]byte(f.text))
		if same := func(g form) bool { return g.text == f.text }; !slices.ContainsFunc(s.forms[key], same) {
			s.forms[key] = append(s.forms[key], f)
		}
		s.filter[bit(key)/64] |= 1 << (bit(key) % 64)
	}
}

// bit returns the place of 8 bytes in a filter of 2^24 bits.
func bit(key uint64) uint64 { return key * 0x9e3779b97f4a7c15 >> 40 }

// find returns what is in a text, with the surroundings. The race detector, which would make the
// search of hundreds of MB many times slower, leaves out this function: the lock is enough.
//
//go:norace
func (s *secretSet) find(text []byte) (found []string) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for i := range max(0, len(text)-7) {
		key := binary.LittleEndian.Uint64(text[i:])
		if s.filter[bit(key)/64]&(1<<(bit(key)%64)) == 0 {
			continue
		}
		for _, f := range s.forms[key] {
			if strings.HasPrefix(string(text[i:min(len(text), i+tailLength)]), f.text) {
				found = append(found, fmt.Sprintf("the end of %v, in %q", f, text[max(0, i-60):min(len(text), i+60)]))
			}
		}
	}
	for _, f := range s.tiny {
		if i := bytes.Index(text, []byte(f.text)); i >= 0 {
			found = append(found, fmt.Sprintf("%v, in %q", f, text[max(0, i-60):min(len(text), i+60)]))
		}
	}
	return found
}

// size returns the number of secrets.
func (s *secretSet) size() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// jsonText returns a text as in a JSON string.
func jsonText(text string) string {
	data, err := json.Marshal(text)
	if err != nil {
		panic(err) // a string has no such errors
	}
	return strings.Trim(string(data), `"`)
}
