package password

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"runtime"
	"sync"
	"time"

	"golang.org/x/crypto/argon2"
)

// ErrOverloaded says that more passwords wait for their hash than the pool
// admits. It comes at once; [Pool.RetryAfter] says when to come again.
var ErrOverloaded = errors.New("too many passwords to hash")

// Caller says who waits for a hash.
type Caller int

const (
	// Stranger is anyone who has shown nothing yet. The zero value, and every
	// value that has no name, is a stranger.
	Stranger Caller = iota
	// SignedIn is a caller whose token has been verified. The reserved places
	// are theirs, so that a flood of logins does not keep users from changing
	// their passwords, nor an admin from helping.
	SignedIn
)

// Config sets a pool's bounds. The zero value is a good one.
type Config struct {
	// Params is the cost of new hashes and of an unknown user. Zero fields
	// mean Default's; what is out of bounds is moved to the nearest bound.
	Params Params
	// Parallel is how many hashes run at a time. Zero or less means all cores
	// but one, shared by Params.Threads, and at least one: verifying a token
	// takes microseconds and must not stand behind a flood of logins.
	Parallel int
	// Queue is how many callers may wait beyond those. Zero means 64 for each
	// hash that runs at a time: at the default cost and 20 to 40 ms a hash,
	// the last of them waits one to three seconds, within the deadlines that
	// clients commonly set. A longer queue would hash for callers who have
	// gone. Less than zero means that nobody waits.
	Queue int
	// Reserved is how many places of the queue strangers cannot take. Zero
	// means an eighth of the queue, less than zero none.
	Reserved int
}

// withDefaults replaces every zero by what it means.
func (c Config) withDefaults() Config {
	c.Params = c.Params.within()
	if c.Parallel <= 0 {
		c.Parallel = max(1, (runtime.GOMAXPROCS(0)-1)/int(c.Params.Threads))
	}
	c.Queue = max(0, cmp.Or(c.Queue, 64*c.Parallel))
	c.Reserved = min(max(0, cmp.Or(c.Reserved, c.Queue/8)), c.Queue)
	return c
}

// Pool hashes and compares passwords, so many at a time and no more.
//
// A caller takes a place, or is refused at once; in its place it waits, first
// come, first served, for one of the slots in which hashes run. It is one queue
// for everyone: a reserved place spares its holder the refusal, not the wait.
// Each hash runs in its caller's goroutine.
//
// A pool holds nothing that needs closing. Its methods may be called from any
// number of goroutines. The zero Pool is full: it refuses everyone.
type Pool struct {
	params Params
	derive func(password, salt []byte, time, memory uint32, threads uint8, keyLen uint32) []byte
	decoy  record // what an unknown user's password is compared with

	// slots holds one element for each hash that runs. Its capacity bounds the
	// memory in use to Parallel times Params.Memory (or what older hashes
	// ask); the runtime wakes those who wait to send in the order they came.
	//
	// argon2 allocates afresh for every hash, so the heap holds dead blocks too
	// until the collector runs, which at GOGC=100 it does after one generation:
	// with 300 callers at the default 19 MiB, the heap's objects peaked at
	// 38 MiB for one slot and 76 MiB for two, the process at 46 and 104 MiB.
	// Plan for two to three times Parallel times Params.Memory.
	slots chan struct{}

	places            int // for those who wait and those who hash, together
	placesOfStrangers int

	mu        sync.Mutex
	taken     int           // of places, by anyone
	strangers int           // of taken
	average   time.Duration // of the latest hashes; zero before the first
}

// NewPool makes a pool. See [Config] for what zero means.
func NewPool(cfg Config) *Pool {
	cfg = cfg.withDefaults()
	return &Pool{
		params:            cfg.Params,
		derive:            argon2.IDKey,
		decoy:             newRecord(cfg.Params),
		slots:             make(chan struct{}, cfg.Parallel),
		places:            cfg.Parallel + cfg.Queue,
		placesOfStrangers: cfg.Parallel + cfg.Queue - cfg.Reserved,
	}
}

// newRecord has a fresh salt, and zeros where the tag goes.
func newRecord(params Params) record {
	r := record{params: params, salt: make([]byte, saltLength), tag: make([]byte, tagLength)}
	_, _ = rand.Read(r.salt) // never fails: the program ends where there is no randomness
	return r
}

// Hash returns pw's hash in the PHC string format, with a salt of its own:
// "$argon2id$v=19$m=...,t=...,p=...$salt$tag".
//
// Errors: [ErrOverloaded]; ctx's own, also when it ends while the hash runs
// (which nothing can interrupt); [ErrMalformed] for the zero Password.
func (p *Pool) Hash(ctx context.Context, who Caller, pw Password) (string, error) {
	r := newRecord(p.params)
	tag, err := p.run(ctx, who, pw, r)
	if err != nil {
		return "", err
	}
	r.tag = tag
	return r.encode(), nil
}

// Compare says whether pw is the password that phc was made of, and if so,
// whether phc should be replaced by a new Hash, since the pool's parameters
// have risen.
//
// An empty phc is a user who does not exist: it costs what a hash of this
// pool's costs and is never a match, so that the time tells nobody which names
// exist. A hash with older parameters costs what those cost: after the settings
// rise, a user who has not logged in since can be told apart until they do.
//
// Errors: as for [Pool.Hash], and one for a phc that is malformed or asks for
// more than the pool would ever spend, which is a fault of the store and not a
// mismatch.
func (p *Pool) Compare(ctx context.Context, who Caller, pw Password, phc string) (match, rehash bool, err error) {
	r, known := p.decoy, phc != ""
	if known {
		if r, err = decode(phc); err != nil {
			return false, false, err
		}
	}
	tag, err := p.run(ctx, who, pw, r)
	if err != nil {
		return false, false, err
	}
	match = subtle.ConstantTimeCompare(tag, r.tag) == 1 && known
	return match, match && r.weakerThan(p.params), nil
}

// run derives pw's tag with the parameters, salt and length of r, in a slot.
// It is the only place where a hash is computed.
func (p *Pool) run(ctx context.Context, who Caller, pw Password, r record) ([]byte, error) {
	if pw.reveal() == "" {
		return nil, ErrMalformed
	}
	if err := p.enter(ctx, who); err != nil {
		return nil, err
	}
	defer p.leave(who)
	start := time.Now()
	tag := p.derive([]byte(pw.reveal()), r.salt, r.params.Time, r.params.Memory, r.params.Threads, uint32(len(r.tag)))
	p.observe(time.Since(start))
	// Whoever gave up must not act on a late answer.
	return tag, ctx.Err()
}

// enter takes a place and then a slot, or neither.
func (p *Pool) enter(ctx context.Context, who Caller) error {
	if !p.takePlace(who) {
		return ErrOverloaded
	}
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		p.freePlace(who)
		return ctx.Err()
	}
	// With both ready select takes either, and nobody waits for this hash.
	if err := ctx.Err(); err != nil {
		p.leave(who)
		return err
	}
	return nil
}

// leave gives the slot back first: the other way round, one more than Queue
// could wait for a moment.
func (p *Pool) leave(who Caller) {
	<-p.slots
	p.freePlace(who)
}

func (p *Pool) takePlace(who Caller) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.places {
		return false
	}
	if who != SignedIn {
		if p.strangers >= p.placesOfStrangers {
			return false
		}
		p.strangers++
	}
	p.taken++
	return true
}

func (p *Pool) freePlace(who Caller) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	if who != SignedIn {
		p.strangers--
	}
}

// observe moves the average an eighth of the way towards the latest hash, so
// that it follows the load of the machine within a dozen hashes.
func (p *Pool) observe(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.average == 0 {
		p.average = took
		return
	}
	p.average += (took - p.average) / 8
}

// RetryAfter estimates how long the pool takes for everyone in it now, which is
// what to tell a caller who was refused: the next place is free much sooner,
// but all who are refused would come back for it. It lies between 100 ms and
// 10 s.
func (p *Pool) RetryAfter() time.Duration {
	const guess = 50 * time.Millisecond // a hash, before one was measured
	p.mu.Lock()
	defer p.mu.Unlock()
	all := time.Duration(p.taken) * cmp.Or(p.average, guess) / time.Duration(max(1, cap(p.slots)))
	return min(max(all, 100*time.Millisecond), 10*time.Second)
}
