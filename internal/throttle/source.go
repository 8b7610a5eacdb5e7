package throttle

import (
	"hash/maphash"
	"sync"
	"time"
)

// allowance sets the burst: a source can send at once as many wrong guesses as the rate allows
// in the time allowance. The default rate, five a second, lets 100 wrong passwords through at
// once, and 150 in ten seconds.
const allowance = 20 * time.Second

// slots is the number of slots (8 bytes each) in each of the two halves of [Sources], which
// together take 512 KiB.
const slots = 1 << 15

// Sources bounds the wrong guesses of each source ([caller.Source.Network]), at whatever
// names. Sources counts in memory, so each replica has a separate bound.
//
// A source has a token bucket: a burst of guesses at once, and then the rate. A slot holds a
// token bucket as one time. Each wrong guess moves the time ahead by interval, and a source is
// allowed to guess while one more guess keeps the time within allowance of now. A source has
// two slots, and the earlier of the two times decides. With two slots, wrong guesses of other
// sources delay a source only if other sources fill both slots of the source.
//
// Sources is safe for concurrent use.
type Sources struct {
	interval time.Duration // the time between two guesses at the allowed rate; 0: no bound
	seed     maphash.Seed
	start    time.Time

	mu   sync.Mutex
	debt [2][slots]time.Duration // the time in each slot, counted from start
}

// NewSources returns a bound of perSecond wrong guesses a second; 0 means no bound.
func NewSources(perSecond int) *Sources {
	s := &Sources{seed: maphash.MakeSeed(), start: time.Now()}
	if perSecond > 0 {
		s.interval = time.Second / time.Duration(perSecond)
	}
	return s
}

// Check returns nil if a source is allowed to guess.
//
// Errors: a *[Refused].
func (s *Sources) Check(source string) error {
	if s.interval == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a, b := s.slotsLocked(source)
	if wait := min(*a, *b) - time.Since(s.start) - allowance + s.interval; wait > 0 {
		return &Refused{RetryAfter: wait}
	}
	return nil
}

// Wrong counts a wrong guess from a source, in both slots of the source.
func (s *Sources) Wrong(source string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, b := s.slotsLocked(source)
	now := time.Since(s.start)
	for _, debt := range []*time.Duration{a, b} {
		// The bound of 2*allowance keeps a source from being refused for long after many
		// guesses that began together.
		*debt = min(max(*debt, now)+s.interval, now+2*allowance)
	}
}

func (s *Sources) slotsLocked(source string) (a, b *time.Duration) {
	sum := maphash.String(s.seed, source)
	return &s.debt[0][sum%slots], &s.debt[1][sum>>32%slots]
}
