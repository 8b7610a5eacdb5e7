package server

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/throttle"
)

// firstChore is the longest time from the start to the first run of a chore, so that a server
// that restarts every few minutes runs the chores, too.
const firstChore = 30 * time.Second

// chore is a task that runs at intervals.
type chore struct {
	name     string // the name in the log and in metrics
	every    time.Duration
	do       func(context.Context) error
	failures atomic.Uint64
}

// allChores returns the chores of the server: pruning, giving memory back, and the rotation of
// keys with --key-ttl.
func (s *Server) allChores() []*chore {
	chores := []*chore{
		{name: "pruning events", every: time.Minute, do: s.feed.Prune},
		{name: "giving memory back", every: spareEvery, do: new(spareMemory).giveBack},
		{name: "pruning sessions", every: time.Hour, do: s.sessions.Prune},
		{name: "pruning the watchers of other replicas", every: time.Hour, do: s.roster.Prune},
		{name: "pruning counts of wrong passwords", every: time.Hour, do: func(ctx context.Context) error { return throttle.Prune(ctx, s.store) }},
		{name: "pruning the security record", every: time.Hour, do: func(ctx context.Context) error { return s.audit.Prune(ctx, s.cfg.AuditTTL) }},
	}
	if s.cfg.KeyTTL > 0 {
		// With a short --key-ttl, as in tests, a tenth of --key-ttl still rotates the keys
		// about in time.
		chores = append(chores, &chore{name: "rotating keys", every: min(time.Minute, s.cfg.KeyTTL/10), do: func(ctx context.Context) error {
			return s.keyring.RotateOld(ctx, s.cfg.KeyTTL)
		}})
	}
	return chores
}

// maintain runs the chores until ctx ends. Every replica runs the chores: pruning twice is
// harmless, and of two rotations at once the second finds a young key and changes nothing. A
// chore that fails runs again after its interval, and the log has a warning.
func (s *Server) maintain(ctx context.Context) {
	var tasks sync.WaitGroup
	for _, c := range s.chores {
		tasks.Go(func() {
			first := min(c.every, firstChore)
			next := time.NewTimer(first/2 + rand.N(first/2+1))
			defer next.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-next.C:
				}
				next.Reset(c.every)
				err := c.do(ctx)
				if err == nil || ctx.Err() != nil {
					continue
				}
				c.failures.Add(1)
				if !errors.Is(err, store.ErrAway) {
					s.logger.WarnContext(ctx, c.name+" failed; it will be tried again", "error", err)
				}
			}
		})
	}
	tasks.Wait()
}
