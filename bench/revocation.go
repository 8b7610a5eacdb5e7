package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

const (
	watchers    = 1000
	perConn     = 40 // each watcher has a stream of the bundle and one of reports, and the server takes 100 calls on one connection
	revocations = 1_000_000
)

// revocation measures from the answer to a Logout until the last of all watchers
// refuses the session's token, which each of them had accepted just before.
func revocation(b *bench) error {
	ours, err := startWatchword("")
	if err != nil {
		return err
	}
	defer ours.close()
	conns, err := dial(ours.addr, 1+watchers/perConn)
	if err != nil {
		return err
	}
	verifiers, err := watch(conns[1:])
	defer func() {
		var tasks sync.WaitGroup
		for _, v := range verifiers {
			tasks.Go(func() { v.Close() })
		}
		tasks.Wait()
		for _, c := range conns {
			c.Close()
		}
	}()
	if err != nil {
		return err
	}
	auth := watchwordv1.NewAuthServiceClient(conns[0])
	var took []float64
	for range b.of(50, 500) {
		pair, err := ours.login(auth)
		if err != nil {
			return err
		}
		elapsed, err := logOut(auth, pair, verifiers)
		if err != nil {
			return err
		}
		took = append(took, milliseconds(elapsed))
	}
	b.report("revocation/1000-watchers/p99", quantile(took, 0.99), "ms", under(100))
	b.report("revocation/1000-watchers/p50", quantile(took, 0.5), "ms", limit{})
	b.report("revocation/1000-watchers/longest", quantile(took, 1), "ms", limit{})
	return nil
}

// watch makes verifiers, each with a stream of its own.
func watch(conns []*grpc.ClientConn) ([]*authn.Verifier, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var verifiers []*authn.Verifier
	for i := range watchers {
		v, err := authn.NewVerifier(ctx, conns[i%len(conns)], authn.WithAudience(audience), authn.WithoutWaiting())
		if err != nil {
			return verifiers, err
		}
		verifiers = append(verifiers, v)
	}
	for _, v := range verifiers {
		if err := v.Ready(ctx); err != nil {
			return verifiers, err
		}
	}
	return verifiers, nil
}

// logOut calls each verifier until the verifier refuses the token, one verifier after the other.
// When the last verifier refuses, all verifiers have the logout. At any time only one verifier
// for each core is called, so the calls hardly delay the messages to the other verifiers.
func logOut(auth watchwordv1.AuthServiceClient, pair *watchwordv1.TokenPair, verifiers []*authn.Verifier) (time.Duration, error) {
	ctx, raw := context.Background(), pair.GetAccessToken()
	var tasks sync.WaitGroup
	errs := make([]error, cores)
	for w := range cores {
		tasks.Go(func() {
			for _, v := range verifiers[w*len(verifiers)/cores : (w+1)*len(verifiers)/cores] {
				if _, err := v.Verify(ctx, raw); err != nil {
					errs[w] = fmt.Errorf("before the logout: %w", err)
				}
			}
		})
	}
	if tasks.Wait(); errors.Join(errs...) != nil {
		return 0, errors.Join(errs...)
	}
	if _, err := auth.Logout(ctx, &watchwordv1.LogoutRequest{RefreshToken: pair.GetRefreshToken()}); err != nil {
		return 0, err
	}
	answered := time.Now()
	for _, v := range verifiers {
		for {
			_, err := v.Verify(ctx, raw)
			if authn.Reason(err) == watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED {
				break
			}
			if err != nil || time.Since(answered) > 10*time.Second {
				return 0, fmt.Errorf("after the logout a watcher says: %v", err)
			}
			time.Sleep(50 * time.Microsecond)
		}
	}
	return time.Since(answered), nil
}

// memory measures what a million ended sessions take in a verifier, and by how much they slow a
// look-up down.
func memory(b *bench) error {
	issuer, err := newIssuer()
	if err != nil {
		return err
	}
	defer issuer.close()
	tokens, err := issuer.mint(manyTokens)
	if err != nil {
		return err
	}
	empty, err := issuer.verifier(0)
	if err != nil {
		return err
	}
	defer empty.Close()
	before := liveHeap()
	full, err := issuer.verifier(revocations)
	if err != nil {
		return err
	}
	defer full.Close()
	grown := liveHeap() - before
	if n := full.Status().EndedSessions; n != revocations {
		return fmt.Errorf("the verifier knows of %d revocations", n)
	}
	b.report("memory/bytes-per-revocation", grown/revocations, "bytes", under(100))
	return lookUps(b, tokens, empty, full)
}

// lookUps compares a verifier without revocations with a verifier that knows a million
// revocations.
func lookUps(b *bench, tokens []string, empty, full *authn.Verifier) error {
	// A verifier remembers that a token was accepted until a key or a revocation changes, so
	// most calls look nothing up, whether the interceptor or VerifyFor checks the token.
	// BenchmarkIDMap, in authn, measures a single look-up.
	ctx := context.Background()
	calls := incoming(tokens)
	lookUp := func(v *authn.Verifier) func(worker, i int) error {
		return func(worker, i int) error {
			_, err := v.VerifyFor(ctx, tokens[(worker*len(tokens)/cores+i)%len(tokens)], audience)
			return err
		}
	}
	sides := []side{
		{"look-up in none", lookUp(empty)}, {"look-up in a million", lookUp(full)},
		{"interceptor, none", through(empty.UnaryServerInterceptor(), calls)},
		{"interceptor, a million", through(full.UnaryServerInterceptor(), calls)},
	}
	for _, s := range sides { // from now on each verifier has seen every token, and both ways of a call accept the tokens
		for i := range tokens {
			if err := s.call(0, i); err != nil {
				return err
			}
		}
	}
	r := race{turns: b.of(9, 41), stint: 100 * time.Millisecond, workers: cores, batch: 32}
	all, err := r.run(sides...)
	if err != nil {
		return err
	}
	b.report("memory/look-up/of-empty", all[0].over(all[1]), "times", atMost(1.2))
	b.report("memory/look-up", all[1].nanos(), "ns", limit{})
	b.report("memory/interceptor/of-empty", all[2].over(all[3]), "times", atMost(1.2))
	b.report("memory/interceptor", all[3].nanos(), "ns", limit{})
	return nil
}

// liveHeap returns the memory that is still in use, in bytes.
func liveHeap() float64 {
	runtime.GC()
	runtime.GC() // a second run also frees what the pools of package sync held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}
