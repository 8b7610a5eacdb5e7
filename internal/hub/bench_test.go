package hub_test

import (
	"crypto/rand"
	"testing"

	"github.com/watchword-auth/watchword/internal/hub"
)

// drain reads up to the heartbeat behind a snapshot.
func drain(b *testing.B, s *source, at []byte) (resume []byte, sent, largest int) {
	ctx := b.Context()
	w, err := s.Watch(ctx, hub.Peer{Name: rand.Text()}, at) // each stream has a peer of its own: snapshots to one peer have a least distance
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	for {
		encoded, err := w.Next(ctx)
		if err != nil {
			b.Fatal(err)
		}
		sent, largest = sent+len(encoded), max(largest, len(encoded))
		if len(encoded) > 1000 {
			continue // a chunk, which costs the hub nothing to decode
		}
		m := decode(b, encoded)
		if len(m.GetResume()) > 0 {
			resume = m.GetResume()
		}
		if m.GetHeartbeat() != nil {
			return resume, sent, largest
		}
	}
}

// BenchmarkWatchAMillion measures a watcher that needs a snapshot of a million
// revocations, and a watcher that resumes.
func BenchmarkWatchAMillion(b *testing.B) {
	s := newSource()
	s.fill(1_000_000)
	at, _, _ := drain(b, s, nil)
	for name, from := range map[string][]byte{"snapshot": nil, "resume": at} {
		b.Run(name, func(b *testing.B) {
			var sent, largest int
			for b.Loop() {
				_, sent, largest = drain(b, s, from)
			}
			b.ReportMetric(float64(sent), "bytes-sent")
			b.ReportMetric(float64(largest), "bytes-largest-message")
		})
	}
}

// BenchmarkWatch measures the opening of a stream, mostly under the hub's lock: with
// a newest chunk that is nearly full, and with a long part of the ring to resume
// from.
func BenchmarkWatch(b *testing.B) {
	ctx := b.Context()
	s := newSource()
	s.end("first")
	resume, _, _ := drain(b, s, nil)
	for range 3999 {
		s.fill(1)
	}
	for name, from := range map[string][]byte{"snapshot": nil, "resume": resume} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				w, err := s.Watch(ctx, hub.Peer{Name: rand.Text()}, from) // each stream has a peer of its own: snapshots to one peer have a least distance
				if err != nil {
					b.Fatal(err)
				}
				w.Close()
			}
		})
	}
}
