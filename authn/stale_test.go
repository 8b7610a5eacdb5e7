package authn

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// A strict bundle refuses when it is stale, after a minute. A test plays its stream.
type strict struct {
	*bundle
	t  *testing.T
	at stage
}

// newStrict makes one that is complete.
func newStrict(t *testing.T) *strict {
	b := &strict{newBundle(slog.New(slog.DiscardHandler), 0, staleness{after: time.Minute, refuse: true}), t, opened}
	t.Cleanup(b.close)
	b.snapshot(true)
	b.beat(0, 0)
	return b
}

func (b *strict) play(m *watchwordv1.WatchBundleResponse) {
	b.t.Helper()
	var err error
	if b.at, err = b.apply(m, b.at); err != nil {
		b.t.Fatal(err)
	}
}

func (b *strict) snapshot(whole bool) {
	b.t.Helper()
	b.play(&watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_SnapshotChunk{SnapshotChunk: &watchwordv1.SnapshotChunk{
		Last:       whole,
		TrustState: &watchwordv1.TrustState{Issuer: "i", MaxTokenLifetime: durationpb.New(5 * time.Minute), Margin: durationpb.New(time.Minute)},
	}}})
}

// beat plays a heartbeat. Both times are said from now.
func (b *strict) beat(server, asOf time.Duration) {
	b.t.Helper()
	now := time.Now()
	b.play(&watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: &watchwordv1.Heartbeat{
		ServerTime: timestamppb.New(now.Add(server)), AsOf: timestamppb.New(now.Add(asOf)),
	}}})
}

// beats plays heartbeats of a clock that is right, for a while.
func (b *strict) beats(during, asOf time.Duration) {
	b.t.Helper()
	for end := time.Now().Add(during); time.Now().Before(end); {
		time.Sleep(5 * time.Second)
		b.beat(0, asOf)
	}
}

func (b *strict) judges(age time.Duration, want bool) {
	b.t.Helper()
	if got := b.age(); got != age || b.judging() != want {
		b.t.Errorf("%v old, judging: %v; want %v, %v", got, b.judging(), age, want)
	}
}

// A server whose clock was ahead for a moment, and says so in whatever it says,
// makes nothing younger for longer than its clock is believed.
func TestAServerThatWasAheadMakesNothingYounger(t *testing.T) {
	const day = 24 * time.Hour
	for name, ahead := range map[string]struct{ server, asOf time.Duration }{
		"its clock":             {day, day},
		"what it knows alone":   {0, day},
		"its clock, and enough": {day, 2 * day},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newStrict(t)
				time.Sleep(5 * time.Second)
				b.beat(ahead.server, ahead.asOf)
				b.judges(0, true)
				b.beats(20*time.Minute, 0)
				b.judges(0, true)
				time.Sleep(time.Minute)
				b.judges(time.Minute, true)
				time.Sleep(10 * time.Hour)
				b.judges(10*time.Hour+time.Minute, false)
			})
		})
	}
}

// The correction of the clock is no news: where the server has lost its database,
// what is known gets older all the same.
func TestACorrectedClockIsNoNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStrict(t)
		b.beat(24*time.Hour, 24*time.Hour)
		began := time.Now()
		for time.Since(began) < 20*time.Minute {
			time.Sleep(5 * time.Second)
			b.beat(0, -time.Since(began))
		}
		b.judges(20*time.Minute, false)
		b.beat(0, 0)
		b.judges(0, true)
	})
}

// A heartbeat says that all before it has come, so one before the end of the
// snapshot says nothing of what is known.
func TestAHeartbeatWithinTheSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStrict(t)
		time.Sleep(time.Hour)
		b.at = opened // another stream
		b.snapshot(false)
		b.beat(0, 0)
		b.judges(time.Hour, false)
		b.snapshot(true)
		b.judges(time.Hour, false)
		b.beat(0, 0)
		b.judges(0, true)
	})
}
