//go:build !linux

package clock

import "time"

// suspended returns by how much the machine's clock has run further than the monotonic clock,
// which stands still during a suspension. Setting the machine's clock ahead causes the same
// difference. [Elapsed] then runs ahead by the difference, so an [Estimate] of the server's
// clock is too high until the server's next answer.
func suspended(start time.Time) time.Duration {
	now := time.Now()
	return now.Round(0).Sub(start.Round(0)) - now.Sub(start)
}

// Boot returns an empty id: this system has no id of its boot.
func Boot() (id string, since time.Duration) { return "", 0 }
