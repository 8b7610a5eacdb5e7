// Package count counts durations in memory, as plain numbers that any library for metrics
// can report.
package count

import (
	"sync/atomic"
	"time"
)

// bounds holds the upper bounds of the buckets of [Durations]: from a look-up in memory to a
// call that has used up every deadline. Few buckets keep the page of metrics short.
var bounds = [...]time.Duration{
	time.Millisecond, 5 * time.Millisecond, 25 * time.Millisecond, 100 * time.Millisecond,
	500 * time.Millisecond, 2500 * time.Millisecond, 10 * time.Second,
}

// Durations counts durations in buckets. The zero Durations is ready for use. Durations is
// safe for concurrent use. An Add takes two atomic additions, so Durations is for events
// that take microseconds at least.
type Durations struct {
	buckets [len(bounds) + 1]atomic.Uint64 // the last bucket has no upper bound
	sum     atomic.Int64
}

// Add counts a duration.
func (d *Durations) Add(took time.Duration) {
	i := 0
	for i < len(bounds) && took > bounds[i] {
		i++
	}
	d.buckets[i].Add(1)
	d.sum.Add(int64(took))
}

// Histogram holds the durations that a [Durations] has counted until a moment.
type Histogram struct {
	Count   uint64
	Seconds float64            // the sum of the durations
	Buckets map[float64]uint64 // the number of durations up to each upper bound; the bound is in seconds
}

// Read returns the durations counted so far.
func (d *Durations) Read() Histogram {
	h := Histogram{Buckets: map[float64]uint64{}}
	for i := range d.buckets {
		h.Count += d.buckets[i].Load()
		if i < len(bounds) {
			h.Buckets[bounds[i].Seconds()] = h.Count
		}
	}
	h.Seconds = time.Duration(d.sum.Load()).Seconds()
	return h
}
