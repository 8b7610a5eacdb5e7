package authn

import (
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/trusttest"
)

// judge is a verifier without a stream, and a signing key of which the verifier trusts the
// public half.
type judge struct {
	*Verifier
	key *token.SigningKey
}

func newJudge(t testing.TB, stale staleness, cacheBytes int) *judge {
	t.Helper()
	key, err := token.GenerateKey(token.EdDSA)
	if err != nil {
		t.Fatal(err)
	}
	j := &judge{&Verifier{
		audience: audience{names: []string{"a"}}, bundle: newBundle(slog.New(slog.DiscardHandler), 0, stale), cache: newCache(cacheBytes, false),
	}, key}
	t.Cleanup(j.bundle.fresh.close)
	j.trust(t, j.named())
	j.beat()
	return j
}

func (j *judge) named() *watchwordv1.VerificationKey {
	return &watchwordv1.VerificationKey{Key: j.key.Public().JWK()}
}

func (j *judge) trust(t testing.TB, keys ...*watchwordv1.VerificationKey) {
	if err := j.bundle.learn(&watchwordv1.Change{TrustState: &watchwordv1.TrustState{
		Issuer: "i", MaxTokenLifetime: durationpb.New(time.Hour), Margin: durationpb.New(time.Minute), Keys: keys,
	}}); err != nil {
		t.Fatal(err)
	}
}

func (j *judge) beat() { j.ahead(0) }

// mint returns the token of user n, with a life of an hour.
func (j *judge) mint(t testing.TB, n int) string {
	t.Helper()
	now := time.Now()
	raw, err := token.Sign(j.key, &token.Claims{
		Issuer: "i", Subject: fmt.Sprintf("user-%d", n), ID: fmt.Sprint(n), SessionID: fmt.Sprintf("session-%d", n), Username: "n",
		Audience: []string{"a", "b"}, IssuedAt: now, ExpiresAt: now.Add(time.Hour), Version: 7,
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (j *judge) wants(t *testing.T, what, raw string, want watchwordv1.ErrorReason) {
	t.Helper()
	if _, got, _ := j.verify(raw, &j.audience); got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func (j *judge) checked() uint64 { return j.counters.checked.Load() }

// The signature of a cached token is checked once, and everything else at every use.
func TestEveryUseOfACachedTokenIsJudged(t *testing.T) {
	end := func(n int) func(*judge) error {
		return func(j *judge) error {
			return j.bundle.learn(&watchwordv1.Change{EndedSessions: []*watchwordv1.EndedSession{{SessionId: fmt.Sprintf("session-%d", n)}}})
		}
	}
	raise := func(n int, version int64, revoked bool) func(*judge) error {
		return func(j *judge) error {
			return j.bundle.learn(&watchwordv1.Change{RaisedVersions: []*watchwordv1.RaisedVersion{
				{UserId: fmt.Sprintf("user-%d", n), Version: version, Revoked: revoked}}})
		}
	}
	for name, c := range map[string]struct {
		then func(*judge) error
		want watchwordv1.ErrorReason
	}{
		"nothing happens":       {func(*judge) error { return nil }, accepted},
		"another session ends":  {end(2), accepted},
		"its session ends":      {end(1), tokenRevoked},
		"its user is revoked":   {raise(1, 8, true), tokenRevoked},
		"its rights changed":    {raise(1, 8, false), tokenStale},
		"raised to its version": {raise(1, 7, true), accepted},
		"another user's rights": {raise(2, 9, true), accepted},
		"it expires":            {func(*judge) error { time.Sleep(time.Hour); return nil }, tokenExpired},
		"just before expiry":    {func(*judge) error { time.Sleep(time.Hour - time.Second); return nil }, accepted},
		"the server is ahead":   {func(j *judge) error { j.ahead(2 * time.Hour); return nil }, tokenExpired},
		"the key is withdrawn":  {func(j *judge) error { j.trust(nil); return nil }, tokenInvalid},
		"the key's use ends": {func(j *judge) error {
			key := j.named()
			key.VerifiesUntil = timestamppb.New(time.Now().Add(time.Minute))
			j.trust(nil, key)
			time.Sleep(time.Minute)
			return nil
		}, tokenInvalid},
		"the key is named again": {func(j *judge) error { j.trust(nil); j.trust(nil, j.named()); return nil }, accepted},
		"the bundle is closed":   {func(j *judge) error { j.bundle.fresh.close(); return nil }, bundleStale},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j := newJudge(t, staleness{after: 24 * time.Hour}, 1<<20)
				raw := j.mint(t, 1)
				for range 3 {
					j.wants(t, "before", raw, accepted)
				}
				if n := j.checked(); n != 1 {
					t.Errorf("the token was checked %d times, want once", n)
				}
				if err := c.then(j); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					j.wants(t, "after", raw, c.want)
				}
				if _, reason, _ := j.verify(raw, &audience{names: []string{"c", "a"}}); reason != c.want {
					t.Errorf("for one of several audiences: %v, want %v", reason, c.want)
				}
				if p, reason, _ := j.verify(raw, &audience{names: []string{"c"}}); reason == accepted || p != nil && reason != audienceMismatch ||
					c.want == accepted && reason != audienceMismatch {
					t.Errorf("for another audience: %v, %v", p, reason)
				}
				if c.want == accepted {
					j.wants(t, "for its own again", raw, accepted)
				}
			})
		})
	}
}

// ahead sends a heartbeat of a server with a clock ahead of this machine's.
func (j *judge) ahead(by time.Duration) {
	if err := j.bundle.beat(trusttest.Heartbeat(time.Now().Add(by)).GetHeartbeat(), true); err != nil {
		panic(err)
	}
}

// A token with one changed byte does not find the cache entry of the good token.
func TestAnAlteredTokenIsNotTakenForACachedOne(t *testing.T) {
	j := newJudge(t, staleness{after: time.Hour}, 1<<20)
	raw := j.mint(t, 1)
	j.wants(t, "unaltered", raw, accepted)
	for i := range raw {
		for _, c := range []byte("A_.") {
			if altered := raw[:i] + string(c) + raw[i+1:]; altered != raw {
				j.wants(t, fmt.Sprintf("with %q at %d", c, i), altered, tokenInvalid)
			}
		}
	}
	for _, altered := range []string{raw + "=", raw + "A", " " + raw, raw[:len(raw)-1], raw[1:]} {
		j.wants(t, "of another length", altered, tokenInvalid)
	}
}

// If a key is withdrawn while a token's signature is being checked, the token may be put
// into the cache after the withdrawal. The cached token is refused.
func TestWithdrawalDuringACheck(t *testing.T) {
	j := newJudge(t, staleness{after: time.Hour}, 1<<20)
	raw := j.mint(t, 1)
	inFlight, reason := j.bundle.authenticate(raw)
	if reason != accepted || j.bundle.judge(inFlight, true) != accepted {
		t.Fatal(reason)
	}
	j.trust(t) // withdraws the key
	j.cache.put(raw, inFlight)
	j.wants(t, "put in after the withdrawal", raw, tokenInvalid)
	j.trust(t, j.named())
	j.cache.put(raw, inFlight)
	j.wants(t, "the key is trusted again", raw, accepted)
}

// Many signatures are checked at once while their key is withdrawn and named again: a
// withdrawn key is never accepted.
func TestWithdrawalsDuringChecks(t *testing.T) {
	j := newJudge(t, staleness{after: time.Hour}, 1<<20)
	tokens := make([]string, 50)
	for i := range tokens {
		tokens[i] = j.mint(t, i)
	}
	for range 50 {
		var checks sync.WaitGroup
		for i := range 4 {
			checks.Go(func() {
				for n := range tokens {
					j.verify(tokens[(n+i*13)%len(tokens)], &j.audience)
				}
			})
		}
		j.trust(t)
		checks.Wait()
		for _, raw := range tokens {
			j.wants(t, "withdrawn", raw, tokenInvalid)
		}
		j.trust(t, j.named())
		j.wants(t, "trusted", tokens[0], accepted)
	}
}

// A flood of good tokens used once does not evict the busy tokens, forged tokens are not
// cached, and the memory stays within the limit.
func TestCacheInAFlood(t *testing.T) {
	const budget, flood = 512 << 10, 1500
	j := newJudge(t, staleness{after: time.Hour}, budget)
	busy := make([]string, 60)
	for i := range busy {
		busy[i] = j.mint(t, i)
		j.wants(t, "busy", busy[i], accepted)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	was := j.checked()
	for n := range flood {
		raw := j.mint(t, 1_000_000+n)
		j.wants(t, "flood", raw, accepted)
		forged := raw[:len(raw)-10] + "AAAAAAAAAA"
		j.wants(t, "forged", forged, tokenInvalid)
		j.wants(t, "busy", busy[n%len(busy)], accepted)
		if _, bytes := j.cache.size(); bytes > budget {
			t.Fatalf("the cache has %d bytes, more than %d", bytes, budget)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if again := int(j.checked()-was) - 2*flood; again > len(busy)/10 {
		t.Errorf("busy tokens were checked again %d times", again)
	}
	if grown := int(after.HeapAlloc) - int(before.HeapAlloc); grown > budget {
		t.Errorf("the heap grew by %d bytes, more than %d", grown, budget)
	}
	entries, _ := j.cache.size()
	t.Logf("%d entries in a cache of %d bytes; the heap grew by %d bytes", entries, budget, int(after.HeapAlloc)-int(before.HeapAlloc))
}

func TestCacheLimits(t *testing.T) {
	c := newCache(cacheShards*2000, false)
	if c.get(strings.Repeat("x", token.MaxLength+1)) != nil || c.get("") != nil || c.get("short") != nil {
		t.Error("an empty cache has an entry")
	}
	big := strings.Repeat("y", 3000)
	if got := c.put(big, &authentic{}); got == nil || c.get(big) != nil {
		t.Error("a token larger than a shard's budget was cached")
	}
	if c := newCache(0, false); c.put("x", &authentic{}) == nil || c.get("x") != nil {
		t.Error("a cache of size zero has an entry")
	}
}

// While tokens are stored and evicted, a token that stays in the cache is found by every
// look-up, and no look-up finds the entry of another token. All tokens have one slot, so its
// chain of eight entries changes all the time while get follows the chain.
func TestLookUpsDuringEvictions(t *testing.T) {
	const each = 2_000
	kept := "token-0000000000--"
	c := newCache(cacheShards*8*entrySize(kept), true)
	var names []string
	for n := 1; len(names) < 2*each; n++ {
		if raw := fmt.Sprintf("token-%010d--", n); c.slot(raw) == c.slot(kept) {
			names = append(names, raw)
		}
	}
	c.put(kept, &authentic{principal: Principal{claims: token.Claims{ID: kept}}})
	var writers, readers sync.WaitGroup
	for w := range 2 {
		writers.Go(func() {
			for _, raw := range names[w*each : (w+1)*each] {
				c.get(kept) // a busy token, which no eviction takes
				c.put(raw, &authentic{principal: Principal{claims: token.Claims{ID: raw}}})
			}
		})
	}
	var over atomic.Bool
	found := make([]uint64, 2)
	for r := range found {
		readers.Go(func() {
			for n := 0; !over.Load(); n++ {
				if got := c.get(kept); got == nil || got.principal.TokenID() != kept {
					t.Errorf("the busy token was not found: %v", got)
					return
				}
				found[r]++
				raw := names[n%len(names)]
				if e := c.in(c.slot(raw), raw); e != nil && e.principal.TokenID() != raw { // get would make the token busy
					t.Errorf("found the entry of %s for %s", e.principal.TokenID(), raw)
				}
			}
		})
	}
	writers.Wait()
	over.Store(true)
	readers.Wait()
	entries, bytes := c.size()
	if entries != 8 || bytes != entries*entrySize(kept) {
		t.Errorf("%d entries of %d bytes", entries, bytes)
	}
	linked := 0
	for i := range c.slots {
		for e := c.slots[i].Load(); e != nil; e = e.chain.Load() {
			linked++
		}
	}
	if linked != entries {
		t.Errorf("%d entries can be found, of %d", linked, entries)
	}
	if want := found[0] + found[1] + 2*each; c.found.sum() != want {
		t.Errorf("%d look-ups were counted, want %d", c.found.sum(), want)
	}
}

func TestStaleness(t *testing.T) {
	for _, policy := range []StalePolicy{ContinueWhenStale, RefuseWhenStale} {
		synctest.Test(t, func(t *testing.T) {
			j := newJudge(t, staleness{time.Minute, policy}, 1<<20)
			raw, fresh := j.mint(t, 1), j.mint(t, 2)
			status := func(stale bool, age time.Duration) {
				t.Helper()
				if s := j.Status(); s.Stale != stale || s.Staleness.Round(time.Second) != age || s.Ready != !(stale && policy == RefuseWhenStale) {
					t.Errorf("%+v, want stale %t and an age of %v", s, stale, age)
				}
			}
			j.wants(t, "at first", raw, accepted)
			status(false, 0)
			time.Sleep(time.Minute)
			j.wants(t, "after a minute", raw, accepted)
			status(false, time.Minute)
			time.Sleep(time.Second)
			want := accepted
			if policy == RefuseWhenStale {
				want = bundleStale
			}
			j.wants(t, "stale, cached", raw, want)
			j.wants(t, "stale, not cached", fresh, want)
			status(true, 61*time.Second)
			// A server that has lost its database sends heartbeats with an old AsOf.
			if err := j.bundle.beat(beatOf(0, 2*time.Minute), true); err != nil {
				t.Fatal(err)
			}
			j.wants(t, "a heartbeat with an old AsOf", raw, want)
			j.beat()
			j.wants(t, "after a heartbeat", raw, accepted)
			status(false, 0)
		})
	}
}
