package password

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// Params sets the cost of an argon2id hash (RFC 9106). If a field is zero, the value of the
// field in [Default] applies.
type Params struct {
	Memory  uint32 // KiB
	Time    uint32 // passes over the memory
	Threads uint8  // lanes (parallel threads); each lane keeps a core busy
}

// Default comes from OWASP's Password Storage Cheat Sheet: the cost for machines with
// little memory. Do not change Default; pass other Params in [Config].
var Default = Params{Memory: 19456, Time: 2, Threads: 1}

// A new hash has a salt and a tag (the result of argon2id) of these lengths, in bytes (RFC
// 9106, section 4).
const (
	saltLength = 16 // bytes
	tagLength  = 32 // bytes
)

// The bounds for a stored hash keep a corrupt or hostile row of the database from using up the
// machine's memory or time. Hashes from other software are within the bounds, such as those of
// libsodium's setting MODERATE (256 MiB in three passes).
const (
	maxMemory = 1 << 18 // KiB
	maxWork   = 1 << 20 // KiB times passes: about a second on a single core
	maxPasses = 1 << 10
	maxLanes  = 16

	minSaltLength = 8  // bytes, RFC 9106 section 3.1
	minTagLength  = 16 // bytes: a wrong password could match a shorter tag by chance
	maxPartLength = 64 // bytes, for the salt and for the tag

	// maxPHCLength bounds the whole text of a stored hash, in bytes. The longest numbers and
	// parts add up to 222 bytes.
	maxPHCLength = 256
)

// Footprint returns the memory of the process for each hash that runs at a time, in bytes:
// three times Memory. argon2 allocates new memory for every hash, and the memory of a hash that
// has ended is unused until the garbage collector runs. Measured at GOGC=100: 3.5 times Memory
// with one hash at a time, falling to 2 with many. A garbage collection after each hash would
// bring the factor to 2, but takes a quarter of the throughput with a heap of 2 MiB, and half
// with 100 MiB.
func (p Params) Footprint() int64 { return 3 * int64(p.Memory) << 10 }

// clamped returns the parameters p with the defaults in place of zeros, and with the nearest
// bound in place of each value out of bounds. With clamped parameters, decode accepts every
// hash that a [Pool] makes.
func (p Params) clamped() Params {
	p.Memory = cmp.Or(p.Memory, Default.Memory)
	p.Time = cmp.Or(p.Time, Default.Time)
	p.Threads = min(cmp.Or(p.Threads, Default.Threads), maxLanes)
	p.Memory = min(max(p.Memory, 8*uint32(p.Threads)), maxMemory) // 8 KiB for each lane: RFC 9106
	p.Time = min(p.Time, maxPasses, maxWork/p.Memory)
	return p
}

// cost returns an attacker's cost for a guess: the memory, times the time for which the memory
// is held. The single number orders all settings. With a single order, two replicas with
// different settings do not replace each other's hashes at every login. The number of threads
// is left out: threads shorten a hash and leave an attacker's cost as it is.
func (p Params) cost() uint64 {
	return uint64(p.Memory) * uint64(p.Memory) * uint64(p.Time)
}

// missing returns the parameters of the hashes that [Turn.Compare] computes after a comparison
// with an old hash with the parameters p: all together take as long as one hash with the
// parameters now. The time of argon2 is nearly proportional to the work: the memory times the
// passes. A pass through less memory is up to a tenth faster, since more of the memory is in
// the processor's caches, and a first pass is slower than others. Therefore the passes of the
// further hashes go through as much memory as now does, as far as possible.
func (p Params) missing(now Params) (decoys []Params) {
	have, want := p.Memory*p.Time, now.Memory*now.Time // work in KiB times passes, at most maxWork
	if have >= want {
		return nil
	}
	passes, rest := (want-have)/now.Memory, (want-have)%now.Memory
	if passes > 0 {
		decoys = append(decoys, Params{Memory: now.Memory, Time: passes, Threads: now.Threads})
	}
	if rest >= 8*uint32(now.Threads) { // argon2 needs at least 8 KiB for each lane
		decoys = append(decoys, Params{Memory: rest, Time: 1, Threads: now.Threads})
	}
	return decoys
}

// record holds the parts of a stored password hash: the parameters, the salt and the tag. The
// salt and the tag must stay out of errors and logs.
type record struct {
	params Params
	salt   []byte
	tag    []byte
}

// errCorrupt means that the password hash in a row of the database is damaged. The error is not
// exported, because a caller can only return it: the operator must set a new password for the
// user.
var errCorrupt = errors.New("stored password hash is malformed or out of bounds")

// encode returns the text of a stored hash, in the PHC string format.
func (r record) encode() string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s",
		r.params.Memory, r.params.Time, r.params.Threads,
		b64.EncodeToString(r.salt), b64.EncodeToString(r.tag))
}

// decode parses a string in the PHC string format, and accepts only the strings that encode
// returns. Sscanf and base64 accept signs, leading zeros and line breaks: so decode compares
// phc with encode's output, and refuses a phc that differs.
//
// Errors: errCorrupt for every refused string.
func decode(phc string) (record, error) {
	if len(phc) > maxPHCLength {
		return record{}, errCorrupt
	}
	var r record
	var secrets string
	_, errScan := fmt.Sscanf(phc, "$argon2id$v=19$m=%d,t=%d,p=%d$%s",
		&r.params.Memory, &r.params.Time, &r.params.Threads, &secrets)
	salt, tag, _ := strings.Cut(secrets, "$")
	var errSalt, errTag error
	r.salt, errSalt = base64.RawStdEncoding.DecodeString(salt)
	r.tag, errTag = base64.RawStdEncoding.DecodeString(tag)
	if errors.Join(errScan, errSalt, errTag) != nil || !r.inBounds() || r.encode() != phc {
		return record{}, errCorrupt
	}
	return r, nil
}

func (r record) inBounds() bool {
	zero := r.params.Memory == 0 || r.params.Time == 0 || r.params.Threads == 0
	return !zero && r.params.clamped() == r.params &&
		minSaltLength <= len(r.salt) && len(r.salt) <= maxPartLength &&
		minTagLength <= len(r.tag) && len(r.tag) <= maxPartLength
}

// weakerThan reports whether a guess at the password of the stored hash r costs an attacker
// less than a guess at a new hash with the parameters now.
func (r record) weakerThan(now Params) bool {
	return r.params.cost() < now.cost() || len(r.salt) < saltLength || len(r.tag) < tagLength
}
