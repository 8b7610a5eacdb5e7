// Package retry computes how long a client waits before it sends a failed request
// again.
package retry

import (
	"math/rand/v2"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
)

// A Backoff computes the pauses between attempts that fail one after the other. The zero value
// is ready for use. A Backoff is not safe for concurrent use.
type Backoff struct{ delay time.Duration }

// Next returns the pause before the next attempt. The delay begins at first and doubles with
// each call up to longest. The pause is half of the delay, or asked (the wait that the server
// asked for) if asked is longer, and a random part of up to half of the delay. With the random
// part, the clients of a lost server do not return together. If asked is at most longest, Next
// shortens asked where needed, so that the pause is at most longest.
func (b *Backoff) Next(first, longest, asked time.Duration) time.Duration {
	b.delay = min(max(first, 2*b.delay), longest)
	half := b.delay / 2
	if asked <= longest {
		asked = min(asked, longest-half)
	}
	return max(half, asked) + rand.N(half)
}

// Reset makes the next pause begin at the first delay again. Call Reset after an attempt has
// succeeded.
func (b *Backoff) Reset() { b.delay = 0 }

// Asked returns the wait that a server asks for in the google.rpc.RetryInfo of an
// error, at most longest; zero without RetryInfo.
func Asked(err error, longest time.Duration) time.Duration {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return min(info.GetRetryDelay().AsDuration(), longest)
		}
	}
	return 0
}
