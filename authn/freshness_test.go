package authn

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

// A strict bundle is stale after a minute, and then refuses every call. A test plays the
// bundle's stream.
type strict struct {
	*bundle
	t   *testing.T
	at  stage
	key *token.SigningKey
}

// newStrict returns a complete strict bundle.
func newStrict(t *testing.T) *strict {
	key, err := token.GenerateKey(token.EdDSA)
	if err != nil {
		t.Fatal(err)
	}
	b := &strict{newBundle(slog.New(slog.DiscardHandler), 0, staleness{time.Minute, RefuseWhenStale}), t, streamOpened, key}
	t.Cleanup(b.fresh.close)
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
		Last: whole,
		TrustState: &watchwordv1.TrustState{
			Issuer: "i", MaxTokenLifetime: durationpb.New(5 * time.Minute), Margin: durationpb.New(time.Minute),
			Keys: []*watchwordv1.VerificationKey{{Key: b.key.Public().JWK()}},
		},
	}}})
}

// beat plays a heartbeat. Both times are relative to now.
func (b *strict) beat(server, asOf time.Duration) {
	b.t.Helper()
	now := time.Now()
	b.play(&watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: &watchwordv1.Heartbeat{
		ServerTime: timestamppb.New(now.Add(server)), AsOf: timestamppb.New(now.Add(asOf)),
	}}})
}

// beats plays heartbeats of a server with the right time, for the duration during.
func (b *strict) beats(during, asOf time.Duration) {
	b.t.Helper()
	for end := time.Now().Add(during); time.Now().Before(end); {
		time.Sleep(5 * time.Second)
		b.beat(0, asOf)
	}
}

func (b *strict) judges(age time.Duration, want bool) {
	b.t.Helper()
	if got := b.fresh.age(); got != age || b.fresh.judging() != want {
		b.t.Errorf("age %v, judging %v; want %v, %v", got, b.fresh.judging(), age, want)
	}
}

// token returns a new token after the check of its signature.
func (b *strict) token(t *testing.T, life time.Duration) *authentic {
	t.Helper()
	now := time.Now()
	raw, err := token.Sign(b.key, &token.Claims{
		Issuer: "i", Subject: "u", ID: "t", SessionID: "s", Username: "n", Audience: []string{"a"},
		IssuedAt: now, ExpiresAt: now.Add(life),
	})
	if err != nil {
		t.Fatal(err)
	}
	checked, reason := b.authenticate(raw)
	if reason != accepted {
		t.Fatal(reason)
	}
	return &checked
}

// finds checks the decision about a token, and that an earlier decision in the token's
// favour does not hide a refusal.
func (b *strict) finds(t *testing.T, checked *authentic, want watchwordv1.ErrorReason) {
	t.Helper()
	if b.stillAccepted(checked) && want != accepted {
		t.Error("an earlier judgement still counts")
	}
	if got := b.judge(checked, true); got != want {
		t.Errorf("%v, want %v", got, want)
	}
}

// If a server's clock was ahead for a moment, the bundle looks younger only as long as the
// verifier's clock follows that lead.
func TestAServerThatWasAheadHidesNoAge(t *testing.T) {
	const day = 24 * time.Hour
	for name, ahead := range map[string]struct{ server, asOf time.Duration }{
		"the clock":               {day, day},
		"AsOf alone":              {0, day},
		"the clock, AsOf further": {day, 2 * day},
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

// The correction of the clock does not make the bundle younger: while the server has lost its
// database, the bundle's age grows.
func TestACorrectedClockMakesNothingYounger(t *testing.T) {
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

// A heartbeat before the end of the snapshot does not make the bundle younger.
func TestAHeartbeatWithinTheSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStrict(t)
		time.Sleep(time.Hour)
		b.at = streamOpened // another stream
		b.snapshot(false)
		b.beat(0, 0)
		b.judges(time.Hour, false)
		b.snapshot(true)
		b.judges(time.Hour, false)
		b.beat(0, 0)
		b.judges(0, true)
	})
}

// suspend makes the clock look as after a suspension: the lead of the machine's clock over
// the monotonic clock grows by slept. The time of a test is the monotonic clock's.
func (c *clock) suspend(slept time.Duration) {
	k := *c.correction.Load()
	k.wall -= int64(slept)
	c.correction.Store(&k)
	time.Sleep(2 * lookEvery) // read looks at the machine's clock again
}

// After a suspension the bundle is stale at once, before any heartbeat: the machine's clock
// shows the time asleep.
func TestStaleAfterASuspension(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStrict(t)
		raw := b.token(t, 5*time.Minute)
		b.fresh.clock.suspend(50 * time.Second)
		b.judges(50*time.Second+2*lookEvery, true)
		b.finds(t, raw, accepted)
		b.fresh.clock.suspend(20 * time.Second) // a second time
		b.judges(70*time.Second+4*lookEvery, false)
		b.finds(t, raw, bundleStale)
		b.beat(0, 0) // by the server's time, the machine's clock was only set
		b.judges(0, true)

		b.fresh.clock.suspend(8 * time.Hour)
		b.judges(8*time.Hour+2*lookEvery, false)
		b.beat(8*time.Hour, 8*time.Hour)
		b.judges(0, true)
		time.Sleep(time.Minute)
		b.judges(time.Minute, true)
	})
}

// A token that expired during a suspension is refused. A lead of the machine's clock below
// some minutes may come from a correction, and is ignored.
func TestExpiryAfterASuspension(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStrict(t)
		b.fresh.limit.policy = ContinueWhenStale
		short, long := b.token(t, 5*time.Minute), b.token(t, 5*time.Minute)
		b.finds(t, short, accepted)
		b.fresh.clock.suspend(4*time.Minute + 59*time.Second)
		b.finds(t, short, accepted)
		b.fresh.clock.suspend(time.Second)
		b.finds(t, short, tokenExpired)
		b.beat(0, 0) // by the server's time, the token has not expired
		b.finds(t, short, accepted)

		time.Sleep(4 * time.Minute)
		b.beat(0, 0)
		b.fresh.clock.suspend(90 * time.Second)
		b.finds(t, long, accepted)
		b.fresh.clock.suspend(time.Hour)
		b.finds(t, long, tokenExpired)
	})
}

// Setting the machine's clock back changes nothing.
func TestAClockThatIsSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStrict(t)
		raw := b.token(t, time.Minute)
		b.fresh.clock.suspend(-24 * time.Hour)
		b.finds(t, raw, accepted)
		time.Sleep(time.Minute)
		b.beat(0, 0)
		b.fresh.clock.suspend(-24 * time.Hour)
		b.finds(t, raw, tokenExpired)
		b.judges(2*lookEvery, true)
	})
}

// A bundle from a snapshot file notices a suspension before the first heartbeat.
func TestASuspensionBeforeTheFirstHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mustRead(t, written(t, fill(t, 1)))
		b.fresh.clock.suspend(time.Hour)
		if got := b.fresh.age(); got != time.Hour+2*lookEvery {
			t.Errorf("age %v", got)
		}
		if got := time.Until(b.fresh.clock.now()); got != time.Hour {
			t.Errorf("the clock is ahead by %v", got)
		}
	})
}

// A heartbeat after close does not start the watchdog again.
func TestAClosedBundleHasNoWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStrict(t)
		if !b.fresh.watchdog.Stop() {
			t.Error("the watchdog did not run before close")
		}
		b.fresh.close()
		b.beat(0, 0)
		if b.fresh.watchdog.Stop() {
			t.Error("the watchdog runs after close")
		}
	})
}
