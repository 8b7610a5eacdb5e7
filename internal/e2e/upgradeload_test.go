package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/stats"

	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// workload calls a mixture and guarded services until [workload.end]. The load makes every call once:
// only the connections send a call again.
type workload struct {
	*mixture
	clients  map[string]*client // the workers' clients, by how a client finds the replicas
	admin    *client            // a client of the replicas that are ready
	token    *watchwordv1.TokenPair
	services map[string]*grpc.ClientConn
	attempts attemptCount
	rounds   []*atomic.Int64 // the number of finished rounds of each worker
	stopping chan struct{}
	workers  sync.WaitGroup

	mu       sync.Mutex // guards the fields below
	name     string     // the name of the present phase
	lines    []string   // the lines of the transcript
	now      phaseFigures
	gone     []*watchwordv1.TokenPair // revoked, and refused everywhere since
	failures []string
}

// phaseFigures are counts of a phase.
type phaseFigures struct {
	calls, guarded, revoked int
	retried, transparent    int64 // the numbers when the phase began
	longest                 time.Duration
	method                  string // the method of the longest call
	began                   time.Time
}

// attemptCount counts what the connections send.
type attemptCount struct{ all, transparent, calls atomic.Int64 }

func (a *attemptCount) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (a *attemptCount) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (a *attemptCount) HandleConn(context.Context, stats.ConnStats)                       {}
func (a *attemptCount) HandleRPC(_ context.Context, s stats.RPCStats) {
	if begin, ok := s.(*stats.Begin); ok {
		a.all.Add(1)
		if begin.IsTransparentRetryAttempt {
			a.transparent.Add(1)
		}
	}
}

// retried returns how often a connection has sent a call again by the retry policy.
func (a *attemptCount) retried() int64 { return a.all.Load() - a.transparent.Load() - a.calls.Load() }

// load starts the load. services holds the addresses of the guarded services.
func (f *mixture) load(t *testing.T, services map[string]string) *workload {
	t.Helper()
	l := &workload{mixture: f, services: map[string]*grpc.ClientConn{}, stopping: make(chan struct{})}
	count := grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		l.attempts.calls.Add(1)
		return invoke(ctx, method, req, reply, conn, opts...)
	})
	watch := grpc.WithStatsHandler(&l.attempts)
	l.clients = map[string]*client{
		"in turn":              f.dial(t, f.resolver, tokensource.RoundRobin(), count, watch),
		"the first to answer":  f.dial(t, f.resolver, count, watch),
		"by the load balancer": f.dialBalancer(t, count, watch),
	}
	l.admin = f.dial(t, f.moved, tokensource.RoundRobin(), count, watch)
	for name, addr := range services {
		l.services[name] = dialConn(t, addr, insecure.NewCredentials())
	}
	l.token = l.admin.login(t, "admin", f.admin, "watchword")
	for i, how := range slices.Sorted(maps.Keys(l.clients)) {
		c, name, password := l.clients[how], fmt.Sprintf("user%d", i), newPassword()
		l.admin.create(t, l.token, name, password)
		l.run(func() bool { return l.comeAndGo(c, name, password) })
		l.run(l.stay(t, c, name, password))
	}
	l.run(l.administer)
	t.Cleanup(func() { l.finish() })
	return l
}

// dialBalancer connects to one replica at a time, as through a load balancer for TCP.
func (f *mixture) dialBalancer(t *testing.T, opts ...grpc.DialOption) *client {
	t.Helper()
	conn, err := tokensource.Dial(f.balancer.addr(), append(append(keepErrors(), opts...), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return newClient(conn)
}

// run repeats work until the end of the load, or until work returns false.
func (l *workload) run(work func() bool) {
	rounds := new(atomic.Int64)
	l.rounds = append(l.rounds, rounds)
	l.workers.Go(func() {
		for work() {
			rounds.Add(1)
			select {
			case <-l.stopping:
				return
			default:
			}
		}
	})
}

// call makes a call once. An error is a failure of the test.
func (l *workload) call(method string, do func(ctx context.Context) error) bool {
	ctx, cancel := context.WithTimeout(context.Background(), runTimeout)
	defer cancel()
	began := time.Now()
	err := do(ctx)
	took := time.Since(began)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now.calls++
	if strings.HasPrefix(method, "guarded") {
		l.now.guarded++
	}
	if took > l.now.longest {
		l.now.longest, l.now.method = took, method
	}
	if err != nil {
		l.failures = append(l.failures, fmt.Sprintf("%s: %s, after %v: %v", l.name, method, took, err))
	}
	return err == nil
}

// everywhere calls Verify and every service with a token. The errors of check are failures.
func (l *workload) everywhere(c *client, pair *watchwordv1.TokenPair, check func(error) error) bool {
	ok := l.call("Verify", func(ctx context.Context) error { _, err := c.verify(ctx, pair); return check(err) })
	for name, conn := range l.services {
		ok = ok && l.call("guarded, authn "+name, func(ctx context.Context) error { return check(listNotes(ctx, conn, pair)) })
	}
	return ok
}

func accepted(err error) error { return err }

// refused repeats calls with a token whose revocation was acknowledged, until Verify and every
// service refuse the token.
func (l *workload) refused(c *client, pair *watchwordv1.TokenPair, reason string) bool {
	began := time.Now()
	for {
		waiting := false
		if !l.everywhere(c, pair, func(err error) error {
			if err == nil && time.Since(began) < propagation {
				waiting = true
				return nil
			}
			return checkRefusal(err, reason)
		}) {
			return false
		}
		if !waiting {
			return true
		}
	}
}

func (l *workload) revoked(pair *watchwordv1.TokenPair) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now.revoked++
	l.gone = append(l.gone, pair)
}

// comeAndGo logs in, works and logs out.
func (l *workload) comeAndGo(c *client, name, password string) bool {
	pair := new(watchwordv1.TokenPair)
	if !l.call("Login", func(ctx context.Context) error {
		resp, err := c.Login(ctx, &watchwordv1.LoginRequest{Username: name, Password: password})
		pair = noteTokens(resp.GetTokens())
		return err
	}) {
		return false
	}
	for range 3 {
		if !l.everywhere(c, pair, accepted) || !l.refresh(c, &pair) {
			return false
		}
	}
	if !l.call("Logout", func(ctx context.Context) error { return c.logout(ctx, pair) }) || !l.refused(c, pair, "TOKEN_REVOKED") {
		return false
	}
	l.revoked(pair)
	return l.call("Refresh after a logout", func(ctx context.Context) error {
		_, err := c.tryRefresh(ctx, pair)
		return checkRefusal(err, "SESSION_REVOKED")
	})
}

func (l *workload) refresh(c *client, pair **watchwordv1.TokenPair) bool {
	return l.call("Refresh", func(ctx context.Context) error {
		next, err := c.tryRefresh(ctx, *pair)
		if err == nil {
			*pair = next
		}
		return err
	})
}

// stay returns a worker that keeps one session through every replacement.
func (l *workload) stay(t *testing.T, c *client, name, password string) func() bool {
	pair := c.login(t, name, password)
	return func() bool {
		for range 3 {
			if !l.everywhere(c, pair, accepted) || !l.call("GetKeySet", func(ctx context.Context) error {
				_, err := c.GetKeySet(ctx, &watchwordv1.GetKeySetRequest{})
				return err
			}) {
				return false
			}
		}
		return l.refresh(c, &pair)
	}
}

// administer makes a user, changes the user's rights, disables and deletes the user. The
// connections send none of these calls again.
func (l *workload) administer() bool {
	name, password := "guest", newPassword()
	var user *watchwordv1.User
	pair := new(watchwordv1.TokenPair)
	as := func(do func(ctx context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error { return do(bearer(ctx, l.token)) }
	}
	return l.call("CreateUser", as(func(ctx context.Context) error {
		resp, err := l.admin.CreateUser(ctx, &watchwordv1.CreateUserRequest{Username: name, Password: password, Roles: []string{"reader"}})
		user = resp.GetUser()
		return err
	})) && l.call("Login", func(ctx context.Context) error {
		resp, err := l.admin.Login(ctx, &watchwordv1.LoginRequest{Username: name, Password: password})
		pair = noteTokens(resp.GetTokens())
		return err
	}) && l.call("UpdateUser", as(func(ctx context.Context) error {
		return update(ctx, l.admin, &watchwordv1.User{Id: user.GetId(), Roles: []string{"writer"}}, "roles")
	})) && l.refused(l.admin, pair, "TOKEN_STALE") && l.refresh(l.admin, &pair) && l.call("UpdateUser", as(func(ctx context.Context) error {
		return update(ctx, l.admin, &watchwordv1.User{Id: user.GetId(), Disabled: true}, "disabled")
	})) && l.refused(l.admin, pair, "TOKEN_REVOKED") && l.call("DeleteUser", as(func(ctx context.Context) error {
		_, err := l.admin.DeleteUser(ctx, &watchwordv1.DeleteUserRequest{Id: user.GetId()})
		l.revoked(pair)
		return err
	}))
}

// phase waits until every worker has made two more rounds, and ends the phase.
func (l *workload) phase(t *testing.T, name string) {
	t.Helper()
	l.mu.Lock()
	l.name = name
	if l.now.began.IsZero() {
		l.now.began = time.Now()
	}
	l.mu.Unlock()
	least := make([]int64, len(l.rounds))
	for i, rounds := range l.rounds {
		least[i] = rounds.Load() + 2
	}
	eventually(t, runTimeout, name+": every worker makes two rounds", func() error {
		if t.Failed() || l.failed() {
			return nil
		}
		for i, rounds := range l.rounds {
			if err := atLeast(rounds.Load(), least[i]); err != nil {
				return err
			}
		}
		return nil
	})
	l.report(t)
}

func (l *workload) failed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.failures) > 0
}

// report adds a line to the transcript, and fails the test if a call has failed.
func (l *workload) report(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	retried, transparent := l.attempts.retried(), l.attempts.transparent.Load()
	l.lines = append(l.lines, fmt.Sprintf("%-52s %6.1f s %7d %8d %9d %8d %7d  %v (%s)", l.name, time.Since(l.now.began).Seconds(),
		l.now.calls, l.now.guarded, l.now.revoked, retried-l.now.retried, len(l.failures), l.now.longest.Round(time.Millisecond), l.now.method))
	l.now = phaseFigures{retried: retried, transparent: transparent, began: time.Now()}
	if len(l.failures) > 0 {
		t.Fatalf("%s\n%d calls failed:\n%s", l.transcript(), len(l.failures), strings.Join(l.failures[:min(20, len(l.failures))], "\n"))
	}
}

// transcript returns the phaseFigures of every phase.
func (l *workload) transcript() string {
	return fmt.Sprintf("\n%-52s %8s %7s %8s %9s %8s %7s  %s\n%s", "phase", "time", "calls", "guarded", "revoked", "retried", "failed", "longest call",
		strings.Join(l.lines, "\n"))
}

// finish ends the load.
func (l *workload) finish() {
	select {
	case <-l.stopping:
	default:
		close(l.stopping)
	}
	l.workers.Wait()
}

// checkReplica checks that one replica knows every revocation.
func (l *workload) checkReplica(t *testing.T, m *member) {
	t.Helper()
	l.mu.Lock()
	gone := slices.Clone(l.gone)
	l.mu.Unlock()
	c := dial(t, m.grpcAddr)
	for i, pair := range gone {
		eventually(t, propagation, fmt.Sprintf("revocation %d of %d at the %s replica", i, len(gone), m.release.name), func() error {
			_, err := c.verify(t.Context(), pair)
			return checkRefusal(err, "TOKEN_REVOKED")
		})
	}
}

// end ends the load, and finds every revocation at every replica and service.
func (l *workload) end(t *testing.T) {
	t.Helper()
	l.finish()
	l.name = "the end"
	l.report(t)
	for _, m := range l.replicas {
		l.checkReplica(t, m)
	}
	for _, pair := range l.gone {
		for name, conn := range l.services {
			wantRefusal(t, "a revoked token at the service with authn "+name, listNotes(t.Context(), conn, pair), "TOKEN_REVOKED")
		}
	}
	if len(l.gone) == 0 {
		t.Error("nothing was revoked")
	}
}
