package password

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/watchword-auth/watchword/internal/count"
	"github.com/watchword-auth/watchword/internal/share"
	"github.com/watchword-auth/watchword/internal/spans"
)

// ErrOverloaded means that the [Pool] does not hash the password: the queue admits no further
// caller of this peer (a network or a signed-in user), or the caller's deadline comes before
// the end of the hash. The pool returns ErrOverloaded without hashing; [Pool.RetryAfter]
// estimates how long a client should wait.
var ErrOverloaded = errors.New("too many passwords to hash")

// errEnded reports that the calling code has used a [Turn] after [Turn.End], which is a fault
// in that code.
var errEnded = errors.New("the turn in the hashing pool has ended")

// Config sets the bounds of a [Pool]. The zero value gives safe defaults.
type Config struct {
	// Params sets the cost of new hashes, and of a comparison for an unknown user. If a field
	// is zero, the value of the field in [Default] applies. NewPool moves a value out of bounds
	// to the nearest bound.
	Params Params
	// Memory bounds the memory of the hashes that run at a time, in bytes: as many hashes run
	// at a time as Memory holds [Params.Footprint], at least one. A Memory of zero or less
	// means no bound.
	Memory int64
	// Parallel bounds the number of hashes that run at a time. A Parallel of zero or less
	// means: (cores - 1) divided by Params.Threads, at least 1. During a flood of logins, the
	// free core verifies access tokens without a wait.
	Parallel int
	// Queue bounds the number of callers that wait for the right to run a hash (a slot). A
	// Queue of zero or less means 64 times Parallel: at the default cost, a hash takes 20 to 40
	// ms, and the last caller in the queue waits one to three seconds. Clients commonly set
	// longer deadlines than three seconds. A longer queue would hash for clients past the
	// deadline.
	Queue int
	// Reserved is the number of places in the queue that [Admin] callers alone can take. A
	// Reserved of zero means an eighth of the queue, less than zero means no such place.
	Reserved int
	// Known holds the client networks from which the server has received a proof, such as a
	// right password. When the queue is full, a waiting password of the network with the most
	// waiting passwords leaves the queue; if all networks have equally many, a password of an
	// unknown network leaves the queue. See [share.Known]. If Known is nil, no network is
	// known.
	Known *share.Known
	// Policy holds the rules for new passwords, for [Pool.CheckPolicy].
	Policy Policy
}

// withDefaults returns c with valid values in place of zero and out-of-bounds values, as the
// comments of the fields say.
func (c Config) withDefaults() Config {
	c.Params = c.Params.clamped()
	if c.Parallel <= 0 {
		c.Parallel = max(1, (runtime.GOMAXPROCS(0)-1)/int(c.Params.Threads))
	}
	if c.Memory > 0 {
		c.Parallel = int(max(1, min(int64(c.Parallel), c.Memory/c.Params.Footprint())))
	}
	if c.Queue <= 0 {
		c.Queue = 64 * c.Parallel
	}
	c.Reserved = min(max(0, cmp.Or(c.Reserved, c.Queue/8)), c.Queue)
	return c
}

// Pool hashes and compares passwords, with a bound on the hashes running at a time.
//
// A caller takes a [Turn] by [Pool.Enter], which gives a place in a queue of bounded length, or
// returns [ErrOverloaded] at once. The first hash of the turn waits for a slot, the right to
// run a hash. Each hash runs in the caller's goroutine.
//
// The callers of one peer wait in order of arrival. The pool serves one caller of each peer
// after the other: after each hash, a peer stands behind all other peers. Package share divides
// the places of the queue among the peers: when the queue is full, a newcomer takes the place
// of the newest caller of the peer with most callers in the queue, and if all peers have
// equally many, lots decide. A waiting caller of a signed-in user counts half as much as a
// waiting caller of a network of strangers.
//
// A pool needs no Close. A Pool is safe for concurrent use. The zero Pool has an empty queue
// without any place, and so refuses every caller.
type Pool struct {
	params Params
	policy Policy
	derive func(password, salt []byte, time, memory uint32, threads uint8, keyLen uint32) []byte
	decoy  record // the hash that Compare uses for an unknown user

	parallel int         // the number of slots: bounds running
	places   *share.Pool // the places of the queue for all callers
	reserve  *share.Pool // the places of the queue for [Admin] callers alone

	refused       atomic.Uint64 // the number of turns that got ErrOverloaded
	waits, hashes count.Durations

	mu      sync.Mutex       // guards the fields below, and the fields of peers and turns
	peers   map[Caller]*peer // the peers that have a turn in the pool
	order   []*peer          // the peers in the map peers; the first peer with a turn that is ready runs the next hash
	waiting int              // the number of turns that do not run a hash yet
	running int              // the number of turns with a slot, the right to run a hash
	average time.Duration    // the average time of the latest hashes; zero before the first hash
}

// NewPool returns a pool with the bounds of cfg. [Config] describes the defaults.
func NewPool(cfg Config) *Pool {
	cfg = cfg.withDefaults()
	places := func(n int) *share.Pool { return share.NewPool(share.Limits{Places: n, PerPeer: n, Known: cfg.Known}) }
	return &Pool{
		params: cfg.Params, policy: cfg.Policy, derive: argon2.IDKey, decoy: newRecord(cfg.Params),
		parallel: cfg.Parallel, places: places(cfg.Queue - cfg.Reserved), reserve: places(cfg.Reserved),
		peers: map[Caller]*peer{},
	}
}

// CheckPolicy checks a new password by the policy of the pool; see [Policy.Check].
func (p *Pool) CheckPolicy(pw Password, username string) error { return p.policy.Check(pw, username) }

// Parallel returns the number of hashes that run at a time.
func (p *Pool) Parallel() int { return p.parallel }

// newRecord returns the record of a hash that is still to be computed: with a new random salt,
// and a tag of zeros.
func newRecord(params Params) record {
	r := record{params: params, salt: make([]byte, saltLength), tag: make([]byte, tagLength)}
	_, _ = rand.Read(r.salt) // always fills the salt: without randomness, Go ends the program
	return r
}

// Hash takes a turn, hashes pw by [Turn.Hash], and ends the turn.
//
// Errors: errors of [Pool.Enter] and [Turn.Hash].
func (p *Pool) Hash(ctx context.Context, caller Caller, pw Password) (string, error) {
	turn, err := p.Enter(ctx, caller)
	if err != nil {
		return "", err
	}
	defer turn.End()
	return turn.Hash(ctx, pw)
}

// Hash returns a hash of pw with a new random salt, in the PHC string format:
// "$argon2id$v=19$m=...,t=...,p=...$salt$tag".
//
// Errors: [ErrOverloaded] if the turn has lost its place in the queue, or if ctx's deadline
// comes before the end of the hash; ctx.Err() if ctx ends; [ErrMalformed] if pw is the zero
// Password. A running hash cannot be interrupted: if ctx ends during the hash, Hash returns
// ctx.Err() after the hash.
func (t *Turn) Hash(ctx context.Context, pw Password) (string, error) {
	r := newRecord(t.pool.params)
	tag, err := t.run(ctx, pw, r, nil)
	if err != nil {
		return "", err
	}
	r.tag = tag
	return r.encode(), nil
}

// Compare returns match if phc is a hash of pw. Compare returns rehash if match is true and phc
// costs less than the pool's parameters: then the caller should store a new hash in place of
// phc, from [Turn.Hash] of the same turn.
//
// The caller passes an empty phc for an unknown user. For an empty phc, Compare spends the time
// of a new hash and returns no match, so the time does not show whether a user exists. If phc
// takes less work than a new hash, Compare spends the rest on further hashes, and throws the
// results away. If phc takes more work, after the pool's parameters were lowered, Compare takes
// longer, and the time shows that the user exists.
//
// Errors: errors of [Turn.Hash]; an error without a sentinel if phc is malformed or
// asks for more than the package's bounds, a fault of the stored row.
func (t *Turn) Compare(ctx context.Context, pw Password, phc string) (match, rehash bool, err error) {
	r, known := t.pool.decoy, phc != ""
	if known {
		if r, err = decode(phc); err != nil {
			return false, false, err
		}
	}
	tag, err := t.run(ctx, pw, r, r.params.missing(t.pool.params))
	if err != nil {
		return false, false, err
	}
	match = subtle.ConstantTimeCompare(tag, r.tag) == 1 && known
	return match, match && r.weakerThan(t.pool.params), nil
}

// run computes the tag of the password pw with r's parameters, salt and tag length. run then
// computes a hash for each of decoys, and ignores the results. No other code computes a hash.
func (t *Turn) run(ctx context.Context, pw Password, r record, decoys []Params) ([]byte, error) {
	if pw.reveal() == "" {
		return nil, ErrMalformed
	}
	if err := t.Wait(ctx); err != nil {
		return nil, err
	}
	_, hashing := spans.Start(ctx, "password.hash")
	defer hashing.End()
	start := time.Now()
	tag := t.pool.derive([]byte(pw.reveal()), r.salt, r.params.Time, r.params.Memory, r.params.Threads, uint32(len(r.tag)))
	for _, d := range decoys {
		t.pool.derive([]byte(pw.reveal()), r.salt, d.Time, d.Memory, d.Threads, tagLength)
	}
	t.pool.observe(time.Since(start))
	// If ctx has ended during the hash, the caller of run must get ctx.Err and not the hash.
	return tag, ctx.Err()
}

// observe moves the average time of a hash by an eighth of the distance to the duration d of
// the latest hash. The average therefore follows the machine's load within a dozen hashes.
func (p *Pool) observe(d time.Duration) {
	p.hashes.Add(d)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.average == 0 {
		p.average = d
		return
	}
	p.average += (d - p.average) / 8
}

// averageLocked returns the average time of a hash; 50 ms before the first hash was measured.
func (p *Pool) averageLocked() time.Duration { return cmp.Or(p.average, 50*time.Millisecond) }

// RetryAfter estimates the time in which the pool serves every caller that is in the pool now:
// at least 100 ms and at most 10 s. A refused client should wait for this time: the queue
// admits a caller sooner, but all refused clients would then come back at the same time.
func (p *Pool) RetryAfter() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := time.Duration(p.waiting+p.running) * p.averageLocked() / time.Duration(max(1, p.parallel))
	return min(max(all, 100*time.Millisecond), 10*time.Second)
}

// Stats holds the numbers of a pool, for metrics.
type Stats struct {
	Running, Parallel int             // the number of hashes that run, and the number that can run at a time
	Queue, Reserve    share.Stats     // the places in the queue for all callers, and the places for [Admin] callers alone
	Refused           uint64          // the number of turns that got [ErrOverloaded], also because of a deadline
	Waits             count.Histogram // how long callers have waited for a hash, from the first call of [Turn.Wait]
	Hashes            count.Histogram // the times of single hashes and comparisons
}

// Stats returns the numbers of the pool.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	running := p.running
	p.mu.Unlock()
	return Stats{
		Running: running, Parallel: p.parallel, Queue: p.places.Stats(), Reserve: p.reserve.Stats(),
		Refused: p.refused.Load(), Waits: p.waits.Read(), Hashes: p.hashes.Read(),
	}
}
