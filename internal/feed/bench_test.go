package feed_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/watchword-auth/watchword/internal/feed"
)

// What a watcher costs that comes for a snapshot of a million revocations, and
// one that resumes.
func BenchmarkWatchAMillion(b *testing.B) {
	ctx := context.Background()
	f := openFeed(b, openStore(b, filepath.Join(b.TempDir(), "f.db")))
	feed.Fill(f, 1_000_000)
	drain := func(b *testing.B, at []byte) (resume []byte, sent, largest int) {
		w, err := f.Watch(ctx, "peer", at)
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
				continue // a chunk, which costs the feed nothing to decode
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
	at, _, _ := drain(b, nil)
	for name, from := range map[string][]byte{"snapshot": nil, "resume": at} {
		b.Run(name, func(b *testing.B) {
			var sent, largest int
			for b.Loop() {
				_, sent, largest = drain(b, from)
			}
			b.ReportMetric(float64(sent), "bytes-sent")
			b.ReportMetric(float64(largest), "bytes-largest-message")
		})
	}
}
