package authn

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/clock"
	"github.com/watchword-auth/watchword/internal/token"
)

// A universe is a model of everything that a verifier's time depends on: a database with a
// clock that is set, server processes with quartzes of their own, a network with delays, and
// a machine that is suspended. Only the verifier is real. The true time is the time of the
// bubble plus the suspensions.
type universe struct {
	rt  *rapid.T
	key *token.SigningKey

	slept  time.Duration // suspensions of the verifier's machine
	origin time.Time
	lead   time.Duration // by how much the database's clock is ahead of the true time
	hosts  []*host
	ended  []*watchwordv1.EndedSession
	tokens []*issued

	*bundle
	at       stage
	began    time.Duration // true time from which the verifier remembers; earlier than its start if it has a snapshot
	base     time.Duration // suspensions at the start of the verifier's process
	from     *host         // the server process that sends the stream
	wire     []delivery
	sent     int // the number of elements of ended that the stream has carried
	delay    time.Duration
	trip     time.Duration // the newest round trip with from's process, and what later trips add
	measure  time.Duration // true time of the newest round trip
	beatTrip time.Duration // the value of trip at the newest heartbeat, for the age of the bundle

	// What the verifier can know.
	asOf  time.Duration // true time; every revocation before asOf has reached the verifier
	heard []heardClock  // the newest last
	anew  bool          // the process has started again, and has not yet received the time of a server
}

// host is a server process.
type host struct {
	id      int
	started time.Duration // true time
	ppm     int           // drift against the true time
	token   clock.Estimate
	asked   time.Duration // true time at which the host asked the database for the time that it now publishes
	lead    time.Duration // by how much the database's clock was ahead at the newest reading
	away    bool          // the database does not answer this host
	known   int           // the number of elements of universe.ended that the host has read
}

type delivery struct {
	due     time.Duration
	message *watchwordv1.WatchBundleResponse
	by      host // the host as it was when it sent the message
}

// heardClock is a reading of the database's clock that has reached the verifier, and the time of
// the reading.
type heardClock struct {
	lead, at time.Duration
	error    time.Duration // how far the verifier may err about at
}

type issued struct {
	*authentic
	session             string
	iat, exp            time.Duration // token time
	lead                time.Duration // by how much the clock that minted the token was ahead
	revoked             bool          // the revocation was delivered
	until               time.Duration // when the revocation can be forgotten
	mayForget, mintSeen bool
}

const (
	modelLife   = 5 * time.Minute
	modelMargin = 5 * time.Minute
	modelStale  = time.Minute
	modelSpan   = modelLife + 2*modelMargin
)

func (u *universe) now() time.Duration { return time.Since(u.origin) + u.slept }

func (h *host) clock(at time.Duration) time.Duration {
	ran := at - h.started
	return ran + ran*time.Duration(h.ppm)/1e6
}

// restart begins a process of a host.
func (u *universe) restart(h *host) {
	*h = host{id: h.id + 2, started: u.now(), ppm: rapid.IntRange(-90, 90).Draw(u.rt, "ppm")}
	u.poll(h, 0)
}

// poll makes a host read the database. The question was sent q ago; no clock was set since.
func (u *universe) poll(h *host, q time.Duration) {
	now := u.now()
	at := now - time.Duration(rapid.IntRange(0, 4).Draw(u.rt, "answered at"))*q/4
	h.token.Learn(clock.Answer(at+u.lead, h.clock(now-q), h.clock(now)), clock.Span{From: h.clock(now - q), To: h.clock(now)}, true)
	h.asked, h.lead, h.known = now-q, u.lead, len(u.ended)
}

// times returns what hub.Hub.Times returns.
func (u *universe) times(h *host) *watchwordv1.ServerTimes {
	now, o, read := h.clock(u.now()), h.token.Offset(), h.token.Read()
	stamp := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(tokenTime(d)) }
	return &watchwordv1.ServerTimes{
		Process: []byte{byte(h.id), byte(h.id >> 8)}, Now: durationpb.New(now), Asked: durationpb.New(read.From), Answered: durationpb.New(read.To),
		Earliest: stamp(o.Earliest(now)), Latest: stamp(o.Latest(now)),
	}
}

// tokenTime returns a token time of the model as a time: the model counts from a moment that
// lets the clock be days behind.
func tokenTime(d time.Duration) time.Time { return time.Unix(2_000_000_000, 0).Add(d) }

func (u *universe) heartbeat(h *host) delivery {
	return delivery{message: &watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: &watchwordv1.Heartbeat{
		Times: u.times(h), AsOf: durationpb.New(h.clock(h.asked)),
	}}}, by: *h}
}

// start starts the verifier.
func (u *universe) start() {
	u.bundle = newBundle(slog.New(slog.DiscardHandler), 0, staleness{modelStale, RefuseWhenStale})
	u.heard, u.began, u.base, u.wire, u.anew = nil, u.now(), u.slept, nil, true
	for _, i := range u.tokens {
		i.mintSeen = false
	}
}

// open opens a stream. The request and the answer take their time.
func (u *universe) open(h *host) {
	u.from, u.at, u.wire = h, streamOpened, nil
	u.fresh.clock.opened()
	there, back := u.latency(), u.latency()
	u.pass(there)
	trust := &watchwordv1.TrustState{
		Issuer: "i", MaxTokenLifetime: durationpb.New(modelLife), Margin: durationpb.New(modelMargin),
		Keys: []*watchwordv1.VerificationKey{{Key: u.key.Public().JWK()}},
	}
	chunk := &watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_SnapshotChunk{
		SnapshotChunk: &watchwordv1.SnapshotChunk{TrustState: trust, EndedSessions: slices.Clone(u.ended[:h.known]), Last: true}}}
	u.sent = h.known
	beat := u.heartbeat(h)
	u.pass(back)
	u.trip, u.measure = there+back, u.now()
	u.apply1(delivery{message: chunk, by: beat.by})
	u.apply1(beat)
}

// ask asks a host for the time.
func (u *universe) ask(h *host) {
	sent := u.fresh.clock.elapsed.Now()
	there, back := u.latency(), u.latency()
	u.pass(there)
	times, by := u.times(h), *h
	u.pass(back)
	if err := u.answered(times, sent); err != nil {
		u.rt.Fatal(err)
	}
	if h == u.from {
		u.trip, u.measure = there+back, u.now()
	} else {
		u.trip = max(u.trip, there+back) // the longest of these trips bounds the error of the token time
	}
	u.hear(&by)
}

func (u *universe) latency() time.Duration {
	return time.Duration(rapid.SampledFrom([]int{0, 1, 40, 900, 4000}).Draw(u.rt, "latency ms")) * time.Millisecond
}

// pass lets time pass, within which no clock is set.
func (u *universe) pass(d time.Duration) { time.Sleep(d) }

// apply1 delivers a message to the verifier.
func (u *universe) apply1(d delivery) {
	var err error
	if u.at, err = u.apply(d.message, u.at); err != nil {
		u.rt.Fatal(err)
	}
	ended := append(d.message.GetSnapshotChunk().GetEndedSessions(), d.message.GetChange().GetEndedSessions()...)
	for _, e := range ended {
		for _, i := range u.tokens {
			if i.session == e.GetSessionId() {
				i.revoked, i.until = true, max(i.until, e.GetUntil().AsTime().Sub(tokenTime(0)))
				i.mayForget = false
				i.mintSeen = i.mintSeen || slices.ContainsFunc(u.heard, func(c heardClock) bool { return c.lead == i.lead })
			}
		}
	}
	if d.message.GetHeartbeat() != nil {
		if d.by.asked > u.asOf {
			u.asOf, u.beatTrip = d.by.asked, u.trip
		}
		u.hear(&d.by)
	}
}

// hear notes that the verifier has heard the clock that a host has read.
func (u *universe) hear(h *host) {
	next := heardClock{h.lead, h.asked, u.slack()}
	n := len(u.heard)
	known := n > 0 && u.heard[n-1].at >= h.asked && !u.anew // the verifier already has a reading that is at least as new
	if known && (u.heard[n-1].lead == h.lead || u.heard[n-1].at > h.asked+u.slack()+u.heard[n-1].error) {
		return
	}
	u.anew = false
	u.heard = slices.DeleteFunc(u.heard, func(c heardClock) bool { return c.lead == h.lead })
	if n = len(u.heard); known { // the verifier may not know which of the two is newer
		u.heard = slices.Insert(u.heard, n-1, next)
	} else {
		u.heard = append(u.heard, next)
	}
}

// slack is how far the verifier may err about the token time. slack is the sum of the newest
// round trip, the longest query, and twice the drift of the clocks since the round trip: once
// for the drift that the verifier assumes, and once for the real drift.
func (u *universe) slack() time.Duration { return u.trip + 3*time.Second + slackOf(u.now()-u.measure) }

func slackOf(age time.Duration) time.Duration { return age/2500 + 2*time.Millisecond }

// tick lets five seconds pass: the hosts read the database, and the verifier's host sends a
// heartbeat.
func (u *universe) tick() {
	u.pass(5 * time.Second)
	for _, h := range u.hosts {
		if !h.away {
			u.poll(h, time.Duration(rapid.SampledFrom([]int{1, 300, 3000}).Draw(u.rt, "query ms"))*time.Millisecond)
		}
	}
	u.publish()
	u.send(u.heartbeat(u.from))
}

// publish sends the revocations that the stream's host has read.
func (u *universe) publish() {
	if news := u.ended[u.sent:max(u.sent, u.from.known)]; len(news) > 0 {
		u.sent += len(news)
		u.send(delivery{by: *u.from, message: &watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_Change{
			Change: &watchwordv1.Change{EndedSessions: slices.Clone(news)}}}})
	}
}

// send sends a message to the verifier, behind the messages on the way.
func (u *universe) send(d delivery) {
	d.due = u.now() + u.delay
	u.wire = append(u.wire, d)
	u.deliver()
}

func (u *universe) deliver() {
	for len(u.wire) > 0 && u.wire[0].due <= u.now() {
		u.apply1(u.wire[0])
		u.wire = u.wire[1:]
	}
}

func (u *universe) mint() {
	iat := (u.now() + u.lead).Truncate(time.Second)
	i := &issued{session: fmt.Sprint("session ", len(u.tokens)), iat: iat, exp: iat + modelLife, lead: u.lead}
	raw, err := token.Sign(u.key, &token.Claims{
		Issuer: "i", Subject: "u", ID: "t", SessionID: i.session, Username: "n", Audience: []string{"a"},
		IssuedAt: tokenTime(iat), ExpiresAt: tokenTime(i.exp),
	})
	if err != nil {
		u.rt.Fatal(err)
	}
	claims, err := token.Parse(raw, func(string) *token.PublicKey { return u.key.Public() })
	if err != nil {
		u.rt.Fatal(err)
	}
	i.authentic = &authentic{principal: Principal{claims: *claims}}
	u.tokens = append(u.tokens, i)
}

func (u *universe) logout(i *issued) {
	e := &watchwordv1.EndedSession{SessionId: i.session, Until: timestamppb.New(tokenTime(u.now() + u.lead + modelLife + modelMargin))}
	u.ended = append(u.ended, e)
	if !u.from.away {
		u.poll(u.from, 0)
		u.publish()
	}
}

// again restarts the verifier's process from its snapshot.
func (u *universe) again(otherBoot bool) {
	var file bytes.Buffer
	if _, err := u.writeSnapshot(&file); err != nil {
		u.rt.Fatal(err)
	}
	began, heard := u.began, u.heard
	u.fresh.close()
	u.start()
	snapshot := file.Bytes()
	if otherBoot {
		snapshot = bytes.Clone(snapshot)
		snapshot[len(snapshotBegin)+8] ^= 1
		snapshot = resealed(snapshot)
		u.asOf = min(u.asOf, u.now()-modelStale) // the machine's clock may show anything
	} else {
		u.began, u.heard = began, heard
	}
	if err := u.readSnapshot(bytes.NewReader(snapshot), int64(len(snapshot))); err != nil {
		u.rt.Fatal(err)
	}
	if otherBoot && !u.fresh.stale() {
		u.rt.Fatal("not stale after another boot")
	}
}

// check checks the invariants.
func (u *universe) check() {
	now := u.now()
	age, trueAge := u.fresh.age(), now-u.asOf
	if age < trueAge-u.trip-slackOf(now-u.measure) {
		u.rt.Fatalf("the age is %v, and the verifier says %v; the newest round trip took %v", trueAge, age, u.trip)
	}
	current := u.heard[len(u.heard)-1]
	slack := u.slack() + slackOf(now-current.at)
	follows := current.lead == u.lead // true if the verifier has heard the present clock, and must know that the reading is the newest
	if n := len(u.heard); n > 1 {
		follows = follows && current.at > u.heard[n-2].at+2*(u.heard[n-2].error+slack)
	}
	for n, i := range u.tokens {
		reason := u.accepts(i)
		u.remember(i, slack)
		switch {
		case reason == accepted && now+current.lead >= i.exp+slack:
			u.rt.Fatalf("token %d is accepted %v after its expiry by the clock that was heard", n, now+current.lead-i.exp)
		case reason == accepted && trueAge > modelStale+slack:
			u.rt.Fatalf("token %d is accepted by a bundle %v old", n, trueAge)
		case reason == accepted && i.revoked && !i.mayForget:
			u.rt.Fatalf("token %d is accepted after its logout; clocks heard: %v; now %v; until %v, expiry %v", n, u.heard, now, i.until, i.exp)
		case reason != accepted && !i.revoked && follows && i.lead == u.lead && trueAge < modelStale-slack-u.beatTrip && now+u.lead < i.exp-slack:
			e := &u.fresh.clock.estimate
			u.rt.Fatalf("token %d is %v, and is good for %v; clocks heard %v; slack %v; now %v; estimate %+v", n, reason, i.exp-now-u.lead, u.heard, slack, now, e)
		}
	}
}

// accepts returns the verifier's judgement about a token. If the verifier remembers from an earlier
// judgement that the token is accepted, the new judgement must be the same.
func (u *universe) accepts(i *issued) watchwordv1.ErrorReason {
	trust := u.trust.Load()
	key := trust.keys[u.key.Public().KID()]
	if i.key != key.public { // the cache misses
		i.authentic = &authentic{principal: i.principal, key: key.public}
	}
	still := u.fresh.judging() && u.stillAccepted(i.authentic)
	reason := u.judge(i.authentic, true)
	if still && reason != accepted {
		u.rt.Fatalf("an earlier judgement accepts a token that is %v", reason)
	}
	return reason
}

// remember notes when the verifier may forget the revocation of a token: when the token has
// expired by every clock that was heard lately.
func (u *universe) remember(i *issued, slack time.Duration) {
	if !i.revoked || u.now()-u.began < modelSpan-slack {
		return
	}
	until := i.until
	if i.mintSeen {
		until = max(until, i.exp)
	}
	for n, c := range u.heard {
		if lately := n == len(u.heard)-1 || u.now()-c.at <= modelSpan-slack; lately && u.now()+c.lead+slack < until {
			return
		}
	}
	i.mayForget = true
}

// TestAVerifiersTime lets a verifier and its universe go through random hours, and checks
// after every step: the bundle's age is never too low by more than the newest round trip; no
// token is accepted after its expiry or its logout by a clock that was heard, but for a round
// trip; and a good token is accepted.
func TestAVerifiersTime(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var stopped any
		synctest.Test(t, func(t *testing.T) {
			defer func() { stopped = recover() }() // rapid stops a run by a panic; the panic must not leave the bubble
			live(rt)
		})
		if stopped != nil && !rt.Failed() {
			panic(stopped) // rapid takes panics of one line for the same failure
		}
		if stopped != nil {
			panic(stopped)
		}
	})
}

func live(rt *rapid.T) {
	key, err := token.GenerateKey(token.EdDSA)
	if err != nil {
		rt.Fatal(err)
	}
	u := &universe{rt: rt, key: key, origin: time.Now(), hosts: []*host{{id: 0}, {id: 1}}}
	for _, h := range u.hosts {
		u.restart(h)
	}
	u.start()
	defer func() { u.fresh.close() }()
	u.open(u.hosts[0])
	actions := []string{"pass", "pass", "pass", "pass", "mint", "mint", "logout", "set", "delay", "ask", "ask", "away", "suspend", "restart", "switch", "again"}
	for range rapid.IntRange(1, 60).Draw(rt, "steps") {
		switch rapid.SampledFrom(actions).Draw(rt, "action") {
		case "pass":
			for range rapid.SampledFrom([]int{1, 3, 13, 200}).Draw(rt, "ticks") {
				u.tick()
				if due, _ := u.fresh.clock.due(); due && u.delay == 0 {
					u.ask(u.hosts[rapid.IntRange(0, 1).Draw(rt, "host")])
				}
				u.check()
			}
		case "mint":
			u.mint()
		case "logout":
			if len(u.tokens) > 0 {
				u.logout(rapid.SampledFrom(u.tokens).Draw(rt, "token"))
			}
		case "set":
			u.lead = time.Duration(rapid.SampledFrom([]int{0, 2 * 3600, -20 * 60, 600, 30, -30}).Draw(rt, "lead s")) * time.Second
		case "delay": // the delay of later messages: messages on the way keep their delay, and the order stays
			u.delay = time.Duration(rapid.SampledFrom([]int{0, 0, 1, 70, 600}).Draw(rt, "delay s")) * time.Second
			if n := len(u.wire); n > 0 {
				u.delay = max(u.delay, u.wire[n-1].due-u.now())
			}
		case "ask":
			u.ask(u.hosts[rapid.IntRange(0, 1).Draw(rt, "host")])
		case "away":
			h := u.hosts[rapid.IntRange(0, 1).Draw(rt, "host")]
			h.away = !h.away
		case "suspend":
			u.slept += time.Duration(rapid.SampledFrom([]int{1, 50, 300, 8000}).Draw(rt, "suspended s")) * time.Second
			u.fresh.clock.elapsed.Suspend(u.slept - u.base)
			u.deliver()
		case "restart":
			h := u.hosts[rapid.IntRange(0, 1).Draw(rt, "host")]
			u.restart(h)
			if h == u.from {
				u.open(h)
			}
		case "switch":
			u.open(u.hosts[rapid.IntRange(0, 1).Draw(rt, "host")])
		case "again":
			u.again(rapid.Bool().Draw(rt, "other boot"))
			u.open(u.from)
		}
		u.check()
	}
}
