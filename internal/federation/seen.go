package federation

import (
	"crypto"
	"crypto/sha256"
	"sync"

	"github.com/watchword-auth/watchword/internal/token"
)

const (
	// maxSeenLength bounds the assertions that seen remembers, in bytes: the tokens of
	// Kubernetes and of CI systems have 1 to 2 KiB.
	maxSeenLength = 4 << 10
	// seenBytes bounds the memory of each of the two halves of seen, as [checked.size] counts the
	// memory: a half has room for about 450 tokens of Kubernetes.
	seenBytes = 2 << 20
	// seenEach is the memory of a remembered assertion, in bytes, without the claims.
	seenEach = 512
	// objectBytes and valueBytes are the memory of an object with one member, and of another
	// value in the claims, in bytes, without the text.
	objectBytes, valueBytes = 340, 40
)

// checked is an assertion with a right form and a right signature. A checked never changes.
type checked struct {
	says   token.Foreign
	key    crypto.PublicKey // the key that checked the signature
	claims map[string]any
}

// stillCounts reports whether the issuer still has the key that checked the signature. Each
// fetch of the keys makes new objects for the same keys.
func (c *checked) stillCounts(s *source) bool {
	key, err := s.key(c.says)
	same, ok := key.(interface{ Equal(crypto.PublicKey) bool })
	return err == nil && ok && same.Equal(c.key)
}

// size returns the memory that a remembered assertion takes, in bytes. text is the length of the
// assertion's text. Decoded claims can take twenty times the memory of their text.
func (c *checked) size(text int) int { return seenEach + text + sizeOf(c.claims) }

// sizeOf returns the memory of a claim's value, in bytes, without the memory of texts. The parser
// bounds the depth of objects.
func sizeOf(value any) (bytes int) {
	switch value := value.(type) {
	case map[string]any:
		bytes = objectBytes
		for _, member := range value {
			bytes += sizeOf(member)
		}
	case []any:
		bytes = valueBytes
		for _, element := range value {
			bytes += sizeOf(element)
		}
	default:
		bytes = valueBytes
	}
	return bytes
}

// seen remembers the assertions that were exchanged lately, so that the signature of each is
// checked once: a service exchanges the same token of its platform every few minutes. Whatever
// can change is judged again at each exchange: the issuer, its keys, the claims, the times and
// the bindings.
//
// Only an assertion with a bound account is put in, so forged assertions and tokens that
// strangers get from a public issuer put nothing out. seen keeps a hash in place of the
// assertion, which is a secret. The zero value is ready. A seen is safe for concurrent use.
type seen struct {
	mu           sync.Mutex
	newer, older map[[sha256.Size]byte]*checked // a full newer becomes older, and the earlier older is forgotten
	used         int                            // the memory of the entries of newer, in bytes
}

// get returns an assertion; nil if seen has forgotten the assertion. An assertion in use stays.
func (s *seen) get(raw string) *checked {
	if len(raw) > maxSeenLength {
		return nil
	}
	id := sha256.Sum256([]byte(raw))
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.newer[id]; c != nil {
		return c
	}
	c := s.older[id]
	if c != nil {
		s.putLocked(id, c, len(raw))
	}
	return c
}

// put remembers an assertion.
func (s *seen) put(raw string, c *checked) {
	if len(raw) > maxSeenLength {
		return
	}
	id := sha256.Sum256([]byte(raw))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.putLocked(id, c, len(raw))
}

func (s *seen) putLocked(id [sha256.Size]byte, c *checked, length int) {
	size := c.size(length)
	if s.newer[id] == nil {
		s.used += size
	}
	if s.newer == nil || s.used > seenBytes {
		s.newer, s.older, s.used = map[[sha256.Size]byte]*checked{}, s.newer, size
	}
	s.newer[id] = c
}
