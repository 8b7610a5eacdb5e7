package throttle

import (
	"encoding/binary"
	"slices"
	"time"
)

// A promise tells a client network at what time its next try at a delayed name is admitted.
// Promises follow these rules:
//
//   - A network has at most one promise for a name. A network that tries again before the
//     promised time gets the same time again.
//   - Promised times are in the order in which the networks tried, LongestDelay apart, and at
//     most [ahead] from now. If every time is promised, the answer has [Refused.Full].
//   - The promised times of a site (the network of one owner), and of a block (the network of a
//     provider), are bounded. The n-th promise of a site must be within the n-th part of
//     [ahead], and a block can have [blockShare] times as many promises as a site. While every
//     time within [ahead] is promised, only a site without a promise gets the next time. By
//     these bounds, a neighbour of the owner needs about ten networks to keep the owner's site
//     out, and one provider's network never takes the whole hour.
//   - At the promised time the try is admitted, whatever other tries do. The promise ends
//     LongestDelay after the promised time, when the next promised time begins.
//   - As long as a name has a promise, only promised tries are admitted. The tries at the name
//     are therefore LongestDelay apart on average, however many networks an attacker has.
//
// The database stores the promises of a name in both buckets (counts of wrong guesses) of the
// name, 20 bytes for each promise, so that the number of times within [ahead] bounds a bucket.
// A promise consists of three tags and a time. A tag is a MAC of the name and a network, so
// that the promises of two names in one bucket can be told apart.

const (
	// ahead bounds how far in the future a promised time is: no person waits longer for a try.
	ahead = time.Hour
	// blockShare is the number of promises that a provider's network ([Origin].Block) can have
	// anywhere within ahead: with 120 times in the hour, an attacker needs ten blocks to take
	// every time.
	blockShare = 12
)

// Origin names the networks of a client: one client's own ([caller.Source.Network]), the
// network that one owner commonly has ([caller.Source.Site]), and the network of a provider
// ([caller.Source.Block]).
type Origin struct{ Network, Site, Block string }

const tagBytes = 4

type tag [tagBytes]byte

// tags names the network, the site and the block of the client to which a promise belongs.
type tags struct{ network, site, block tag }

type promise struct {
	tags
	at time.Time
}

const promiseBytes = 3*tagBytes + 8

// decision says whether a try at a delayed name is admitted, and otherwise when the client
// should try again.
type decision struct {
	admitted bool
	promise  bool      // the client gets a new promise for the time at
	full     bool      // every time is promised to other tries
	at, now  time.Time // the client should try again at the time at
}

// refused returns the error for a try that the decision d does not admit.
func (c *Counter) refused(d decision) *Refused {
	// A client that waits for RetryAfter must not come a moment early.
	return &Refused{By: c.number, RetryAfter: d.at.Sub(d.now).Truncate(time.Millisecond) + time.Millisecond, Full: d.full}
}

// decide decides about a try (a guess) by the two buckets of the name and by the tags of the
// client's networks (mine). decide changes nothing.
func (c *Counter) decide(p pair, mine tags, now time.Time) decision {
	longest := c.limits.LongestDelay
	lists := [2][]promise{current(p[0].Promises, now, longest), current(p[1].Promises, now, longest)}
	promises := slices.Concat(lists[:]...)
	for _, promised := range promises {
		if promised.tags == mine {
			return decision{admitted: !promised.at.After(now), at: promised.at, now: now}
		}
	}
	// The next try is possible at the earlier NextAt of the two buckets, and LongestDelay from
	// now at the latest: a later NextAt was stored before the clock was set back.
	next := earlier(earlier(p[0].NextAt, p[1].NextAt), now.Add(longest))
	free := c.level(p, now) < c.limits.FreeTries
	if free || len(promises) == 0 && !next.After(now) {
		return decision{admitted: true}
	}
	for _, promised := range promises {
		next = later(next, promised.at.Add(longest))
	}
	next = later(next, now)
	if room := next.Add(-share(lists, mine)); room.After(now) {
		return decision{full: true, at: room, now: now}
	}
	return decision{promise: true, at: next, now: now}
}

// share returns how far in the future the next promised time of a client's site and block is
// allowed to be.
func share(lists [2][]promise, mine tags) time.Duration {
	site := held(lists, func(p promise) bool { return p.site == mine.site })
	block := held(lists, func(p promise) bool { return p.block == mine.block })
	return min(ahead, ahead/time.Duration(site+1), blockShare*ahead/time.Duration(block+1))
}

// held returns the number of promises at a name for which counts returns true. A promise is in
// both buckets of a name. If the numbers in the two buckets differ, held returns the greater
// number.
func held(lists [2][]promise, counts func(promise) bool) (n int) {
	for _, list := range lists {
		ofList := 0
		for _, promised := range list {
			if counts(promised) {
				ofList++
			}
		}
		n = max(n, ofList)
	}
	return n
}

// current decodes the promises in a bucket, and returns the promises with a time that has not
// passed.
func current(encoded []byte, now time.Time, longest time.Duration) (list []promise) {
	for ; len(encoded) >= promiseBytes; encoded = encoded[promiseBytes:] {
		us := int64(binary.BigEndian.Uint64(encoded[3*tagBytes:]))
		p := promise{tags{tag(encoded), tag(encoded[tagBytes:]), tag(encoded[2*tagBytes:])}, time.UnixMicro(us).UTC()}
		if p.at.Add(longest).After(now) && !p.at.After(now.Add(ahead)) { // without promises from before the clock was set back
			list = append(list, p)
		}
	}
	return list
}

// keep removes two kinds of promises from both buckets of a name: the promise of the client's
// own network, and promises with a time that has passed.
func keep(p *pair, mine tags, now time.Time, longest time.Duration) {
	for i := range p {
		list := current(p[i].Promises, now, longest)
		p[i].Promises = nil
		for _, promised := range list {
			if promised.tags != mine {
				p[i].Promises = promised.append(p[i].Promises)
			}
		}
	}
}

// give adds a new promise of a time to both buckets of a name.
func give(p *pair, promised promise) {
	for i := range p {
		p[i].Promises = promised.append(p[i].Promises)
	}
}

func (p promise) append(to []byte) []byte {
	for _, t := range []tag{p.network, p.site, p.block} {
		to = append(to, t[:]...)
	}
	return binary.BigEndian.AppendUint64(to, uint64(p.at.UnixMicro()))
}
