package authn

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/trusttest"
)

// A strict bundle is stale after a minute, and then refuses every call. A test plays the
// bundle's stream.
type strict struct {
	*bundle
	t   *testing.T
	at  stage
	key *token.SigningKey

	measured time.Time // the newest round trip
}

// newStrict returns a complete strict bundle.
func newStrict(t *testing.T) *strict {
	key, err := token.GenerateKey(token.EdDSA)
	if err != nil {
		t.Fatal(err)
	}
	b := &strict{newBundle(slog.New(slog.DiscardHandler), 0, staleness{time.Minute, RefuseWhenStale}), t, streamOpened, key, time.Now()}
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

// beatOf returns a heartbeat with the token time ahead of now, of a server that has asked its
// database age ago.
func beatOf(ahead, age time.Duration) *watchwordv1.Heartbeat {
	beat := trusttest.Heartbeat(time.Now().Add(ahead)).GetHeartbeat()
	beat.AsOf = durationpb.New(beat.GetTimes().GetNow().AsDuration() - age)
	return beat
}

// beat gives the bundle the heartbeat that beatOf returns.
func (b *strict) beat(ahead, age time.Duration) {
	b.t.Helper()
	b.play(&watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: beatOf(ahead, age)}})
}

// judges checks the age, which may be too high by the drift of clocks, and whether tokens are
// judged.
func (b *strict) judges(age time.Duration, want bool) {
	b.t.Helper()
	if got := b.fresh.age(); got < age || got > age+(time.Since(b.measured)+age)/driftPart+time.Millisecond || b.fresh.judging() != want {
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
	return checked
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

// driftPart is a part of an age: a verifier reckons with so much drift of two clocks.
const driftPart = 5000

// If a server was ahead for a moment, by its database's clock or by a wrong as_of, the age of
// the bundle is still counted in full.
func TestAServerThatWasAheadHidesNoAge(t *testing.T) {
	const day = 24 * time.Hour
	for name, c := range map[string]struct{ ahead, age time.Duration }{
		"the clock": {day, 0}, "as_of alone": {0, -day}, "both": {day, -2 * day},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newStrict(t)
				time.Sleep(5 * time.Second)
				b.beat(c.ahead, c.age)
				b.judges(0, true)
				for range 12 {
					time.Sleep(5 * time.Second)
					b.beat(c.ahead, c.age)
				}
				b.judges(0, true)
				time.Sleep(time.Minute - time.Second)
				b.judges(time.Minute-time.Second, true)
				time.Sleep(10 * time.Hour)
				b.judges(10*time.Hour+time.Minute-time.Second, false)
			})
		})
	}
}

// While the server cannot reach its database, the age of the bundle grows, whatever the clock
// does.
func TestASetClockMakesNothingYounger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStrict(t)
		for began, n := time.Now(), time.Duration(1); time.Since(began) < 20*time.Minute; n = -n {
			time.Sleep(5 * time.Second)
			b.beat(n*time.Hour, time.Since(began))
		}
		b.judges(20*time.Minute, false)
		b.beat(0, 0)
		b.judges(0, true)
	})
}

// A heartbeat that arrives late makes the bundle as old as the heartbeat, and not younger.
func TestALateHeartbeatIsOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStrict(t)
		time.Sleep(time.Second)
		late := beatOf(0, 0)
		time.Sleep(10 * time.Minute)
		b.judges(10*time.Minute+time.Second, false)
		b.play(&watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: late}})
		b.judges(10*time.Minute, false)
		b.beat(0, 0)
		b.judges(0, true)
	})
}

// A clock that was set is followed by the next heartbeat and logged once. Tokens from before and
// after the change are judged by the clock in force, and cached results from before the change
// are not used.
func TestASetClockIsFollowedAndLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStrict(t)
		var log bytes.Buffer
		b.log = slog.New(slog.NewTextHandler(&log, nil))
		raw := b.token(t, 5*time.Minute)
		b.finds(t, raw, accepted)
		for range 8 { // for 40 seconds the server's clock is ten minutes ahead
			time.Sleep(5 * time.Second)
			b.beat(10*time.Minute, 0)
			b.finds(t, raw, tokenExpired)
		}
		time.Sleep(5 * time.Second)
		b.beat(0, 0)
		b.finds(t, raw, accepted)
		b.finds(t, b.token(t, 5*time.Minute), accepted)
		time.Sleep(5 * time.Second)
		b.beat(-10*time.Minute, 0)
		b.finds(t, raw, tokenInvalid) // minted in the future
		if n := strings.Count(log.String(), "the server's clock was set"); n != 3 {
			t.Errorf("%d lines, want 3: %s", n, &log)
		}
	})
}

// No revocation is forgotten too early if one heartbeat was two hours ahead, or if the clock
// goes back by twenty minutes.
func TestAWrongClockForgetsNoRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStrict(t)
		for range 30 * 12 { // half an hour, so that revocations are deleted
			time.Sleep(5 * time.Second)
			b.beat(0, 0)
		}
		raw := b.token(t, 5*time.Minute)
		end := func(session string, ahead time.Duration) {
			b.play(&watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_Change{Change: &watchwordv1.Change{
				EndedSessions: []*watchwordv1.EndedSession{{SessionId: session, Until: timestamppb.New(time.Now().Add(ahead + 6*time.Minute))}}}}})
		}
		end("s", 0)
		b.finds(t, raw, tokenRevoked)
		time.Sleep(2 * time.Minute)
		b.beat(2*time.Hour, 0)
		time.Sleep(5 * time.Second)
		b.beat(0, 0)
		b.finds(t, raw, tokenRevoked)
		for range 40 * 12 { // all tokens expire by the right clock
			time.Sleep(5 * time.Second)
			b.beat(0, 0)
		}
		end("another", -20*time.Minute) // the end of a session, told by a standby with a slow clock, from which no heartbeat has come
		b.beat(0, 0)
		time.Sleep(5 * time.Second)
		b.beat(-20*time.Minute, 0)
		time.Sleep(5 * time.Minute)
		b.beat(-20*time.Minute, 0)
		if _, kept := b.revoked.ended.get("another"); !kept {
			t.Error("a revocation of the standby is forgotten")
		}
	})
}

// If heartbeats arrive later and later, by a tenth of the time that has passed, the verifier's
// clock and the age of the bundle stay right.
func TestAGrowingDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStrict(t)
		raw := b.token(t, 5*time.Minute)
		type sent struct {
			beat *watchwordv1.Heartbeat
			at   time.Time
		}
		var wire []sent
		began := time.Now()
		for time.Since(began) < 20*time.Minute {
			time.Sleep(time.Second)
			wire = append(wire, sent{beatOf(0, 0), time.Now()})
			for len(wire) > 0 && time.Since(wire[0].at) >= time.Since(began)/11 {
				b.play(&watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: wire[0].beat}})
				wire = wire[1:]
			}
			age, delay := b.fresh.age(), time.Since(began)/11
			if age < delay-time.Second || age > delay+2*time.Second {
				t.Fatalf("after %v the age is %v, and the delay %v", time.Since(began), age, delay)
			}
			if expired := time.Since(began) > 5*time.Minute; expired && b.judge(raw, true) == accepted {
				t.Fatalf("accepted %v after the expiry", time.Since(began)-5*time.Minute)
			}
		}
	})
}

// A heartbeat before the end of the snapshot does not make the bundle younger.
func TestAHeartbeatWithinTheSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStrict(t)
		time.Sleep(time.Hour)
		b.at = streamOpened // another stream
		b.fresh.clock.opened()
		b.snapshot(false)
		b.beat(0, 0)
		b.judges(time.Hour, false)
		b.snapshot(true)
		b.judges(time.Hour, false)
		b.beat(0, 0)
		b.judges(0, true)
	})
}

// suspend suspends the machine: the monotonic clock, which is the fake clock of synctest, stands
// still. After the suspension, the bundle checks its age at once.
func (b *strict) suspend(total time.Duration) { b.fresh.clock.elapsed.Suspend(total) }

// After a suspension the bundle is stale at once, and a token that expired during the suspension
// is refused, before any heartbeat. A machine's clock that is set changes nothing.
func TestASuspension(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStrict(t)
		raw := b.token(t, 5*time.Minute)
		b.suspend(50 * time.Second)
		b.judges(50*time.Second, true)
		b.finds(t, raw, accepted)
		b.suspend(70 * time.Second) // a second time
		b.judges(70*time.Second, false)
		b.finds(t, raw, bundleStale)
		b.fresh.limit.policy = ContinueWhenStale
		b.finds(t, raw, accepted)
		b.suspend(5 * time.Minute)
		b.finds(t, raw, tokenExpired)
	})
}

// If a host pauses a virtual machine, no clock of the machine shows the pause. The next
// heartbeat, and then the answer of GetTime, correct the verifier's clock.
func TestAPauseByTheHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStrict(t)
		raw := b.token(t, 5*time.Minute)
		ask := func(shown time.Duration) {
			t.Helper()
			times := trusttest.Times(time.Now().Add(shown))
			times.Now = durationpb.New(times.GetNow().AsDuration() + shown)
			times.Asked, times.Answered = times.Now, times.Now
			if err := b.answered(times, b.fresh.clock.elapsed.Now()); err != nil {
				t.Fatal(err)
			}
		}
		ask(0)
		if due, _ := b.fresh.clock.due(); due {
			t.Error("asks again at once")
		}
		const pause = 10 * time.Minute // the fake clock of synctest does not count this pause
		beat := beatOf(pause, 0)
		beat.Times.Now = durationpb.New(beat.GetTimes().GetNow().AsDuration() + pause)
		beat.Times.Asked, beat.Times.Answered, beat.AsOf = beat.Times.Now, beat.Times.Now, beat.Times.Now
		b.play(&watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: beat}})
		b.finds(t, raw, tokenExpired)
		b.judges(0, true)
		if due, _ := b.fresh.clock.due(); !due {
			t.Error("the clock is not measured again after a pause")
		}
		ask(pause)
		b.judges(0, true)
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
