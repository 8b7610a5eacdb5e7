package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	testv1 "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"

	"github.com/watchword-auth/watchword/authn"
)

const manyTokens = 10_000

// guarded is the information about a call that an interceptor gets.
var guarded = &grpc.UnaryServerInfo{FullMethod: testv1.TestService_UnaryCall_FullMethodName}

func noop(context.Context, any) (any, error) { return nil, nil }

// incoming returns the contexts of calls, as a server has them.
func incoming(tokens []string) []context.Context {
	calls := make([]context.Context, len(tokens))
	for k, raw := range tokens {
		calls[k] = metadata.NewIncomingContext(context.Background(), metadata.Pairs(
			":authority", "echo", "content-type", "application/grpc", "user-agent", "grpc-go", "authorization", "Bearer "+raw))
	}
	return calls
}

// through makes calls through an interceptor around a handler that does nothing. Each worker
// begins at a different call.
func through(intercept grpc.UnaryServerInterceptor, calls []context.Context) func(worker, i int) error {
	return func(worker, i int) error {
		_, err := intercept(calls[(worker*len(calls)/cores+i)%len(calls)], nil, guarded, noop)
		return err
	}
}

// interceptors compares our interceptor, for tokens seen before and never seen, with
// the peers, which check every token anew.
func interceptors(b *bench) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	issuer, err := newIssuer()
	if err != nil {
		return err
	}
	defer issuer.close()
	others, err := peers(ctx, issuer)
	if err != nil {
		return err
	}
	tokens, err := issuer.mint(manyTokens)
	if err != nil {
		return err
	}
	calls := incoming(tokens)
	if err := refusesOthers(issuer, others); err != nil {
		return err
	}
	verifier, err := issuer.verifier(0)
	if err != nil {
		return err
	}
	defer verifier.Close()
	if err := seen(b, verifier, others, calls); err != nil {
		return err
	}
	if err := unseenAlone(b, issuer, calls); err != nil {
		return err
	}
	return neverSeen(b, issuer, others, calls)
}

// refusesOthers returns an error if a guard accepts a bad token: a guard that checks
// nothing would be fast.
func refusesOthers(issuer *issuer, others []guard) error {
	stranger, err := newIssuer()
	if err != nil {
		return err
	}
	defer stranger.close()
	stranger.name = issuer.name // a second key of the issuer, under an id of its own
	tokens, err := stranger.mint(1)
	if err != nil {
		return err
	}
	for _, other := range others {
		if through(other.unary, incoming(tokens))(0, 0) == nil {
			return fmt.Errorf("%s takes a stranger's token", other.name)
		}
	}
	return nil
}

func seen(b *bench, verifier *authn.Verifier, others []guard, calls []context.Context) error {
	ours := verifier.UnaryServerInterceptor()
	one, stream := calls[:1], verifier.StreamServerInterceptor()
	sides := []side{
		{"one token", through(ours, one)},
		{"10,000 tokens", through(ours, calls)},
		{"stream", func(_, _ int) error {
			return stream(nil, &idleStream{ctx: one[0]}, &grpc.StreamServerInfo{FullMethod: guarded.FullMethod},
				func(any, grpc.ServerStream) error { return nil })
		}},
	}
	for _, other := range others {
		sides = append(sides, side{other.name, through(other.unary, one)})
	}
	for i := range calls { // after this loop, the verifier has seen all tokens
		if err := sides[1].call(0, i); err != nil {
			return err
		}
	}
	checked := verifier.Status().Checked
	r := race{turns: b.of(7, 41), stint: 100 * time.Millisecond, workers: cores, batch: 32}
	all, err := r.run(sides...)
	if err != nil {
		return err
	}
	if again := verifier.Status().Checked - checked; again > 0 {
		return fmt.Errorf("%d tokens that were seen before were checked again", again)
	}
	alone := race{turns: b.of(21, 81), stint: 30 * time.Millisecond, workers: 1, batch: r.batch, processor: true}
	single, err := alone.run(append(sides[:3:3], side{"least", leastSeen(one[0])})...)
	if err != nil {
		return err
	}
	peer := all[3:]
	b.report("interceptor/seen/one-token", all[0].nanos(), "ns", limit{})
	b.report("interceptor/seen/one-token/allocations", allocations(sides[0]), "allocs", atMost(2))
	b.report("interceptor/seen/one-token/over-fastest-peer", all[0].overAll(peer), "times", atLeast(200))
	b.report("interceptor/seen/one-token/on-one-core", single[0].nanos(), "ns", atMost(250))
	b.report("interceptor/seen/one-token/on-one-core/of-metadata-context-and-map", 1/single[0].over(single[3]), "times", limit{})
	b.report("interceptor/seen/metadata-context-and-map/on-one-core", single[3].nanos(), "ns", limit{})
	b.report("interceptor/seen/10000-tokens", all[1].nanos(), "ns", atMost(500))
	b.report("interceptor/seen/10000-tokens/allocations", allocations(sides[1]), "allocs", limit{})
	b.report("interceptor/seen/10000-tokens/over-fastest-peer", all[1].overAll(peer), "times", limit{})
	b.report("interceptor/seen/10000-tokens/on-one-core", single[1].nanos(), "ns", limit{})
	b.report("interceptor/seen/stream", all[2].nanos(), "ns", limit{})
	b.report("interceptor/seen/stream/on-one-core", single[2].nanos(), "ns", atMost(2000))
	b.report("interceptor/seen/stream/allocations", allocations(sides[2]), "allocs", limit{})
	for i, other := range others {
		b.report("interceptor/peer/"+other.name, peer[i].nanos(), "ns", limit{})
		b.report("interceptor/peer/"+other.name+"/allocations", allocations(sides[3+i]), "allocs", limit{})
	}
	return nil
}

// allocations returns the allocations of one call.
func allocations(s side) float64 {
	i := 0
	return testing.AllocsPerRun(1000, func() {
		_ = s.call(0, i)
		i++
	})
}

// idleStream has the methods of a stream that an interceptor uses.
type idleStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *idleStream) Context() context.Context { return s.ctx }

// neverSeen verifies each token once in a turn, and makes a new verifier for the next
// turn, which has seen no token. The peers check the same tokens.
func neverSeen(b *bench, issuer *issuer, others []guard, calls []context.Context) error {
	calls = calls[:b.of(1000, 2000)]
	all := make([]rates, 1+len(others))
	for turn := range b.of(14, 60) + 1 { // the first turn warms up and does not count
		verifier, err := issuer.verifier(0)
		if err != nil {
			return err
		}
		guards := append([]guard{{"ours", verifier.UnaryServerInterceptor()}}, others...)
		for k := range guards {
			if turn%2 == 1 {
				k = len(guards) - 1 - k
			}
			rate, err := onceEach(guards[k].unary, calls)
			if err != nil {
				return fmt.Errorf("%s: %w", guards[k].name, err)
			}
			if turn > 0 {
				all[k] = append(all[k], rate)
			}
		}
		if n := verifier.Status().Checked; n != uint64(len(calls)) {
			return fmt.Errorf("%d of %d tokens were new", n, len(calls))
		}
		verifier.Close()
	}
	b.report("interceptor/never-seen", all[0].nanos(), "ns", limit{})
	b.report("interceptor/never-seen/over-fastest-peer", all[0].overAll(all[1:]), "times", atLeast(1))
	for i, other := range others {
		b.report("interceptor/never-seen/over-"+other.name, all[0].over(all[1+i]), "times", limit{})
	}
	return nil
}

// onceEach makes every call once, on both cores, and returns calls a second.
func onceEach(intercept grpc.UnaryServerInterceptor, calls []context.Context) (float64, error) {
	runtime.GC()
	var tasks sync.WaitGroup
	errs := make([]error, cores)
	rate := make([]float64, cores)
	for w := range cores {
		part := calls[w*len(calls)/cores : (w+1)*len(calls)/cores]
		tasks.Go(func() {
			start := time.Now()
			for _, ctx := range part {
				if _, err := intercept(ctx, nil, guarded, noop); err != nil {
					errs[w] = err
					return
				}
			}
			rate[w] = float64(len(part)) / time.Since(start).Seconds()
		})
	}
	tasks.Wait()
	return rate[0] + rate[1], errors.Join(errs...)
}
