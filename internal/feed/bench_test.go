package feed_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/store"
)

// What a watcher costs that comes for a snapshot of a million revocations, and
// one that resumes.
func BenchmarkWatchAMillion(b *testing.B) {
	ctx := context.Background()
	s, err := store.Open(ctx, "sqlite:"+filepath.Join(b.TempDir(), "f.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	f, err := feed.Open(ctx, s, "https://auth.test", "database", slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	feed.Fill(f, 1_000_000)
	drain := func(b *testing.B, at []byte) (resume []byte, sent, largest int) {
		w, err := f.Watch(ctx, "peer", at)
		if err != nil {
			b.Fatal(err)
		}
		defer w.Close()
		for n := 0; ; n++ {
			encoded, err := w.Next(ctx)
			if err != nil {
				b.Fatal(err)
			}
			m := decode(b, encoded, n == 0 || len(encoded) < 1000)
			sent, largest = sent+len(encoded), max(largest, len(encoded))
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
