package e2e

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// reconnection is how long a verifier may take to be back, and to know what it
// missed: its longest pause, in which it connects, and what a revocation takes.
const reconnection = 12*time.Second + propagation

// TestFaults holds verifiers against a server that is killed, cut off, rotated and
// flooded. What was revoked passes no more from the moment that a verifier is
// connected again, and never again after it; what is good passes always.
func TestFaults(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	var all sync.WaitGroup // and not t.Parallel, since they wait more than they work
	for name, fault := range map[string]func(*testing.T){
		"bad lines": badLines, "cut off for too long": cutOffForTooLong,
		"keys change during a cut": keysChangeDuringACut, "flood": flood,
	} {
		all.Go(func() { t.Run(name, fault) })
	}
	all.Wait()
}

// downstream is a service's verifier, and what it asked of its connection.
type downstream struct {
	*authn.Verifier
	calls, streams atomic.Int64
}

// watchOver makes a verifier whose connection goes over a proxy.
func watchOver(t *testing.T, p *proxy, opts ...authn.Option) *downstream {
	t.Helper()
	d := &downstream{}
	conn, err := grpc.NewClient(p.addr(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: time.Second}),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			d.calls.Add(1)
			return invoke(ctx, method, req, reply, cc, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			d.streams.Add(1)
			return open(ctx, desc, cc, method, opts...)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if d.Verifier, err = authn.NewVerifier(callCtx(t), conn, append(opts, authn.WithAudience("internal"))...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// says returns an error unless the verifier says this of a token: a reason, or
// "ok".
func (d *downstream) says(pair *watchwordv1.TokenPair, want string) error {
	_, err := d.Verify(context.Background(), pair.GetAccessToken())
	if want == "ok" {
		return err
	}
	return checkRefusal(err, want)
}

// jury asks a verifier about its tokens without end.
type jury struct {
	*downstream
	mu         sync.Mutex
	good, dead []*watchwordv1.TokenPair
	asked      int
}

// sit lets a jury sit until the test ends: a good token is never refused, and one
// that was refused as revoked never passes again.
func sit(t *testing.T, d *downstream, good ...*watchwordv1.TokenPair) *jury {
	j := &jury{downstream: d, good: good}
	stop, done := make(chan struct{}), make(chan struct{})
	tick := time.NewTicker(time.Millisecond)
	go func() {
		defer close(done)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			if err := j.ask(); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
		t.Logf("asked %d times about %d good tokens and %d revoked ones", j.asked, len(j.good), len(j.dead))
	})
	return j
}

func (j *jury) ask() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.asked++
	for _, pair := range j.good {
		if err := j.says(pair, "ok"); err != nil {
			return fmt.Errorf("a good token was refused: %w", err)
		}
	}
	for _, pair := range j.dead {
		if err := j.says(pair, "TOKEN_REVOKED"); err != nil {
			return fmt.Errorf("a revoked token, refused before: %w", err)
		}
	}
	return nil
}

// buries waits until a revoked token is refused, and has it watched from then on.
func (j *jury) buries(t *testing.T, pair *watchwordv1.TokenPair, within time.Duration, when string) {
	t.Helper()
	took := eventually(t, within, "revoked, "+when, func() error { return j.says(pair, "TOKEN_REVOKED") })
	t.Logf("%s: refused after %v", when, took)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.dead = append(j.dead, pair)
}

// awaitTries waits until somebody has connected so many times more.
func (p *proxy) awaitTries(t *testing.T, from, n int) {
	t.Helper()
	eventually(t, reconnection, "tries to connect", func() error {
		if got := p.connections() - from; got < n {
			return fmt.Errorf("%d of %d", got, n)
		}
		return nil
	})
}

// badLines lets a session end in each kind of fault. One verifier goes through all
// of them, so that what it learned before is at stake in each.
func badLines(t *testing.T) {
	dir := t.TempDir()
	s := serve(t, dir, "--access-ttl", "1h")
	p := newProxy(t, s.grpcAddr)
	c := dial(t, s.grpcAddr) // its calls take another way
	password := s.admin
	j := sit(t, watchOver(t, p), c.login(t, "admin", password))
	logout := func() *watchwordv1.TokenPair {
		t.Helper()
		pair := c.login(t, "admin", password)
		wantOK(t, "before it ends", j.says(pair, "ok"))
		wantOK(t, "logout", c.logout(callCtx(t), pair))
		return pair
	}
	j.buries(t, logout(), propagation, "in good weather")

	p.set(lineFaults{delay: 200 * time.Millisecond})
	j.buries(t, logout(), propagation, "over a slow line")
	p.set(lineFaults{rate: 2000})
	j.buries(t, logout(), propagation, "over a narrow line")

	p.set(lineFaults{refuse: true})
	tries := p.connections()
	p.cut()
	missed := logout()
	p.awaitTries(t, tries, 1)
	wantOK(t, "cut off, it cannot know", j.says(missed, "ok"))
	p.set(lineFaults{})
	j.buries(t, missed, reconnection, "during a cut")

	p.set(lineFaults{breaks: 1000})
	tries = p.connections()
	p.cut()
	missed = logout()
	p.awaitTries(t, tries, 2)
	p.set(lineFaults{})
	j.buries(t, missed, reconnection, "while connections broke")

	p.set(lineFaults{swallow: true})
	missed = logout()
	wantOK(t, "in a black hole, it cannot know", j.says(missed, "ok"))
	p.set(lineFaults{})
	p.cut()
	j.buries(t, missed, reconnection, "in a black hole")

	missed = logout()
	s.kill()
	s = serve(t, dir, "--access-ttl", "1h")
	p.setBackend(s.grpcAddr)
	c = dial(t, s.grpcAddr)
	j.buries(t, missed, reconnection, "before a kill")
	j.buries(t, logout(), reconnection, "after it")
}

// cutOffForTooLong falls into a black hole, out of which keepalive finds.
func cutOffForTooLong(t *testing.T) {
	s := serve(t, t.TempDir())
	p := newProxy(t, s.grpcAddr)
	const after = 10 * time.Second
	d := watchOver(t, p, authn.WithMaxStaleness(after, authn.RefuseWhenStale))
	c := dial(t, s.grpcAddr)
	good := c.login(t, "admin", s.admin)
	wantOK(t, "connected", d.says(good, "ok"))
	p.set(lineFaults{swallow: true})
	began, known := time.Now(), d.Status().Staleness
	eventually(t, after+propagation, "refused as stale", func() error {
		err := d.says(good, "BUNDLE_STALE")
		if stale := time.Since(began) + known; err == nil && stale < after {
			t.Errorf("refused when it had heard nothing for %v", stale)
		}
		return err
	})
	ended := c.login(t, "admin", s.admin)
	wantOK(t, "logout", c.logout(callCtx(t), ended))
	p.set(lineFaults{})
	eventually(t, reconnection, "accepted again", func() error { return d.says(good, "ok") })
	wantOK(t, "ended meanwhile", d.says(ended, "TOKEN_REVOKED"))
}

// keysChangeDuringACut rotates and withdraws keys before many watchers, who are
// all connected at first, and all cut off then.
func keysChangeDuringACut(t *testing.T) {
	const watchers = 50
	s := serve(t, t.TempDir(), "--jwks-max-age", "0s")
	p := newProxy(t, s.grpcAddr)
	all := make([]*downstream, watchers)
	for i := range all {
		all[i] = watchOver(t, p)
	}
	c := dial(t, s.grpcAddr)
	keys := watchwordv1.NewKeyServiceClient(c.conn)
	pair := c.login(t, "admin", s.admin)
	say := func(what string, within time.Duration, pair *watchwordv1.TokenPair, want string) {
		t.Helper()
		for i, d := range all {
			eventually(t, within, fmt.Sprintf("%s, by watcher %d", what, i), func() error { return d.says(pair, want) })
		}
	}
	rotate := func() *watchwordv1.TokenPair {
		t.Helper()
		before := kidOf(pair.GetAccessToken())
		if _, err := keys.RotateKey(bearer(callCtx(t), pair), &watchwordv1.RotateKeyRequest{}); err != nil {
			t.Fatal(err)
		}
		if pair = c.refresh(t, pair); kidOf(pair.GetAccessToken()) == before {
			t.Fatal("the old key signs after a rotation")
		}
		return pair
	}
	revoke := func(leaked *watchwordv1.TokenPair) {
		t.Helper()
		if _, err := keys.RevokeKey(bearer(callCtx(t), pair), &watchwordv1.RevokeKeyRequest{Kid: kidOf(leaked.GetAccessToken())}); err != nil {
			t.Fatal(err)
		}
		pair = c.refresh(t, pair)
	}

	first := pair
	say("at first", propagation, first, "ok")
	second := rotate()
	say("of the next key", propagation, second, "ok")
	revoke(second) // which signs
	say("of the withdrawn key", propagation, second, "TOKEN_INVALID")
	say("of the one in its place", propagation, pair, "ok")
	say("of the one before", propagation, first, "ok")
	for i, d := range all {
		if n := d.streams.Load(); n != 1 {
			t.Errorf("watcher %d heard of it over %d streams", i, n)
		}
	}

	p.set(lineFaults{refuse: true})
	p.cut()
	third := rotate()
	revoke(first)
	for i, d := range all {
		wantOK(t, fmt.Sprintf("cut off, watcher %d", i), d.says(first, "ok"))
	}
	p.set(lineFaults{})
	say("withdrawn during a cut", reconnection, first, "TOKEN_INVALID")
	say("rotated to during a cut", propagation, third, "ok")
}

// flood asks for many tokens that are forged, of unknown keys, and good but seen
// once, in a black hole and out of it.
func flood(t *testing.T) {
	const cache, seenOnce = 128 << 10, 200
	s := serve(t, t.TempDir(), "--access-ttl", "1h")
	p := newProxy(t, s.grpcAddr)
	d := watchOver(t, p, authn.WithCacheSize(cache))
	c := dial(t, s.grpcAddr)
	j := sit(t, d, c.login(t, "admin", s.admin), c.login(t, "admin", s.admin))
	good := make([]*watchwordv1.TokenPair, seenOnce)
	for i := range good {
		good[i] = c.refresh(t, j.good[0])
	}
	ending := c.login(t, "admin", s.admin)
	wantOK(t, "before it ends", d.says(ending, "ok"))

	var forged atomic.Int64
	var slowest atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	var forgers sync.WaitGroup
	defer forgers.Wait()
	defer stop()
	for range 4 {
		forgers.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				began := time.Now()
				for _, raw := range forge(good[n%seenOnce].GetAccessToken()) {
					if _, err := d.Verify(ctx, raw); checkRefusal(err, "TOKEN_INVALID") != nil {
						t.Errorf("a forged token: %v", err)
						return
					}
					forged.Add(1)
				}
				if err := d.says(good[n%seenOnce], "ok"); err != nil {
					t.Errorf("a good token: %v", err)
					return
				}
				slowest.Store(max(slowest.Load(), int64(time.Since(began))))
				if size := d.Status().CacheBytes; size > cache || size == 0 {
					t.Errorf("the cache holds %d bytes, its bound is %d", size, cache)
					return
				}
			}
		})
	}
	began := time.Now()
	more := func(n int64) {
		t.Helper()
		from := forged.Load()
		eventually(t, runTimeout, "forged tokens", func() error {
			if got := forged.Load() - from; got < n {
				return fmt.Errorf("%d of %d", got, n)
			}
			return nil
		})
	}
	more(2000)
	wantOK(t, "logout", c.logout(callCtx(t), ending))
	j.buries(t, ending, propagation, "in a flood")
	if calls, streams := d.calls.Load(), d.streams.Load(); calls != 0 || streams != 1 {
		t.Errorf("the flood made the verifier ask: %d calls, %d streams", calls, streams)
	}
	p.set(lineFaults{swallow: true})
	more(2000)
	stop()
	forgers.Wait()
	t.Logf("%.0f forged tokens a second; the slowest three checks took %v",
		float64(forged.Load())/time.Since(began).Seconds(), time.Duration(slowest.Load()))
}

// forge makes of a good token one whose signature is another, and one of a key that
// nobody has.
func forge(raw string) []string {
	text := func(n int) string { return base64.RawURLEncoding.EncodeToString([]byte(rand.Text())[:n]) }
	parts := strings.Split(raw, ".")
	head := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"EdDSA","typ":"at+jwt","kid":"` + text(12) + `"}`))
	signature := text(16) + parts[2][22:]
	return []string{parts[0] + "." + parts[1] + "." + signature, head + "." + parts[1] + "." + parts[2]}
}
