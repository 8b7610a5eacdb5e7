package e2e

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

var fewLine = regexp.MustCompile(`(?m)^.*level=WARN msg="PostgreSQL gives this replica fewer connections than configured.* connections=(\d+) configured=8 .*$`)

// TestFewConnections bounds the connections of the replicas' PostgreSQL role, in turn by less
// than one replica asks for, and by less than two replicas ask for. The replicas must answer
// every call of twelve callers, and say once how many connections PostgreSQL gives.
func TestFewConnections(t *testing.T) {
	in := install(t, "--access-ttl", "1h")
	role := func(limit int) { in.asSuperuser(fmt.Sprint("ALTER ROLE watchword CONNECTION LIMIT ", limit)) }
	password := newPassword()
	pairs := make([]*watchwordv1.TokenPair, 12)
	first := in.replicate(t)
	c := first.dial(t)
	c.create(t, c.login(t, "admin", in.admin, "watchword"), "alice", password)
	for i := range pairs {
		pairs[i] = c.login(t, "alice", password)
	}
	first.now().stop(t)
	for _, test := range []struct{ limit, replicas int }{{9, 1}, {4, 1}, {2, 1}, {1, 1}, {12, 2}} {
		t.Run(fmt.Sprintf("%d for %d", test.limit, test.replicas), func(t *testing.T) {
			role(test.limit)
			var clients []*client
			var servers []*server
			for range test.replicas {
				r := in.replicate(t)
				clients, servers = append(clients, r.dial(t)), append(servers, r.now())
			}
			load := &load{t: t, password: password}
			load.run(clients, pairs)
			if test.limit < 8 {
				gives := servers[0].awaitLog(t, fewLine)
				if n, _ := strconv.Atoi(gives[1]); n < 1 || n > test.limit {
					t.Errorf("the log says %q of %d connections", gives[0], test.limit)
				}
			}
			for _, s := range servers {
				s.stop(t)
				if log := s.stderr.String(); awayLine.MatchString(log) || len(fewLine.FindAllString(log, -1)) > 1 {
					t.Errorf("the log says that the database was away, or more than once that connections are few:\n%s", log)
				}
			}
			slices.Sort(load.took)
			t.Logf("%d calls, p50 %v, p99 %v", len(load.took), load.took[len(load.took)/2], load.took[len(load.took)*99/100])
		})
	}
}

// load holds calls of several callers at once.
type load struct {
	t        *testing.T
	password string

	mu   sync.Mutex
	took []time.Duration // the duration of each call, without logins
}

// run makes calls with each pair of tokens at once, and puts the newest tokens in pairs. The
// callers use the clients in turn.
func (l *load) run(clients []*client, pairs []*watchwordv1.TokenPair) {
	var callers sync.WaitGroup
	for i := range pairs {
		c := clients[i%len(clients)]
		callers.Go(func() {
			for round := range 20 {
				l.call("refresh", func(ctx context.Context) error {
					next, err := c.tryRefresh(ctx, pairs[i])
					if err == nil {
						pairs[i] = next
					}
					return err
				})
				l.call("list", func(ctx context.Context) error {
					_, err := c.ListSessions(bearer(ctx, pairs[i]), &watchwordv1.ListSessionsRequest{})
					return err
				})
				if round == 10 && i%4 == 0 {
					l.login(c)
				}
			}
		})
	}
	callers.Wait()
}

func (l *load) call(what string, call func(context.Context) error) {
	began := time.Now()
	err := call(callCtx(l.t))
	took := time.Since(began)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.took = append(l.took, took)
	if err != nil {
		l.t.Errorf("%s: %v", what, err)
	}
}

// login logs in and out. A login may find the queue of password hashes full, and tries again.
func (l *load) login(c *client) {
	for {
		resp, err := c.Login(callCtx(l.t), &watchwordv1.LoginRequest{Username: "alice", Password: l.password})
		if err == nil {
			err = c.logout(callCtx(l.t), noteTokens(resp.GetTokens()))
		}
		if status.Code(err) == codes.ResourceExhausted {
			continue
		}
		if err != nil {
			l.t.Errorf("login or logout: %v", err)
		}
		return
	}
}
