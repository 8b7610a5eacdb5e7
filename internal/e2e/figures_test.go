package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/credentials/insecure"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// slowLine forwards connections to a server, and delays what the server sends. Bytes on the way do
// not delay later bytes, as on a long line. When the delay gets shorter, the bytes on the way
// arrive earlier, in their order.
type slowLine struct {
	addr    string
	delay   atomic.Int64 // the delay in ns
	running sync.WaitGroup
}

func newSlowLine(t *testing.T, backend string) *slowLine {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	l := &slowLine{addr: listener.Addr().String()}
	l.running.Go(func() {
		for {
			front, err := listener.Accept()
			if err != nil {
				return
			}
			back, err := net.Dial("tcp", backend)
			if err != nil {
				front.Close()
				continue
			}
			context.AfterFunc(ctx, func() { front.Close(); back.Close() })
			l.running.Go(func() { l.forward(back, front, new(atomic.Int64)) })
			l.running.Go(func() { l.forward(front, back, &l.delay) })
		}
	})
	t.Cleanup(func() { stop(); listener.Close(); l.running.Wait() })
	return l
}

// forward copies bytes in one direction, each piece after the delay.
func (l *slowLine) forward(to, from net.Conn, delay *atomic.Int64) {
	type piece struct {
		arrived time.Time
		data    []byte
	}
	pieces := make(chan piece, 10_000)
	l.running.Go(func() {
		defer to.Close()
		for p := range pieces {
			for time.Since(p.arrived) < time.Duration(delay.Load()) {
				time.Sleep(time.Millisecond)
			}
			if _, err := to.Write(p.data); err != nil {
				from.Close() // ends the reading below
			}
		}
	})
	defer close(pieces)
	for {
		buf := make([]byte, 4096)
		n, err := from.Read(buf)
		if err != nil {
			delay.Store(min(delay.Load(), int64(time.Minute))) // an end of the test does not wait for long
			return
		}
		pieces <- piece{time.Now(), buf[:n]}
	}
}

// figures holds the longest times of a phase of a [trial].
type figures struct{ pastExpiry, pastLogout, refusal time.Duration }

// timed is a token of a [trial].
type timed struct {
	raw          string
	minted       time.Time
	expires      time.Time // the expiry by the database's clock
	epoch        int       // how often the clock was set before the token was minted
	out          time.Time // when the logout was acknowledged; zero before
	expired      time.Time // since when the token has expired by the clock of the moment; zero: the token has not
	refusedSince time.Time // since when the verifier with ContinueWhenStale refuses the token
}

const (
	trialTTL   = 20 * time.Second // more than twice the longest delay: a round trip makes a token expire earlier
	trialStale = 10 * time.Second
	// noticed is the time until a server notices that the clock was set: a poll, and the
	// reading of the file of [shifted].
	noticed = 220 * time.Millisecond
	// apart is the time by which two clocks drift apart in a minute, at the limit of 200 parts in
	// a million each.
	apart = 24 * time.Millisecond
	// silence is a delay longer than the test.
	silence = time.Hour
)

// trial measures for how long two verifiers behind a slow connection still accept tokens that
// have expired or were revoked.
type trial struct {
	t        *testing.T
	engine   string
	direct   *client
	admin    string // the password
	line     *slowLine
	setClock func(time.Duration)

	mu              sync.Mutex // guards the fields below
	going, refusing *authn.Verifier
	shift           time.Duration // by how much the test has set the database's clock
	setAt           time.Time
	epoch           int
	tokens          []*timed
	found           figures
	trip            time.Duration // the longest round trip over the line
	busy            time.Duration // the longest pause of the sampling, and the longest round trip beside the line
}

// start starts the verifiers, the sampling and the measuring of round trips.
func (f *trial) start(addr string) {
	f.t.Helper()
	f.direct, f.line = dial(f.t, addr), newSlowLine(f.t, addr)
	for to, policy := range map[**authn.Verifier]authn.StalePolicy{&f.going: authn.ContinueWhenStale, &f.refusing: authn.RefuseWhenStale} {
		var err error
		*to, err = authn.NewVerifier(callCtx(f.t), dialConn(f.t, f.line.addr, insecure.NewCredentials()),
			authn.WithAudience("internal"), authn.WithMaxStaleness(trialStale, policy))
		if err != nil {
			f.t.Fatal(err)
		}
		f.t.Cleanup(func() { (*to).Close() })
	}
	delayed := dial(f.t, f.line.addr)
	ctx, stop := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	f.t.Cleanup(func() { f.line.delay.Store(0); stop(); tasks.Wait() })
	tasks.Go(func() { f.sampling(ctx) })
	tasks.Go(func() { f.measure(ctx, f.direct, &f.busy) })
	tasks.Go(func() { f.measure(ctx, delayed, &f.trip) })
}

// measure notes the longest round trip.
func (f *trial) measure(ctx context.Context, c *client, longest *time.Duration) {
	for ctx.Err() == nil {
		began := time.Now()
		_, err := watchwordv1.NewTrustServiceClient(c.conn).GetTime(ctx, &watchwordv1.GetTimeRequest{Nonce: []byte("n")})
		if err != nil && ctx.Err() == nil {
			f.t.Errorf("GetTime: %v", err)
			return
		}
		f.mu.Lock()
		*longest = max(*longest, time.Since(began))
		f.mu.Unlock()
		time.Sleep(100 * time.Millisecond)
	}
}

// sampling gives every token to both verifiers, again and again.
func (f *trial) sampling(ctx context.Context) {
	for last := time.Now(); ctx.Err() == nil; time.Sleep(2 * time.Millisecond) {
		f.mu.Lock()
		now := time.Now()
		f.busy, last = max(f.busy, now.Sub(last)), now
		for _, token := range f.tokens {
			f.sampleLocked(token)
		}
		f.mu.Unlock()
	}
}

// sampleLocked verifies a token. f.mu must be held.
func (f *trial) sampleLocked(token *timed) {
	now := time.Now()
	_, going := f.going.Verify(context.Background(), token.raw)
	_, refusing := f.refusing.Verify(context.Background(), token.raw)
	switch ends := token.expires.Add(-f.shift); {
	case now.Before(ends):
		token.expired = time.Time{}
	case token.expired.IsZero() && ends.Before(f.setAt): // has expired because the clock was set
		token.expired = f.setAt
	case token.expired.IsZero():
		token.expired = ends
	}
	if !token.expired.IsZero() && (going == nil || refusing == nil) {
		f.found.pastExpiry = max(f.found.pastExpiry, now.Sub(token.expired))
	}
	if !token.out.IsZero() && refusing == nil {
		f.found.pastLogout = max(f.found.pastLogout, now.Sub(token.out))
	}
	fresh := token.out.IsZero() && token.epoch == f.epoch && now.Sub(token.minted) < trialTTL/2
	switch {
	case !fresh || going == nil:
		token.refusedSince = time.Time{}
	case token.refusedSince.IsZero():
		token.refusedSince = now
	}
	if fresh && going != nil {
		f.found.refusal = max(f.found.refusal, time.Since(token.refusedSince))
	}
}

// set sets the database's clock, and returns when the database shows the new time.
func (f *trial) set(by time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shift, f.setAt = by, time.Now()
	f.epoch++
	f.setClock(by)
}

// run makes tokens for a time, twice a second, and logs half of them out. delay returns the
// delay of the line.
func (f *trial) run(d time.Duration, delay func(since time.Duration) time.Duration) {
	f.t.Helper()
	began, logins := time.Now(), 0
	var out []*timed
	pairs := map[*timed]*watchwordv1.TokenPair{}
	for time.Since(began) < d {
		d := delay(time.Since(began))
		f.line.delay.Store(int64(d))
		if d != silence {
			f.mu.Lock()
			f.trip = max(f.trip, d)
			f.mu.Unlock()
		}
		if time.Since(began) >= time.Duration(logins)*500*time.Millisecond {
			token := f.login(pairs)
			if logins++; logins%2 == 0 {
				out = append(out, token)
			}
		}
		for len(out) > 0 && time.Since(out[0].minted) > 2*time.Second {
			wantOK(f.t, "logout", f.direct.logout(callCtx(f.t), pairs[out[0]]))
			f.mu.Lock()
			out[0].out = time.Now()
			f.mu.Unlock()
			out = out[1:]
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// login makes a token for the sampling.
func (f *trial) login(pairs map[*timed]*watchwordv1.TokenPair) *timed {
	f.t.Helper()
	pair := f.direct.login(f.t, "admin", f.admin)
	var claims struct{ Exp int64 }
	if err := json.Unmarshal(unbase64(strings.Split(pair.GetAccessToken(), ".")[1]), &claims); err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	token := &timed{raw: pair.GetAccessToken(), minted: time.Now(), expires: time.Unix(claims.Exp, 0), epoch: f.epoch}
	f.tokens, pairs[token] = append(f.tokens, token), pair
	return token
}

// report logs the figures of a phase, and checks each figure against the bound that bounds
// returns for the longest round trip, and for the slowness of the machine in this run.
func (f *trial) report(phase string, bounds func(trip, busy time.Duration) figures) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	most, found, trip := bounds(f.trip, 3*f.busy), f.found, f.trip
	f.t.Logf("%s, %s: accepted past expiry %v (bound %v), past logout %v (%v), good token refused %v (%v); round trip %v, slowness %v", f.engine, phase,
		found.pastExpiry.Round(time.Millisecond), most.pastExpiry.Round(time.Millisecond), found.pastLogout.Round(time.Millisecond), most.pastLogout.Round(time.Millisecond),
		found.refusal.Round(time.Millisecond), most.refusal.Round(time.Millisecond), trip.Round(time.Millisecond), f.busy.Round(time.Millisecond))
	if found.pastExpiry > most.pastExpiry || found.pastLogout > most.pastLogout || found.refusal > most.refusal {
		f.t.Errorf("%s, %s: a figure is above its bound", f.engine, phase)
	}
	f.found, f.busy = figures{}, 0
}

// TestSlowFiguresOfTime measures, on the built server and with a line that delays what
// verifiers hear: the longest acceptance of a token past its expiry, and past a logout with
// RefuseWhenStale, and the longest refusal of a good fresh token. The bounds come from the
// round trips and the slowness of the machine that the test has measured in the same run.
func TestSlowFiguresOfTime(t *testing.T) {
	slow(t)
	program, file := shifted(t)
	flags := []string{"--access-ttl", trialTTL.String(), "--max-sessions", "10000"}
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		cmd := exec.Command(program, serveArgs(dir, flags...)...)
		cmd.Env = []string{"SHIFT_FILE=" + file}
		s := serveCommand(t, dir, cmd)
		f := &trial{t: t, engine: "SQLite", admin: s.admin, setClock: func(by time.Duration) {
			draft := file + ".new"
			if err := errors.Join(os.WriteFile(draft, fmt.Appendf(nil, "%d", int64(by.Seconds())), 0o600), os.Rename(draft, file)); err != nil {
				t.Error(err)
			}
			time.Sleep(20 * time.Millisecond) // the program reads the file every 10 ms
		}}
		f.start(s.grpcAddr)
		f.everything()
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		in := install(t, flags...)
		set := shiftClock(t, in)
		s := serveCommand(t, "", in.serveCommand(in.uri))
		f := &trial{t: t, engine: "PostgreSQL", admin: s.admin, setClock: set}
		f.start(s.grpcAddr)
		f.everything()
	})
}

// everything runs the phases of the trial.
func (f *trial) everything() {
	f.t.Helper()
	at := func(d time.Duration) func(time.Duration) time.Duration {
		return func(time.Duration) time.Duration { return d }
	}
	calm := func(trip, busy time.Duration) figures { return figures{apart + busy, trip + busy, busy} }
	f.run(trialTTL+5*time.Second, at(0))
	f.report("nothing happens", calm)

	stepped := func(trip, busy time.Duration) figures {
		return figures{trip + apart + noticed + busy, trip + busy, trip + noticed + busy}
	}
	for _, by := range []time.Duration{2 * time.Hour, 0, -20 * time.Minute, 0} {
		f.set(by)
		f.run(4*time.Second, at(0))
	}
	f.report("the clock steps", stepped)

	f.run(time.Minute, func(since time.Duration) time.Duration { return since / 10 })
	f.report("the delay grows by a tenth", calm)

	for _, by := range []time.Duration{2 * time.Hour, 0} {
		f.set(by)
		f.run(12*time.Second, at(6*time.Second))
	}
	f.report("the clock steps behind a delay", stepped)

	// A delay of 16 s makes every token expire 16 s early, so the verifier refuses good tokens.
	stale := func(trip, busy time.Duration) figures {
		return figures{apart + busy, trialStale + apart + busy, trip + busy}
	}
	f.run(40*time.Second, func(since time.Duration) time.Duration { return since * 2 / 5 })
	f.report("the delay grows beyond the staleness", stale)

	f.run(5*time.Second, at(0))
	f.run(trialStale+6*time.Second, at(silence))
	f.run(5*time.Second, at(0))
	f.report("the line is silent, and then carries everything at once", stale)
}
