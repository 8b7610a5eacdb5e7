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
	// seenBytes bounds the memory of each of the two halves of seen. A remembered assertion
	// takes about seenEach bytes and twice the length of the assertion: a half has room for
	// 700 tokens of Kubernetes.
	seenBytes = 2 << 20
	seenEach  = 1 << 10
)

// checked is an assertion with a right form and a right signature. A checked never changes.
type checked struct {
	says   token.Foreign
	key    crypto.PublicKey // that checked the signature
	claims map[string]any
}

// stillCounts reports whether the issuer still has the key that checked the signature. Each
// fetch of the keys makes new objects for the same keys.
func (c *checked) stillCounts(s *source) bool {
	key, err := s.key(c.says)
	same, ok := key.(interface{ Equal(crypto.PublicKey) bool })
	return err == nil && ok && same.Equal(c.key)
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
	used         int                            // bytes of newer
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
	if s.newer[id] == nil {
		s.used += seenEach + 2*length
	}
	if s.newer == nil || s.used > seenBytes {
		s.newer, s.older, s.used = map[[sha256.Size]byte]*checked{}, s.newer, seenEach+2*length
	}
	s.newer[id] = c
}
