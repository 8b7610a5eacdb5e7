package count_test

import (
	"maps"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/count"
)

// A bucket holds every duration up to its bound, the bound included.
func TestDurations(t *testing.T) {
	var d count.Durations
	for _, took := range []time.Duration{0, time.Millisecond, time.Millisecond + 1, 3 * time.Second, time.Minute} {
		d.Add(took)
	}
	h := d.Read()
	want := map[float64]uint64{0.001: 2, 0.005: 3, 0.025: 3, 0.1: 3, 0.5: 3, 2.5: 3, 10: 4}
	if h.Count != 5 || h.Seconds != 63.002000001 || !maps.Equal(h.Buckets, want) {
		t.Errorf("%+v, want the buckets %v", h, want)
	}
}
