// Package throttle bounds guesses at a secret: at one account from everywhere, from one known
// device, and from one source. Package login decides what a guess is, and which account or
// device the guess concerns; throttle itself sees neither passwords nor users.
//
// A [Counter] counts the wrong guesses at each name in a fixed number of buckets in the
// database, shared by all replicas, whether the name exists or not. A name has two buckets, by
// two parts of a MAC of the name, and the bucket with fewer guesses decides. If a name had one
// bucket alone, guesses at made-up names in the same bucket would delay the name.
//
// A bucket (a count of wrong guesses) is stored as a time, ClearAt. Each wrong guess moves
// ClearAt ahead by a unit, to at most [forgets] from now, and the bucket forgets one guess in
// each unit of time. The level of a bucket is the number of units until ClearAt:
//
//	level         0 … FreeTries-1   FreeTries   +1   +2   +3   +4   +5
//	next try in   0                 1 s         2 s  4 s  8 s  16 s 30 s (LongestDelay)
//
// While the level of a name is below FreeTries, a try is admitted at once, and counted if the
// guess was wrong. Tries that run at the same time would all see the same level. Therefore each
// replica runs at most FreeTries - level tries at a name at a time; further tries wait.
//
// From the level FreeTries on, each admitted try is counted before the guess is compared, in
// one transaction with the check: so one try is admitted at a time, on all replicas together.
// The right secret removes only the count of its own try. If the right secret cleared the
// bucket, a user with a name in the same bucket could clear the guesses of an attacker.
//
// While an account is delayed, an attacker that tries all the time would be the first at every
// moment, and would take every admitted try. Therefore a try that has to wait is promised a
// time at which the try is admitted: see promise.go.
package throttle

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/watchword-auth/watchword/internal/spans"
	"github.com/watchword-auth/watchword/internal/store"
)

// ErrTooMany is in every [Refused]: too many wrong guesses were made.
var ErrTooMany = errors.New("too many wrong guesses")

// Refused reports that a try was not admitted, and how long the client should wait.
type Refused struct {
	// RetryAfter tells how long to wait for the promised time. If the try has no promise, a
	// later try can be admitted after RetryAfter at the earliest.
	RetryAfter time.Duration
	// By is the [Number] of the [Counter] that refuses the try; zero: [Sources] refuses the
	// try.
	By Number
	// Full means that every time within the next hour is promised to other networks, or every
	// time that the client's site is allowed to get.
	Full bool
}

func (r *Refused) Error() string {
	if r.Full {
		return ErrTooMany.Error() + ", and too many tries are waiting"
	}
	return fmt.Sprintf("%v; next try in %v", ErrTooMany, r.RetryAfter)
}

// Unwrap returns ErrTooMany.
func (r *Refused) Unwrap() error { return ErrTooMany }

const (
	// forgets is the time in which a bucket (a count of wrong guesses) falls from full to empty
	// without further guesses.
	forgets = time.Hour
	// firstDelay is the delay after FreeTries wrong guesses: short enough for a person that has
	// mistyped a password.
	firstDelay = time.Second
	// buckets is the number of buckets of each of the two halves of a counter. To delay also
	// users with other names than the guessed names, an attacker would have to make FreeTries
	// guesses an hour in most of the buckets: for 10 free tries, some 180 hashes a second.
	buckets = 1 << 16
)

// Limits holds the settings of a [Counter]. Every field is required.
type Limits struct {
	FreeTries    int           // the number of wrong guesses at a name that cause no delay
	LongestDelay time.Duration // the longest time between two tries, however many guesses were wrong
}

// Counter counts wrong guesses at names of one kind. A Counter is safe for concurrent use.
type Counter struct {
	store   *store.Store
	secret  []byte
	number  Number
	limits  Limits
	full    int           // the level at which the delay is LongestDelay
	unit    time.Duration // the time in which a bucket forgets one guess
	flights flights
	failing atomic.Bool // the database could not count a wrong guess: every try is counted before the guess is compared
}

// Number identifies a [Counter]. Counters with different numbers share no bucket. The number of
// a counter never changes: the ids of the buckets in the database contain the number.
type Number int64

// New returns a counter. Replicas on the same database need the same secret. The database
// holds MACs under the secret in place of names.
func New(s *store.Store, secret []byte, number Number, limits Limits) *Counter {
	c := &Counter{store: s, secret: secret, number: number, limits: limits, full: limits.FreeTries}
	for delay := firstDelay; delay < limits.LongestDelay; delay *= 2 {
		c.full++
	}
	c.unit = forgets / time.Duration(c.full)
	return c
}

// Key identifies the name at which a client guesses, and the networks of the client. The zero
// Key belongs to no counter.
type Key struct {
	ids  [2]int64 // the ids of the two buckets of the name, the lower id first
	tags tags     // the tags of a promise to the client
}

// Key returns the key for tries (guesses) at a name from a client. All tries from one network
// have one promised time.
func (c *Counter) Key(name string, from Origin) Key {
	sum := c.mac("bucket", strconv.Itoa(int(c.number)), name)
	var k Key
	for half := range k.ids {
		index := int64(binary.BigEndian.Uint32(sum[4*half:]) % buckets)
		k.ids[half] = int64(c.number)<<32 | int64(half*buckets) | index
	}
	for _, of := range []struct {
		tag           *tag
		kind, network string
	}{{&k.tags.network, "network", from.Network}, {&k.tags.site, "site", from.Site}, {&k.tags.block, "block", from.Block}} {
		copy(of.tag[:], c.mac("promise", strconv.Itoa(int(c.number)), name, of.kind, of.network))
	}
	return k
}

// mac returns the MAC of texts. The length of each text is a part of the authenticated message,
// so that no two lists of texts have the same message.
func (c *Counter) mac(texts ...string) []byte {
	h := hmac.New(sha256.New, c.secret)
	for _, text := range texts {
		h.Write(append(binary.BigEndian.AppendUint64(nil, uint64(len(text))), text...))
	}
	return h.Sum(nil)
}

// Try stands for an admitted try at a name. Call [Try.Claim] just before the guess is compared,
// then [Try.Wrong] or [Try.Right], and End in any case. A Try is for one goroutine.
type Try struct {
	counter *Counter
	key     Key
	running bool             // the counter's flights count the try
	delayed bool             // the name is delayed, so Claim counts
	counted bool             // Claim has counted the try
	added   [2]time.Duration // what Claim has added to the two buckets
}

// Begin admits or refuses a try, which is one guess at a secret. Begin reads the buckets of the
// name, and calls the function also in the same transaction. If too many tries at the same name
// run in this process, Begin waits until a running try has ended: until then the number of
// wrong tries is unknown.
//
// A refused try costs one read of the database. A refused try that is promised a time also
// costs one write.
//
// Errors: a *[Refused]; the errors of also and of the store; ctx.Err() if ctx ends.
func (c *Counter) Begin(ctx context.Context, key Key, also func(*store.Tx) error) (*Try, error) {
	ctx, admitting := spans.Start(ctx, "throttle.admit")
	defer admitting.End()
	for {
		running := c.flights.join(key.ids)
		var now time.Time
		var pair pair
		err := c.store.Read(ctx, func(tx *store.Tx) (err error) {
			if pair, err = tx.ThrottleBuckets(key.ids); err != nil {
				return err
			}
			now = tx.Now()
			return also(tx)
		})
		if err != nil {
			c.flights.leave(key.ids)
			return nil, err
		}
		switch level := c.level(pair, now); {
		case level >= c.limits.FreeTries:
			c.flights.leave(key.ids)
			return c.beginDelayed(ctx, key, pair, now)
		case level+running <= c.limits.FreeTries:
			return &Try{counter: c, key: key, running: true}, nil
		}
		if err := c.flights.wait(ctx, key.ids); err != nil {
			return nil, err
		}
	}
}

// beginDelayed decides about a try at a name that is delayed.
func (c *Counter) beginDelayed(ctx context.Context, key Key, pair pair, now time.Time) (*Try, error) {
	try := &Try{counter: c, key: key, delayed: true}
	d := c.decide(pair, key.tags, now)
	if d.promise {
		var err error
		if d, err = try.decideAndStore(ctx, false); err != nil {
			return nil, err
		}
	}
	if !d.admitted {
		return nil, c.refused(d)
	}
	return try, nil
}

// decideAndStore decides about a try at a delayed name, in a transaction that writes:
// decideAndStore stores a promise, and counts the try if count is true and the try is admitted.
func (t *Try) decideAndStore(ctx context.Context, count bool) (d decision, err error) {
	ctx, deciding := spans.Start(ctx, "throttle.decide")
	defer deciding.End()
	c := t.counter
	err = c.store.Write(ctx, func(tx *store.Tx) error {
		pair, err := tx.LockThrottleBuckets(t.key.ids)
		if err != nil {
			return err
		}
		now := tx.Now()
		d = c.decide(pair, t.key.tags, now)
		switch {
		case d.admitted && count:
			t.added = c.count(&pair, now)
			keep(&pair, t.key.tags, now, c.limits.LongestDelay)
		case d.promise:
			keep(&pair, t.key.tags, now, c.limits.LongestDelay)
			give(&pair, promise{t.key.tags, d.at})
		default:
			return nil
		}
		return set(tx, &pair)
	})
	return d, err
}

func set(tx *store.Tx, p *pair) error {
	return errors.Join(tx.SetThrottleBucket(&p[0]), tx.SetThrottleBucket(&p[1]))
}

// Claim counts the try before the guess is compared, if the name is delayed, or if the
// database could not count an earlier wrong guess. If no count is needed, Claim does nothing.
// Call Claim directly before the comparison: a try that is counted, and then ends before the
// comparison, uses up one of the owner's tries.
//
// Errors: a *[Refused] if another try was faster; errors of the store.
func (t *Try) Claim(ctx context.Context) error {
	if !t.delayed && !t.counter.failing.Load() {
		return nil
	}
	d, err := t.decideAndStore(ctx, true)
	switch {
	case err != nil:
		return err
	case !d.admitted:
		return t.counter.refused(d)
	}
	t.counted = true
	t.counter.failing.Store(false)
	return nil
}

// countTime bounds the time that [Try.Wrong] takes to count. The store itself gives up after 5
// s.
const countTime = 10 * time.Second

// Wrong counts a wrong guess, unless Claim has counted the try. The count is on disk when
// Wrong returns nil. Until Wrong has returned, the caller must hide from the client that the
// guess was wrong. Wrong counts the guess even if ctx ends: otherwise a client that goes away
// could guess without being counted.
//
// After an error, Claim counts every try before the comparison, until a count is stored: so
// each guess is counted before the comparison, or refused. Only the tries that were compared
// when the database failed stay uncounted, at most FreeTries at a name in each process.
//
// Errors: errors of the store.
func (t *Try) Wrong(ctx context.Context) error {
	if t.counted {
		return nil
	}
	ctx, counting := spans.Start(ctx, "throttle.count")
	defer counting.End()
	c := t.counter
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), countTime)
	defer cancel()
	err := c.store.Write(ctx, func(tx *store.Tx) error {
		pair, err := tx.LockThrottleBuckets(t.key.ids)
		if err != nil {
			return err
		}
		c.count(&pair, tx.Now())
		return set(tx, &pair)
	})
	if err != nil {
		c.failing.Store(true)
	}
	return err
}

// Right removes from both buckets what Claim has counted, in the transaction that the right
// guess allows.
func (t *Try) Right(tx *store.Tx) error {
	if t.added == ([2]time.Duration{}) {
		return nil
	}
	pair, err := tx.LockThrottleBuckets(t.key.ids)
	if err != nil {
		return err
	}
	for i := range pair {
		pair[i].ClearAt = pair[i].ClearAt.Add(-t.added[i])
	}
	return set(tx, &pair)
}

// End ends the try, and lets the next waiting try at the same name begin. Later calls of End do
// nothing.
func (t *Try) End() {
	if t.running {
		t.running = false
		t.counter.flights.leave(t.key.ids)
	}
}

// pair holds the two buckets of a name.
type pair = [2]store.ThrottleBucket

// level returns the level of a name (how many wrong guesses are counted): the level of the
// bucket that counts fewer.
func (c *Counter) level(p pair, now time.Time) int {
	return min(c.levelOf(p[0].ClearAt, now), c.levelOf(p[1].ClearAt, now))
}

func (c *Counter) levelOf(clearAt, now time.Time) int {
	left := clearAt.Sub(now)
	if left <= 0 {
		return 0
	}
	// A guess raises the level by one until the bucket has forgotten the guess completely. The
	// level stays within c.full also if the clock has been set back.
	return min(int((left+c.unit-1)/c.unit), c.full)
}

// count counts a try in both buckets of a name, and sets the time (NextAt) of the next try at
// the name. added is what the count has added to each bucket: less than a unit if the bucket
// was nearly full. If the stored time is further in the future than this counter ever sets a
// time, the time was stored before the clock was set back, and count replaces the time.
func (c *Counter) count(p *pair, now time.Time) (added [2]time.Duration) {
	most := now.Add(time.Duration(c.full) * c.unit)
	for i := range p {
		before := earlier(later(p[i].ClearAt, now), most)
		p[i].ClearAt = earlier(before.Add(c.unit), most)
		added[i] = p[i].ClearAt.Sub(before)
	}
	level := c.level(*p, now)
	if level < c.limits.FreeTries {
		return added
	}
	next := now.Add(c.delay(level))
	for i := range p {
		if p[i].NextAt.Before(next) || p[i].NextAt.After(now.Add(c.limits.LongestDelay)) {
			p[i].NextAt = next
		}
	}
	return added
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// delay returns how long the next try at a name must wait, after a try has brought the name to
// a level of FreeTries or more wrong guesses.
func (c *Counter) delay(level int) time.Duration {
	delay := firstDelay
	for ; level > c.limits.FreeTries && delay < c.limits.LongestDelay; level-- {
		delay *= 2
	}
	return min(delay, c.limits.LongestDelay)
}

// Prune deletes the rows of buckets that have forgotten every guess (level 0), in small steps.
func Prune(ctx context.Context, s *store.Store) error {
	const step = 200 // rows in one transaction, which keeps the one writer of SQLite busy for about a millisecond
	after, more := int64(0), true
	for more {
		err := s.Write(ctx, func(tx *store.Tx) error {
			clear, err := tx.Aged(0) // Aged counts the ticks of the servers too, so that a clock that is ahead for a moment clears nothing
			if err == nil {
				after, more, err = tx.PruneThrottle(after, step, clear)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
