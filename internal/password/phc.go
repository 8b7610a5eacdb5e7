package password

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// Params are the cost of one argon2id hash (RFC 9106). A field that is zero
// means [Default]'s.
type Params struct {
	Memory  uint32 // KiB
	Time    uint32 // passes over the memory
	Threads uint8  // lanes, each of which keeps a core busy
}

// Default is the cost that OWASP's Password Storage Cheat Sheet recommends
// where memory matters. Read it, don't set it: give a Pool its own Params.
var Default = Params{Memory: 19456, Time: 2, Threads: 1}

// What new hashes have (RFC 9106, section 4).
const (
	saltLength = 16 // bytes
	tagLength  = 32 // bytes
)

// The most and the least that a stored hash may ask for. A corrupt or hostile
// row must not be able to take the machine, and hashes made elsewhere should
// still pass: libsodium's MODERATE, 256 MiB in three passes, does.
const (
	maxMemory = 1 << 18 // KiB
	maxWork   = 1 << 20 // KiB times passes: under a second of one core or so
	maxPasses = 1 << 10
	maxLanes  = 16

	minSaltLength = 8  // bytes, RFC 9106 section 3.1
	minTagLength  = 16 // bytes; fewer can be met by luck
	maxPartLength = 64 // bytes, of the salt and of the tag

	// Of the whole string: the longest numbers and parts come to 222 bytes.
	maxPHCLength = 256
)

// within fills in defaults and moves what is out of bounds to the nearest bound,
// so that a pool never writes a hash that it would refuse to read.
func (p Params) within() Params {
	p.Memory = cmp.Or(p.Memory, Default.Memory)
	p.Time = cmp.Or(p.Time, Default.Time)
	p.Threads = min(cmp.Or(p.Threads, Default.Threads), maxLanes)
	p.Memory = min(max(p.Memory, 8*uint32(p.Threads)), maxMemory) // 8 a lane: RFC 9106
	p.Time = min(p.Time, maxPasses, maxWork/p.Memory)
	return p
}

// cost is what an attacker pays for a guess: memory held, times how long. One
// number, so that of two settings at most one is the weaker, and two replicas
// that are set differently do not rehash each other's hashes for ever. Threads
// don't count: they make a hash sooner, not dearer.
func (p Params) cost() uint64 {
	return uint64(p.Memory) * uint64(p.Memory) * uint64(p.Time)
}

// record is a stored hash, taken apart. Its salt and tag never go into an error.
type record struct {
	params Params
	salt   []byte
	tag    []byte
}

// errCorrupt is not exported: callers can do nothing about it but fail.
var errCorrupt = errors.New("stored password hash is malformed or out of bounds")

// encode writes the record in the PHC string format.
func (r record) encode() string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s",
		r.params.Memory, r.params.Time, r.params.Threads,
		b64.EncodeToString(r.salt), b64.EncodeToString(r.tag))
}

// decode reads what encode writes, and nothing else. The steps are lenient, as
// the standard library's are (signs, leading zeros, line breaks in base64);
// that the record encodes to the same string again is what makes it strict.
func decode(phc string) (record, error) {
	if len(phc) > maxPHCLength {
		return record{}, errCorrupt
	}
	parts := strings.Split(phc, "$")
	if len(parts) != 6 {
		return record{}, errCorrupt
	}
	var r record
	_, errParams := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d",
		&r.params.Memory, &r.params.Time, &r.params.Threads)
	var errSalt, errTag error
	r.salt, errSalt = base64.RawStdEncoding.DecodeString(parts[4])
	r.tag, errTag = base64.RawStdEncoding.DecodeString(parts[5])
	if errors.Join(errParams, errSalt, errTag) != nil || !r.inBounds() || r.encode() != phc {
		return record{}, errCorrupt
	}
	return r, nil
}

func (r record) inBounds() bool {
	zero := r.params.Memory == 0 || r.params.Time == 0 || r.params.Threads == 0
	return !zero && r.params.within() == r.params &&
		minSaltLength <= len(r.salt) && len(r.salt) <= maxPartLength &&
		minTagLength <= len(r.tag) && len(r.tag) <= maxPartLength
}

// weakerThan says whether a hash made now, with these parameters, would be
// dearer to guess than r.
func (r record) weakerThan(now Params) bool {
	return r.params.cost() < now.cost() || len(r.salt) < saltLength || len(r.tag) < tagLength
}
