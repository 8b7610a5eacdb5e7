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

// reconnection bounds the time until a verifier is connected again and knows of missed
// revocations: the verifier's longest pause between two attempts, plus propagation.
const reconnection = 12*time.Second + propagation

// TestFaults runs verifiers while the server is killed, cut off and flooded, and while keys
// rotate. After each reconnection, a verifier must refuse every revoked token, and must
// keep refusing the token. A good token must always pass.
func TestFaults(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	var all sync.WaitGroup // not t.Parallel, which bounds the tests by cores; these tests mostly wait
	for name, fault := range map[string]func(*testing.T){
		"network faults": networkFaults, "cut off for too long": cutOffForTooLong,
		"keys change during a cut": keysChangeDuringACut, "flood of forged tokens": floodOfForgedTokens,
	} {
		all.Go(func() { t.Run(name, fault) })
	}
	all.Wait()
}

// downstream is a service's verifier. downstream counts the verifier's streams of the trust
// bundle, and the calls other than GetTime.
type downstream struct {
	*authn.Verifier
	calls, streams atomic.Int64
}

// newDownstream makes a verifier that connects through a proxy.
func newDownstream(t *testing.T, p *proxy, opts ...authn.Option) *downstream {
	t.Helper()
	d := &downstream{}
	conn, err := grpc.NewClient(p.addr(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: time.Second}),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if method != watchwordv1.TrustService_GetTime_FullMethodName { // once a minute, whatever the load
				d.calls.Add(1)
			}
			return invoke(ctx, method, req, reply, cc, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			if method == watchwordv1.TrustService_WatchBundle_FullMethodName { // reports have streams of their own
				d.streams.Add(1)
			}
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

// expect returns an error unless the verifier's result for a token is want: "ok", or the
// reason of a refusal.
func (d *downstream) expect(pair *watchwordv1.TokenPair, want string) error {
	_, err := d.Verify(context.Background(), pair.GetAccessToken())
	if want == "ok" {
		return err
	}
	return checkRefusal(err, want)
}

// checker gives the same tokens to a verifier every millisecond.
type checker struct {
	*downstream
	mu            sync.Mutex // guards the fields below
	good, revoked []*watchwordv1.TokenPair
	rounds        int
}

// startChecking starts a checker that runs until the test ends. The verifier must accept
// every good token, and must keep refusing every revoked token.
func startChecking(t *testing.T, d *downstream, good ...*watchwordv1.TokenPair) *checker {
	j := &checker{downstream: d, good: good}
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
			if err := j.checkAll(); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
		t.Logf("checked %d good tokens and %d revoked tokens in %d rounds", len(j.good), len(j.revoked), j.rounds)
	})
	return j
}

func (j *checker) checkAll() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.rounds++
	for _, pair := range j.good {
		if err := j.expect(pair, "ok"); err != nil {
			return fmt.Errorf("the verifier refused a good token: %w", err)
		}
	}
	for _, pair := range j.revoked {
		if err := j.expect(pair, "TOKEN_REVOKED"); err != nil {
			return fmt.Errorf("the verifier has refused a revoked token, and now: %w", err)
		}
	}
	return nil
}

// awaitRevoked waits until the verifier refuses a token, and checks the token from then on.
func (j *checker) awaitRevoked(t *testing.T, pair *watchwordv1.TokenPair, within time.Duration, when string) {
	t.Helper()
	took := eventually(t, within, "refusing a token revoked "+when, func() error { return j.expect(pair, "TOKEN_REVOKED") })
	t.Logf("a token revoked %s is refused after %v", when, took)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.revoked = append(j.revoked, pair)
}

// awaitConnections waits for n connections since the count from.
func (p *proxy) awaitConnections(t *testing.T, from, n int) {
	t.Helper()
	eventually(t, reconnection, "connecting to the proxy", func() error {
		if got := p.connections() - from; got < n {
			return fmt.Errorf("%d of %d connections", got, n)
		}
		return nil
	})
}

// networkFaults ends a session during each kind of fault. The same verifier meets all
// faults, so the test also notices if the verifier forgets an earlier revocation.
func networkFaults(t *testing.T) {
	dir := t.TempDir()
	s := serve(t, dir, "--access-ttl", "1h")
	p := newProxy(t, s.grpcAddr)
	c := dial(t, s.grpcAddr) // without the proxy
	password := s.admin
	j := startChecking(t, newDownstream(t, p), c.login(t, "admin", password))
	logout := func() *watchwordv1.TokenPair {
		t.Helper()
		pair := c.login(t, "admin", password)
		wantOK(t, "verify before the logout", j.expect(pair, "ok"))
		wantOK(t, "logout", c.logout(callCtx(t), pair))
		return pair
	}
	j.awaitRevoked(t, logout(), propagation, "without a fault")

	p.set(lineFaults{delay: 200 * time.Millisecond})
	j.awaitRevoked(t, logout(), propagation, "with a delay on the line")
	p.set(lineFaults{rate: 2000})
	j.awaitRevoked(t, logout(), propagation, "with a line of 2000 bytes a second")

	p.set(lineFaults{refuse: true})
	before := p.connections()
	p.cut()
	missed := logout()
	p.awaitConnections(t, before, 1)
	wantOK(t, "verify after a logout, while the verifier is cut off", j.expect(missed, "ok"))
	p.set(lineFaults{})
	j.awaitRevoked(t, missed, reconnection, "during a cut")

	p.set(lineFaults{breaks: 1000})
	before = p.connections()
	p.cut()
	missed = logout()
	p.awaitConnections(t, before, 2)
	p.set(lineFaults{})
	j.awaitRevoked(t, missed, reconnection, "while connections broke")

	p.set(lineFaults{swallow: true})
	missed = logout()
	wantOK(t, "verify after a logout, while the line drops all bytes", j.expect(missed, "ok"))
	p.set(lineFaults{})
	p.cut()
	j.awaitRevoked(t, missed, reconnection, "while the line dropped all bytes")

	missed = logout()
	s.kill()
	s = serve(t, dir, "--access-ttl", "1h")
	p.setBackend(s.grpcAddr)
	c = dial(t, s.grpcAddr)
	j.awaitRevoked(t, missed, reconnection, "before a kill of the server")
	j.awaitRevoked(t, logout(), reconnection, "after a kill of the server")
}

// cutOffForTooLong drops all bytes on the line without closing the connection. gRPC's
// keepalive must notice, and the verifier must refuse tokens after the staleness bound.
func cutOffForTooLong(t *testing.T) {
	s := serve(t, t.TempDir())
	p := newProxy(t, s.grpcAddr)
	const after = 10 * time.Second
	d := newDownstream(t, p, authn.WithMaxStaleness(after, authn.RefuseWhenStale))
	c := dial(t, s.grpcAddr)
	good := c.login(t, "admin", s.admin)
	wantOK(t, "verify while connected", d.expect(good, "ok"))
	p.set(lineFaults{swallow: true})
	began, known := time.Now(), d.Status().Staleness
	eventually(t, after+propagation, "refusing with BUNDLE_STALE", func() error {
		err := d.expect(good, "BUNDLE_STALE")
		if stale := time.Since(began) + known; err == nil && stale < after {
			t.Errorf("the verifier refused after %v without a message, want at least %v", stale, after)
		}
		return err
	})
	ended := c.login(t, "admin", s.admin)
	wantOK(t, "logout", c.logout(callCtx(t), ended))
	p.set(lineFaults{})
	eventually(t, reconnection, "accepting again", func() error { return d.expect(good, "ok") })
	wantOK(t, "verify of a session that ended during the cut", d.expect(ended, "TOKEN_REVOKED"))
}

// keysChangeDuringACut rotates and withdraws keys while many verifiers are connected, and
// again while all verifiers are cut off.
func keysChangeDuringACut(t *testing.T) {
	const watchers = 50
	s := serve(t, t.TempDir(), "--jwks-max-age", "0s")
	p := newProxy(t, s.grpcAddr)
	all := make([]*downstream, watchers)
	for i := range all {
		all[i] = newDownstream(t, p)
	}
	c := dial(t, s.grpcAddr)
	keys := watchwordv1.NewKeyServiceClient(c.conn)
	pair, admin := c.login(t, "admin", s.admin), c.login(t, "admin", s.admin, "watchword")
	expectAll := func(what string, within time.Duration, pair *watchwordv1.TokenPair, want string) {
		t.Helper()
		for i, d := range all {
			eventually(t, within, fmt.Sprintf("verifier %d: %s", i, what), func() error { return d.expect(pair, want) })
		}
	}
	rotate := func() *watchwordv1.TokenPair {
		t.Helper()
		before := kidOf(pair.GetAccessToken())
		if _, err := keys.RotateKey(bearer(callCtx(t), admin), &watchwordv1.RotateKeyRequest{}); err != nil {
			t.Fatal(err)
		}
		admin = c.refresh(t, admin)
		if pair = c.refresh(t, pair); kidOf(pair.GetAccessToken()) == before {
			t.Fatal("the old key still signs after a rotation")
		}
		return pair
	}
	revoke := func(leaked *watchwordv1.TokenPair) {
		t.Helper()
		if _, err := keys.RevokeKey(bearer(callCtx(t), admin), &watchwordv1.RevokeKeyRequest{Kid: kidOf(leaked.GetAccessToken())}); err != nil {
			t.Fatal(err)
		}
		admin, pair = c.refresh(t, admin), c.refresh(t, pair)
	}

	first := pair
	expectAll("token of the first key", propagation, first, "ok")
	second := rotate()
	expectAll("token of the second key", propagation, second, "ok")
	revoke(second) // withdraws the signing key
	expectAll("token of the withdrawn second key", propagation, second, "TOKEN_INVALID")
	expectAll("token of the third key", propagation, pair, "ok")
	expectAll("token of the first key after the withdrawal", propagation, first, "ok")
	for i, d := range all {
		if n := d.streams.Load(); n != 1 {
			t.Errorf("verifier %d opened %d streams, want 1", i, n)
		}
	}

	p.set(lineFaults{refuse: true})
	p.cut()
	third := rotate()
	revoke(first)
	for i, d := range all {
		wantOK(t, fmt.Sprintf("verifier %d, cut off", i), d.expect(first, "ok"))
	}
	p.set(lineFaults{})
	expectAll("token of a key withdrawn during the cut", reconnection, first, "TOKEN_INVALID")
	expectAll("token of a key made during the cut", propagation, third, "ok")
}

// floodOfForgedTokens gives a verifier forged tokens, tokens of unknown keys, and many good
// tokens, with and without a working line to the server.
func floodOfForgedTokens(t *testing.T) {
	const cache, seenOnce = 128 << 10, 200
	s := serve(t, t.TempDir(), "--access-ttl", "1h")
	p := newProxy(t, s.grpcAddr)
	d := newDownstream(t, p, authn.WithCacheSize(cache))
	c := dial(t, s.grpcAddr)
	j := startChecking(t, d, c.login(t, "admin", s.admin), c.login(t, "admin", s.admin))
	good := make([]*watchwordv1.TokenPair, seenOnce)
	for i := range good {
		good[i] = c.refresh(t, j.good[0])
	}
	ending := c.login(t, "admin", s.admin)
	wantOK(t, "verify before the logout", d.expect(ending, "ok"))

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
						t.Errorf("verify of a forged token: got error %v, want TOKEN_INVALID", err)
						return
					}
					forged.Add(1)
				}
				if err := d.expect(good[n%seenOnce], "ok"); err != nil {
					t.Errorf("the verifier refused a good token: %v", err)
					return
				}
				slowest.Store(max(slowest.Load(), int64(time.Since(began))))
				if size := d.Status().CacheBytes; size > cache || size == 0 {
					t.Errorf("the cache holds %d bytes, want 1 to %d", size, cache)
					return
				}
			}
		})
	}
	began := time.Now()
	awaitForged := func(n int64) {
		t.Helper()
		from := forged.Load()
		eventually(t, runTimeout, "checking forged tokens", func() error {
			if got := forged.Load() - from; got < n {
				return fmt.Errorf("%d of %d tokens", got, n)
			}
			return nil
		})
	}
	awaitForged(2000)
	wantOK(t, "logout", c.logout(callCtx(t), ending))
	j.awaitRevoked(t, ending, propagation, "in a flood")
	if calls, streams := d.calls.Load(), d.streams.Load(); calls != 0 || streams != 1 {
		t.Errorf("in the flood, the verifier made %d calls and %d streams to the server, want 0 and 1", calls, streams)
	}
	p.set(lineFaults{swallow: true})
	awaitForged(2000)
	stop()
	forgers.Wait()
	t.Logf("%.0f forged tokens a second; the slowest round of three checks took %v",
		float64(forged.Load())/time.Since(began).Seconds(), time.Duration(slowest.Load()))
}

// forge returns a copy of a good token with a wrong signature, and a copy with an unknown
// kid.
func forge(raw string) []string {
	text := func(n int) string { return base64.RawURLEncoding.EncodeToString([]byte(rand.Text())[:n]) }
	parts := strings.Split(raw, ".")
	head := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"EdDSA","typ":"at+jwt","kid":"` + text(12) + `"}`))
	signature := text(16) + parts[2][22:]
	return []string{parts[0] + "." + parts[1] + "." + signature, head + "." + parts[1] + "." + parts[2]}
}
