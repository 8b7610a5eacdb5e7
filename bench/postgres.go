package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/pgtest"
)

// each is the number of sessions of a caller.
const each = 64

// stopwatch times calls.
type stopwatch struct {
	call func(worker, i int) error
	took [][]time.Duration // the times of each worker
}

func (s *stopwatch) run(worker, i int) error {
	start := time.Now()
	err := s.call(worker, i)
	s.took[worker] = append(s.took[worker], time.Since(start))
	return err
}

func (s *stopwatch) calls() (n int) {
	for _, took := range s.took {
		n += len(took)
	}
	return n
}

// quantile returns a quantile of the times, in milliseconds.
func (s *stopwatch) quantile(q float64) float64 {
	var all []float64
	for _, took := range s.took {
		for _, t := range took {
			all = append(all, milliseconds(t))
		}
	}
	return quantile(all, q)
}

// postgresLogin compares logins with argon2id alone, with as many hashes at a time as
// the server runs.
func postgresLogin(b *bench) error {
	postgres, err := pgtest.StartDurable(settings...)
	if err != nil {
		return err
	}
	defer postgres.Close()
	c, err := gather(postgres, nil, 1, 1)
	if err != nil {
		return err
	}
	defer c.disperse()
	var hash string
	if err := c.db.QueryRow(context.Background(), `SELECT password_hash FROM users WHERE username = 'admin'`).Scan(&hash); err != nil {
		return err
	}
	const parameters = "$argon2id$v=19$m=19456,t=2,p=1$"
	if !strings.HasPrefix(hash, parameters) {
		return fmt.Errorf("the stored hash is %.32s…, not %s…", hash, parameters)
	}
	const parallel = cores - 1
	slots := make(chan struct{}, parallel)
	// Two callers for each hash that runs, so that the server is never idle.
	r := race{turns: b.of(1, 15), stint: 2 * time.Second, workers: 2 * parallel, batch: 1}
	all, err := r.run(side{"login", c.logins}, side{"argon2id", func(int, int) error {
		slots <- struct{}{}
		argon2.IDKey([]byte(c.password), make([]byte, 16), 2, 19456, 1, 32)
		<-slots
		return nil
	}})
	if err != nil {
		return err
	}
	b.report("postgres-login/of-argon2id", all[0].over(all[1]), "of-it", atLeast(0.95))
	b.report("postgres-login/rate", median(all[0]), "logins/s", limit{})
	return nil
}

// postgresPool compares servers with different numbers of connections, each over a
// database of its own. The figures have no limit, so a quick run leaves postgresPool
// out.
func postgresPool(b *bench) error {
	if b.quick {
		return nil
	}
	postgres, err := pgtest.StartDurable(settings...)
	if err != nil {
		return err
	}
	defer postgres.Close()
	const patient = 48 // the number of callers of Login; with more callers, the server would refuse logins
	load := []struct {
		name    string
		race    race
		servers []side
	}{
		{name: "refreshes", race: race{turns: 16, stint: 400 * time.Millisecond, workers: callers, batch: 1}},
		{name: "logouts", race: race{turns: 16, stint: 400 * time.Millisecond, workers: callers, batch: 1}},
		{name: "logins", race: race{turns: 5, stint: 2 * time.Second, workers: patient, batch: 1}},
	}
	for _, size := range []int{4, 8, 16, 32} {
		c, err := gather(postgres, poolOf(size), 1000, 100_000)
		if err != nil {
			return err
		}
		defer c.disperse()
		name := fmt.Sprintf("%d-connections", size)
		for k, call := range []func(worker, i int) error{
			c.refreshing(callers, upTo(callers*each, 0)).call, c.logouts(callers * each), c.logins,
		} {
			load[k].servers = append(load[k].servers, side{name, call})
		}
	}
	for _, l := range load {
		all, err := l.race.run(l.servers...)
		if err != nil {
			return err
		}
		for k, server := range l.servers {
			b.report(fmt.Sprintf("postgres-pool/%s/%s", l.name, server.name), median(all[k]), l.name+"/s", limit{})
		}
	}
	return nil
}

func (c *crowd) logins(worker, _ int) error {
	_, err := c.login(c.auth[worker%connections])
	return err
}

// logouts ends each of the sessions from a number on once.
func (c *crowd) logouts(from int) func(worker, i int) error {
	var next atomic.Int64
	next.Store(int64(from))
	return func(worker, _ int) error {
		request := &watchwordv1.LogoutRequest{RefreshToken: c.refreshToken(int(next.Add(1)))}
		_, err := c.auth[worker%connections].Logout(context.Background(), request)
		return err
	}
}
