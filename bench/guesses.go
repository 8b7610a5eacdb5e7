package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
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

// compareGuesses reports the median time of a wrong login of each kind, and the ratio of
// the slowest to the fastest. want is the code of the answers; the first answers may differ.
func (b *bench) compareGuesses(name, addr string, kinds map[string]string, want codes.Code) error {
	conns, err := dial(addr, 1)
	if err != nil {
		return err
	}
	defer conns[0].Close()
	auth := watchwordv1.NewAuthServiceClient(conns[0])
	guess := func(username string) (time.Duration, error) {
		began := time.Now()
		_, err := auth.Login(context.Background(), &watchwordv1.LoginRequest{Username: username, Password: "a wrong password"})
		return time.Since(began), err
	}
	names := make([]string, 0, len(kinds))
	for kind, username := range kinds {
		names = append(names, kind)
		for range 20 { // warms up, and spends the free tries
			_, _ = guess(username)
		}
	}
	took := map[string][]time.Duration{}
	for range b.of(40, 200) {
		rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		for _, kind := range names {
			d, err := guess(kinds[kind])
			if status.Code(err) != want {
				return fmt.Errorf("%s: %w, want %v", kind, err, want)
			}
			took[kind] = append(took[kind], d)
		}
	}
	slices.Sort(names)
	var medians []float64
	for _, kind := range names {
		slices.Sort(took[kind])
		medians = append(medians, milliseconds(took[kind][len(took[kind])/2]))
		b.report(name+kind+"/p50", medians[len(medians)-1], "ms", limit{})
	}
	b.report(name+"slowest-of-fastest", slices.Max(medians)/slices.Min(medians), "of-it", atMost(1.05))
	return nil
}
