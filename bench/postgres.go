package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/crypto/argon2"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/token"
)

// bareRefresh is the least work for a refresh on PostgreSQL: an update of one row,
// which is a transaction and a round trip, and one signature.
type bareRefresh struct {
	watchwordv1.UnimplementedAuthServiceServer
	pool *pgxpool.Pool
	key  *token.SigningKey
}

const bareUpdate = `UPDATE sessions SET refreshed_at = %s, current = current + 1, spent = current, spent_at = %[1]s
	WHERE id = %[2]s RETURNING user_id, current`

// Refresh reads the session's id from the field for the refresh token.
func (s *bareRefresh) Refresh(ctx context.Context, req *watchwordv1.RefreshRequest) (*watchwordv1.RefreshResponse, error) {
	now, id := time.Now(), req.GetRefreshToken()
	var userID string
	var current int64
	if err := s.pool.QueryRow(ctx, fmt.Sprintf(bareUpdate, "$1", "$2"), now.UnixMicro(), id).Scan(&userID, &current); err != nil {
		return nil, err
	}
	access, err := token.Sign(s.key, &token.Claims{
		Issuer: "http://127.0.0.1:8080", Subject: userID, ID: "AAAAAAAAAAA", SessionID: id, Username: "user-1000",
		Audience: []string{audience, "billing"}, Roles: []string{"reader", "writer"},
		IssuedAt: now, ExpiresAt: now.Add(lifetime), Version: 1,
	})
	return &watchwordv1.RefreshResponse{Tokens: &watchwordv1.TokenPair{
		AccessToken: access, RefreshToken: strings.Repeat("x", 57), TokenType: "Bearer", SessionId: id,
		ExpiresIn: durationpb.New(lifetime), RefreshExpiresIn: durationpb.New(720 * time.Hour),
	}}, err
}

// serveBareRefresh serves bareRefresh over a pool of the given size, until ctx ends.
func serveBareRefresh(ctx context.Context, uri string, poolSize int) (*endpoint, error) {
	sized, err := changed(uri, poolOf(poolSize))
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.New(ctx, sized)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, pool.Close)
	key, err := token.GenerateKey(token.EdDSA)
	if err != nil {
		return nil, err
	}
	e, err := serve(func(s *grpc.Server) { watchwordv1.RegisterAuthServiceServer(s, &bareRefresh{pool: pool, key: key}) })
	if err == nil {
		context.AfterFunc(ctx, e.close)
	}
	return e, err
}

// each is the number of sessions of a caller.
const each = 64

// updates makes calls, by one of the callers, for sessions from an offset on.
func (e *endpoint) updates(offset int) func(worker, i int) error {
	clients := make([]watchwordv1.AuthServiceClient, len(e.conns))
	for k := range e.conns {
		clients[k] = watchwordv1.NewAuthServiceClient(e.conns[k])
	}
	ids := make([]string, callers*each)
	for i := range ids {
		ids[i] = sessionID(offset + i)
	}
	return func(worker, i int) error {
		_, err := clients[worker%connections].Refresh(context.Background(), &watchwordv1.RefreshRequest{RefreshToken: ids[worker*each+i%each]})
		return err
	}
}

// poolSizes holds the sizes that are tried for the bare handler's pool.
var poolSizes = []int{2, 4, 8, 16, 32}

// postgresRefresh compares refreshes with the bare handler, over a pool of the size
// with which the bare handler is fastest.
func postgresRefresh(b *bench) error {
	postgres, err := pgtest.StartDurable(settings...)
	if err != nil {
		return err
	}
	defer postgres.Close()
	const mine = callers * each
	c, err := gather(postgres, nil, 1000, 2*mine)
	if err != nil {
		return err
	}
	defer c.disperse()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var bare []side
	for _, size := range poolSizes {
		e, err := serveBareRefresh(ctx, c.uri, size)
		if err != nil {
			return err
		}
		bare = append(bare, side{fmt.Sprintf("bare-%d", size), e.updates(mine)})
	}
	ours := c.refreshing(callers, upTo(mine, 0))
	for _, n := range []int{1, 32, callers} {
		against, promised := bare, limit{}
		switch n {
		case 1:
			against, promised = bare[:1], atLeast(0.8) // one caller uses one connection
		case callers:
			promised = atLeast(1.3)
		}
		if err := b.refreshes(n, promised, ours, against); err != nil {
			return err
		}
		if err := b.pgbench(postgres, c, n); err != nil {
			return err
		}
	}
	return nil
}

// refreshes lets a number of callers refresh, in turn with the bare handlers.
func (b *bench) refreshes(workers int, promised limit, ours *refreshing, bare []side) error {
	watch := &stopwatch{call: ours.call, took: make([][]time.Duration, workers)}
	r := race{turns: b.of(2, 24), stint: 400 * time.Millisecond, workers: workers, batch: 1}
	all, err := r.run(append([]side{{"refresh", watch.run}}, bare...)...)
	if err != nil {
		return err
	}
	best := 1
	for k := range all {
		if k > 0 && all[0].over(all[k]) < all[0].over(all[best]) {
			best = k
		}
	}
	name := fmt.Sprintf("postgres-refresh/%d-callers/", workers)
	b.report(name+"of-bare", all[0].over(all[best]), "of-it", promised)
	b.report(name+"ours", median(all[0]), "refreshes/s", limit{})
	b.report(name+"p50", watch.quantile(0.5), "ms", limit{})
	b.report(name+"p99", watch.quantile(0.99), "ms", limit{})
	for k, side := range bare {
		b.report(name+side.name+"-connections", median(all[k+1]), "calls/s", limit{})
	}
	return nil
}

// stopwatch times calls.
type stopwatch struct {
	call func(worker, i int) error
	took [][]time.Duration // of each worker
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
	const patient = 48 // callers of Login: more would be refused
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
