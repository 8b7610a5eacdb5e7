package throttle

import (
	"encoding/binary"
	"slices"
	"time"
)

// Promises of tries at a delayed name:
//
//   - A site (an IPv4 /24, an IPv6 /48) has at most one promise for a name. A site that asks
//     again before its time gets the same answer again.
//   - Promised times are in the order in which the sites asked, LongestDelay apart, and at
//     most [ahead] from now. If there is no free time, the answer says so: [Refused.Full].
//   - At its time a promised try is admitted, whatever other tries do. The time is over
//     when the next one begins, LongestDelay later.
//   - As long as there is a promise, no try without a promise is admitted. So tries are
//     LongestDelay apart on average, however many sites an attacker has.
//
// The promises of a name are in both buckets, 16 bytes each, so that a bucket is bounded by
// the number of times within [ahead]. A promise is a tag and a time. The tag is a MAC of
// the name and the site, so names in the same bucket do not get each other's promises.

// ahead bounds how far ahead a promise is: a person waits no longer.
const ahead = time.Hour

const tagBytes = 8

type tag [tagBytes]byte

type promise struct {
	tag tag
	at  time.Time
}

const promiseBytes = tagBytes + 8

// decision says what happens to a try at a delayed name.
type decision struct {
	admitted bool
	promise  bool      // the try gets a new promise for at
	full     bool      // there is no promise for the try
	at, now  time.Time // when the try may come back
}

func (d decision) refused() *Refused {
	// A client that waits for RetryAfter must not come a moment early.
	return &Refused{RetryAfter: d.at.Sub(d.now).Truncate(time.Millisecond) + time.Millisecond, Full: d.full}
}

// decide decides about a try with a tag. decide changes nothing.
func (c *Counter) decide(p pair, own tag, now time.Time) decision {
	longest := c.limits.LongestDelay
	promises := slices.Concat(current(p[0].Promises, now, longest), current(p[1].Promises, now, longest))
	for _, promised := range promises {
		if promised.tag == own {
			return decision{admitted: !promised.at.After(now), at: promised.at, now: now}
		}
	}
	// The earlier NextAt of the two buckets counts, and LongestDelay from now at the latest: a
	// later NextAt was stored before the clock was set back.
	next := earlier(earlier(p[0].NextAt, p[1].NextAt), now.Add(longest))
	free := c.level(p, now) < c.limits.FreeTries
	if free || len(promises) == 0 && !next.After(now) {
		return decision{admitted: true}
	}
	for _, promised := range promises {
		next = later(next, promised.at.Add(longest))
	}
	next = later(next, now)
	if room := next.Add(-ahead); room.After(now) {
		return decision{full: true, at: room, now: now}
	}
	return decision{promise: true, at: next, now: now}
}

// current decodes the promises in a bucket that have not passed.
func current(encoded []byte, now time.Time, longest time.Duration) (list []promise) {
	for ; len(encoded) >= promiseBytes; encoded = encoded[promiseBytes:] {
		us := int64(binary.BigEndian.Uint64(encoded[tagBytes:]))
		p := promise{tag(encoded), time.UnixMicro(us).UTC()}
		if p.at.Add(longest).After(now) && !p.at.After(now.Add(ahead)) { // the clock may have been set back
			list = append(list, p)
		}
	}
	return list
}

// keep removes the promise with a tag, and the promises that have passed.
func keep(p *pair, own tag, now time.Time, longest time.Duration) {
	for i := range p {
		list := current(p[i].Promises, now, longest)
		p[i].Promises = nil
		for _, promised := range list {
			if promised.tag != own {
				p[i].Promises = promised.append(p[i].Promises)
			}
		}
	}
}

// give adds a promise to both buckets.
func give(p *pair, promised promise) {
	for i := range p {
		p[i].Promises = promised.append(p[i].Promises)
	}
}

func (p promise) append(to []byte) []byte {
	return binary.BigEndian.AppendUint64(append(to, p.tag[:]...), uint64(p.at.UnixMicro()))
}
