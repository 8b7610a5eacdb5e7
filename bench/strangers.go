package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/argon2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/strangertest"
)

// byHand is a server like one in a tutorial, without bounds: each login takes one hash, with one
// hash at a time, and the other methods answer at once.
type byHand struct {
	watchwordv1.UnimplementedAuthServiceServer
	turn chan struct{}
}

func (h *byHand) Login(ctx context.Context, _ *watchwordv1.LoginRequest) (*watchwordv1.LoginResponse, error) {
	select {
	case h.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-h.turn }()
	argon2.IDKey([]byte("password"), []byte("0123456789abcdef"), 2, 19<<10, 1, 32)
	return &watchwordv1.LoginResponse{}, nil
}

func (h *byHand) Refresh(context.Context, *watchwordv1.RefreshRequest) (*watchwordv1.RefreshResponse, error) {
	return &watchwordv1.RefreshResponse{}, nil
}

func (h *byHand) Verify(context.Context, *watchwordv1.VerifyRequest) (*watchwordv1.VerifyResponse, error) {
	return &watchwordv1.VerifyResponse{}, nil
}

// honest is a client beside the strangers, with an address of its own.
type honest struct {
	auth     watchwordv1.AuthServiceClient
	password string
	pair     *watchwordv1.TokenPair
}

const honestCalls = 3 // Verify, Refresh, Login

var honestNames = [honestCalls]string{"verify", "refresh", "login"}

// every is the time between two calls of a kind.
var every = [honestCalls]time.Duration{5 * time.Millisecond, 20 * time.Millisecond, 500 * time.Millisecond}

func (h *honest) call(kind int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	switch kind {
	case 0:
		_, err := h.auth.Verify(ctx, &watchwordv1.VerifyRequest{AccessToken: h.pair.GetAccessToken()})
		return err
	case 1:
		resp, err := h.auth.Refresh(ctx, &watchwordv1.RefreshRequest{RefreshToken: h.pair.GetRefreshToken()})
		if err == nil && resp.GetTokens() != nil {
			h.pair = &watchwordv1.TokenPair{AccessToken: h.pair.GetAccessToken(), RefreshToken: resp.GetTokens().GetRefreshToken()}
		}
		return err
	}
	_, err := h.auth.Login(ctx, &watchwordv1.LoginRequest{Username: "admin", Password: h.password})
	return err
}

// strangers measures honest calls while twenty addresses do their worst, on Watchword and
// on a server without a bound in turn.
func strangers(b *bench) error {
	ours, err := startWatchword("")
	if err != nil {
		return err
	}
	defer ours.close()
	theirs, err := serve(func(s *grpc.Server) {
		watchwordv1.RegisterAuthServiceServer(s, &byHand{turn: make(chan struct{}, 1)})
		healthv1.RegisterHealthServer(s, health.NewServer())
		reflection.Register(s)
	})
	if err != nil {
		return err
	}
	defer theirs.close()
	var took [2][honestCalls][]time.Duration
	for turn := range b.of(1, 4) {
		for i, addr := range []string{theirs.conns[0].Target(), ours.addr} {
			if turn%2 == 1 {
				i, addr = 1-i, []string{ours.addr, theirs.conns[0].Target()}[i]
			}
			got, err := besieged(addr, ours.password, time.Duration(b.of(8, 15))*time.Second)
			if err != nil {
				return err
			}
			for kind := range got {
				took[i][kind] = append(took[i][kind], got[kind]...)
			}
		}
	}
	for kind, name := range honestNames {
		bare, ww := p99(took[0][kind]), p99(took[1][kind])
		b.report("strangers/"+name+"/p99", milliseconds(ww), "ms", limit{})
		b.report("strangers/"+name+"/p99-of-unbounded", milliseconds(bare), "ms", limit{})
		b.report("strangers/"+name+"/of-unbounded", float64(ww)/float64(bare), "of-it", atMost(2))
	}
	return nil
}

func p99(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[(len(all)-1)*99/100]
}

// besieged returns how long honest calls take while strangers besiege a server, over and
// over again.
func besieged(addr, password string, period time.Duration) (took [honestCalls][]time.Duration, err error) {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var attack, calls sync.WaitGroup
	defer attack.Wait()
	defer stop()
	for i := range 20 {
		attack.Go(func() {
			for ctx.Err() == nil {
				end := strangertest.Besiege(fmt.Sprint("127.0.2.", i+1), addr, addr)
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
				end()
			}
		})
	}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return took, err
	}
	defer conn.Close()
	auth := watchwordv1.NewAuthServiceClient(conn)
	resp, err := auth.Login(ctx, &watchwordv1.LoginRequest{Username: "admin", Password: password})
	if err != nil {
		return took, err
	}
	var errs [honestCalls]error
	over := time.Now().Add(period)
	for kind := range honestCalls {
		calls.Go(func() {
			h := &honest{auth: auth, password: password, pair: resp.GetTokens()}
			for time.Now().Before(over) {
				began := time.Now()
				if errs[kind] = h.call(kind); errs[kind] != nil {
					errs[kind] = fmt.Errorf("an honest %s: %w", honestNames[kind], errs[kind])
					return
				}
				took[kind] = append(took[kind], time.Since(began))
				time.Sleep(every[kind])
			}
		})
	}
	calls.Wait()
	for _, e := range errs {
		if e != nil {
			return took, e
		}
	}
	return took, nil
}
