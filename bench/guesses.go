package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/server"
	"github.com/watchword-auth/watchword/internal/store"
)

// older are parameters of hashes that cost less than those of today.
var older = password.Params{Memory: password.Default.Memory / 2, Time: password.Default.Time, Threads: 1}

// guesses measures whether the time of a refused login tells that a user exists: an unknown
// user, a wrong password, a disabled user and a user with an older hash, and then a delayed
// username that exists and one that does not. Each figure is a median. The samples of all
// kinds are taken in turns, in random order.
func guesses(b *bench) error {
	open, err := startWatchword("", func(c *server.Config) { c.ThrottleFreeTries, c.ThrottleSourceRate = 1_000_000, 0 })
	if err != nil {
		return err
	}
	defer open.close()
	if err := makeUsers(open); err != nil {
		return err
	}
	kinds := map[string]string{"unknown": "mallory", "wrong-password": "alice", "disabled": "dave", "older-hash": "otto"}
	if err := b.compareGuesses("guesses/", open.addr, kinds, codes.Unauthenticated); err != nil {
		return err
	}
	delayed, err := startWatchword("", func(c *server.Config) { c.ThrottleLongestDelay = time.Hour })
	if err != nil {
		return err
	}
	defer delayed.close()
	return b.compareGuesses("guesses/delayed-", delayed.addr, map[string]string{"unknown": "mallory", "existing": "admin"}, codes.ResourceExhausted)
}

// makeUsers makes a user, a disabled user, and a user with an older hash.
func makeUsers(w *watchword) error {
	ctx := context.Background()
	conns, err := dial(w.addr, 1)
	if err != nil {
		return err
	}
	defer conns[0].Close()
	admin, err := w.login(watchwordv1.NewAuthServiceClient(conns[0]), "watchword")
	if err != nil {
		return err
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+admin.GetAccessToken())
	users := watchwordv1.NewUserServiceClient(conns[0])
	for _, name := range []string{"alice", "dave", "otto"} {
		_, err := users.CreateUser(ctx, &watchwordv1.CreateUserRequest{Username: name, Password: "correct horse battery"})
		if err != nil {
			return err
		}
	}
	pw, err := password.Parse("correct horse battery")
	if err != nil {
		return err
	}
	hash, err := password.NewPool(password.Config{Params: older}).Hash(ctx, password.Stranger(""), pw)
	if err != nil {
		return err
	}
	s, err := store.Open(ctx, w.uri)
	if err != nil {
		return err
	}
	defer s.Close()
	return s.Write(ctx, func(tx *store.Tx) error {
		otto, err := tx.UserByName("otto")
		if err != nil {
			return err
		}
		dave, err := tx.UserByName("dave")
		if err != nil {
			return err
		}
		otto.PasswordHash, dave.Disabled = hash, true
		if err := tx.UpdateUser(otto); err != nil {
			return err
		}
		return tx.UpdateUser(dave)
	})
}

// cost holds what a call took: the time that the client sees, and the processor time of this
// process, with the server in it. Programs beside the benchmark change the processor time
// little.
type cost struct{ wall, cpu time.Duration }

// costOf measures a call.
func costOf(call func() error) (cost, error) {
	var before, after syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &before); err != nil {
		return cost{}, err
	}
	began := time.Now()
	err := call()
	wall := time.Since(began)
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &after); err != nil {
		return cost{}, err
	}
	return cost{wall, time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())}, err
}

// compareGuesses reports the median cost of a wrong login of each kind, and the ratio of
// the slowest to the fastest. want is the code of the answers that count; the first answers
// may differ.
func (b *bench) compareGuesses(name, addr string, kinds map[string]string, want codes.Code) error {
	conns, err := dial(addr, 1)
	if err != nil {
		return err
	}
	defer conns[0].Close()
	auth := watchwordv1.NewAuthServiceClient(conns[0])
	guess := func(kind string) (cost, error) {
		return costOf(func() error {
			_, err := auth.Login(context.Background(), &watchwordv1.LoginRequest{Username: kinds[kind], Password: "a wrong password"})
			return err
		})
	}
	names := slices.Sorted(maps.Keys(kinds))
	for _, kind := range names {
		for range 20 { // warms up, and spends the free tries
			_, _ = guess(kind)
		}
	}
	turns, took := slices.Clone(names), map[string][]cost{}
	for range b.of(40, 200) {
		rand.Shuffle(len(turns), func(i, j int) { turns[i], turns[j] = turns[j], turns[i] })
		for _, kind := range turns {
			c, err := guess(kind)
			for again := 0; status.Code(err) != want && again < 5; again++ { // tries again if the answer is another than wanted: when a delay has just ended, the server compares the password of one try
				c, err = guess(kind)
			}
			if status.Code(err) != want {
				return fmt.Errorf("%s: %w, want %v", kind, err, want)
			}
			took[kind] = append(took[kind], c)
		}
	}
	for measure, of := range map[string]func(cost) time.Duration{
		"": func(c cost) time.Duration { return c.wall }, "cpu-": func(c cost) time.Duration { return c.cpu },
	} {
		var medians []float64
		for _, kind := range names {
			slices.SortFunc(took[kind], func(x, y cost) int { return cmp.Compare(of(x), of(y)) })
			medians = append(medians, milliseconds(of(took[kind][len(took[kind])/2])))
			b.report(name+measure+kind+"/p50", medians[len(medians)-1], "ms", limit{})
		}
		b.report(name+measure+"slowest-of-fastest", slices.Max(medians)/slices.Min(medians), "of-it", atMost(1.05))
	}
	return nil
}
