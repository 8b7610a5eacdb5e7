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

// ErrOverloaded means that all places in the [Pool] are taken. The pool returns
// ErrOverloaded at once; [Pool.RetryAfter] estimates how long a client should wait.
var ErrOverloaded = errors.New("too many passwords to hash")

// Caller decides whether a hash may use the pool's reserved places.
type Caller int

const (
	// Stranger has no verified access token, and may not use reserved places. Every
	// value except SignedIn counts as Stranger.
	Stranger Caller = iota
	// SignedIn has a verified access token, and may use reserved places. So users can
	// still change passwords during a flood of logins, and an admin can help.
	SignedIn
)

// Config sets a pool's bounds. The zero value gives safe defaults.
type Config struct {
	// Params sets the cost of new hashes, and of a comparison for an unknown
	// user. A zero field takes the value in Default. NewPool moves a value out
	// of bounds to the nearest bound.
	Params Params
	// Parallel bounds the hashes running at a time. Zero or less means: (cores - 1)
	// divided by Params.Threads, at least 1. The free core verifies tokens, so
	// the microseconds for a token do not wait behind a flood of logins.
	Parallel int
	// Queue bounds the callers waiting for a running hash to end. Zero means 64
	// for each of Parallel: at the default cost, a hash takes 20 to 40 ms, and
	// the last caller in the queue waits one to three seconds. Clients commonly
	// set longer deadlines. A longer queue would hash for clients past the
	// deadline. Less than zero means no queue.
	Queue int
	// Reserved holds the number of places in the queue for SignedIn callers
	// alone. Zero means an eighth of the queue, less than zero means none.
	Reserved int
}

// withDefaults replaces zero and out-of-bounds values, as the fields describe.
func (c Config) withDefaults() Config {
	c.Params = c.Params.clamped()
	if c.Parallel <= 0 {
		c.Parallel = max(1, (runtime.GOMAXPROCS(0)-1)/int(c.Params.Threads))
	}
	c.Queue = max(0, cmp.Or(c.Queue, 64*c.Parallel))
	c.Reserved = min(max(0, cmp.Or(c.Reserved, c.Queue/8)), c.Queue)
	return c
}

// Pool hashes and compares passwords, with a bound on the hashes running at a time.
//
// A caller first takes a place. If all places are taken, the pool returns
// [ErrOverloaded] at once. Then the caller waits for a slot, in order of arrival.
// SignedIn and Stranger callers wait in the same queue: a reserved place prevents the
// refusal, and the wait is the same. Each hash runs in the caller's goroutine.
//
// A pool needs no Close. All methods may be called from several goroutines at once.
// The zero Pool has no place, and so refuses every caller.
type Pool struct {
	params Params
	derive func(password, salt []byte, time, memory uint32, threads uint8, keyLen uint32) []byte
	decoy  record // compared with the password for an unknown user

	// slots holds an element for each running hash. The capacity bounds the memory
	// in use to Parallel times Params.Memory; a stored hash with higher parameters
	// takes more. The runtime wakes goroutines blocked in a send in order of arrival.
	//
	// argon2 allocates new memory for every hash, so the heap also holds unused
	// blocks until the garbage collector runs; at GOGC=100, about as much again.
	// With 300 callers at the default 19 MiB, the heap's objects peaked at 38 MiB
	// for one slot and 76 MiB for two slots, the process at 46 and 104 MiB. Plan
	// for two to three times Parallel times Params.Memory.
	slots chan struct{}

	places            int // for waiting callers and running hashes together
	placesOfStrangers int // of places, open to Stranger callers

	mu        sync.Mutex    // guards the fields below
	taken     int           // places in use
	strangers int           // of taken, in use by Stranger callers
	average   time.Duration // of the latest hashes; zero before the first hash
}

// NewPool returns a pool. [Config] describes the defaults.
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

// newRecord returns a record with a new random salt and a tag of zeros.
func newRecord(params Params) record {
	r := record{params: params, salt: make([]byte, saltLength), tag: make([]byte, tagLength)}
	_, _ = rand.Read(r.salt) // always fills the salt: without randomness, Go ends the program
	return r
}

// Hash returns a hash of pw with a new random salt, in the PHC string format:
// "$argon2id$v=19$m=...,t=...,p=...$salt$tag".
//
// Errors: [ErrOverloaded] if all places are taken; ctx.Err() if ctx ends;
// [ErrMalformed] if pw is the zero Password. A running hash cannot be interrupted: if
// ctx ends during the hash, Hash returns ctx.Err() after the hash.
func (p *Pool) Hash(ctx context.Context, caller Caller, pw Password) (string, error) {
	r := newRecord(p.params)
	tag, err := p.run(ctx, caller, pw, r)
	if err != nil {
		return "", err
	}
	r.tag = tag
	return r.encode(), nil
}

// Compare returns match if phc is a hash of pw. Compare returns rehash if match is
// true and phc costs less than the pool's parameters: then the caller should replace
// phc by a new Hash.
//
// The caller passes an empty phc for an unknown user. Compare then spends the time of
// a new hash and returns no match, so the time does not show whether a user exists. A
// stored hash with older parameters takes the time of the older parameters. So after
// the parameters rise, the time shows that a user exists until the user's next login.
//
// Errors: those of [Pool.Hash]; an error without a sentinel if phc is malformed or
// asks for more than the package's bounds, a fault of the stored row.
func (p *Pool) Compare(ctx context.Context, caller Caller, pw Password, phc string) (match, rehash bool, err error) {
	r, known := p.decoy, phc != ""
	if known {
		if r, err = decode(phc); err != nil {
			return false, false, err
		}
	}
	tag, err := p.run(ctx, caller, pw, r)
	if err != nil {
		return false, false, err
	}
	match = subtle.ConstantTimeCompare(tag, r.tag) == 1 && known
	return match, match && r.weakerThan(p.params), nil
}

// run computes the tag of pw with r's parameters, salt and tag length, in a slot. No
// other code computes a hash.
func (p *Pool) run(ctx context.Context, caller Caller, pw Password, r record) ([]byte, error) {
	if pw.reveal() == "" {
		return nil, ErrMalformed
	}
	if err := p.enter(ctx, caller); err != nil {
		return nil, err
	}
	defer p.leave(caller)
	start := time.Now()
	tag := p.derive([]byte(pw.reveal()), r.salt, r.params.Time, r.params.Memory, r.params.Threads, uint32(len(r.tag)))
	p.observe(time.Since(start))
	// If ctx has ended during the hash, the caller must get the error.
	return tag, ctx.Err()
}

// enter takes a place in the pool and then waits for a slot, in which the hash may run.
// On an error, the caller holds neither.
func (p *Pool) enter(ctx context.Context, caller Caller) error {
	if !p.takePlace(caller) {
		return ErrOverloaded
	}
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		p.freePlace(caller)
		return ctx.Err()
	}
	// If both cases are ready, select may choose the slot. ctx has ended, so the
	// hash would be wasted.
	if err := ctx.Err(); err != nil {
		p.leave(caller)
		return err
	}
	return nil
}

// leave frees the slot before the place. In the other order, Queue+1 callers could
// wait for a moment.
func (p *Pool) leave(caller Caller) {
	<-p.slots
	p.freePlace(caller)
}

func (p *Pool) takePlace(caller Caller) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.places {
		return false
	}
	if caller != SignedIn {
		if p.strangers >= p.placesOfStrangers {
			return false
		}
		p.strangers++
	}
	p.taken++
	return true
}

func (p *Pool) freePlace(caller Caller) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	if caller != SignedIn {
		p.strangers--
	}
}

// observe moves the average by an eighth of the distance to the latest hash's
// duration. So the average follows the machine's load within a dozen hashes.
func (p *Pool) observe(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.average == 0 {
		p.average = took
		return
	}
	p.average += (took - p.average) / 8
}

// RetryAfter estimates the time to serve every caller now in the pool, clamped to
// 100 ms to 10 s. A refused client should wait for this time: a place becomes free
// sooner, but all refused clients would retry for the same place.
func (p *Pool) RetryAfter() time.Duration {
	const guess = 50 * time.Millisecond // for a hash, before the first measurement
	p.mu.Lock()
	defer p.mu.Unlock()
	all := time.Duration(p.taken) * cmp.Or(p.average, guess) / time.Duration(max(1, cap(p.slots)))
	return min(max(all, 100*time.Millisecond), 10*time.Second)
}
