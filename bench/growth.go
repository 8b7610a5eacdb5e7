package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/watchword-auth/watchword/internal/pgtest"
)

// The size of a large installation, in which each user has ten sessions.
const (
	manyUsers    = 1_000_000
	manySessions = 10_000_000
)

// postgresGrowth compares refreshes in a large database with refreshes in a small one,
// which has no more sessions than are refreshed here. The refreshed sessions are spread
// over the whole table, so that most refreshes change a page for the first time since
// the last checkpoint. A quick run leaves postgresGrowth out.
func postgresGrowth(b *bench) error {
	if b.quick {
		return nil
	}
	postgres, err := pgtest.StartDurable(settings...)
	if err != nil {
		return err
	}
	defer postgres.Close()
	const alone, together = 20_000, 80_000 // sessions for one caller, and for all of them
	small, err := gather(postgres, nil, 1000, alone+together)
	if err != nil {
		return err
	}
	defer small.disperse()
	large, err := gather(postgres, nil, 0, 0)
	if err != nil {
		return err
	}
	defer large.disperse()
	if err := large.multiply(); err != nil {
		return err
	}
	var size int64
	if err := large.db.QueryRow(context.Background(), `SELECT pg_total_relation_size('sessions')`).Scan(&size); err != nil {
		return err
	}
	b.report("postgres-growth/session", float64(size)/manySessions, "bytes", limit{})
	if err := settle(postgres, small); err != nil {
		return err
	}
	spread := distinct(alone+together, manySessions)
	for _, part := range []struct{ workers, from, to int }{{1, 0, alone}, {callers, alone, alone + together}} {
		here := small.refreshing(part.workers, upTo(part.to-part.from, part.from))
		there := large.refreshing(part.workers, spread[part.from:part.to])
		if err := b.growth(part.workers, here, there); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) growth(workers int, small, large *refreshing) error {
	name := fmt.Sprintf("postgres-growth/%d-callers/", workers)
	var watches []*stopwatch
	var sides []side
	for _, r := range []*refreshing{small, large} {
		w := &stopwatch{call: r.call, took: make([][]time.Duration, workers)}
		watches = append(watches, w)
		sides = append(sides, side{name, w.run})
	}
	r := race{turns: 24, stint: 500 * time.Millisecond, workers: workers, batch: 1}
	if _, err := r.run(sides...); err != nil {
		return err
	}
	for k, c := range []*crowd{small.crowd, large.crowd} {
		bytes, err := r.logged(c, watches[k], sides[k])
		if err != nil {
			return err
		}
		b.report(name+[]string{"empty", "large"}[k]+"-wal", bytes, "bytes-a-refresh", limit{})
	}
	for _, q := range []struct {
		name     string
		quantile float64
		promised limit
	}{{"p50", 0.5, atMost(1.3)}, {"p99", 0.99, limit{}}} {
		few, many := watches[0].quantile(q.quantile), watches[1].quantile(q.quantile)
		b.report(name+q.name, many/few, "times-empty", q.promised)
		b.report(name+"empty-"+q.name, few, "ms", limit{})
		b.report(name+"large-"+q.name, many, "ms", limit{})
	}
	return nil
}

// logged returns how many bytes of write-ahead log one call of a side makes.
func (r race) logged(c *crowd, watch *stopwatch, s side) (float64, error) {
	before, err := c.logPosition()
	if err != nil {
		return 0, err
	}
	calls := watch.calls()
	if _, err := r.stintOf(s); err != nil {
		return 0, err
	}
	after, err := c.logPosition()
	return float64(after-before) / float64(watch.calls()-calls), err
}

func (c *crowd) logPosition() (at int64, err error) {
	err = c.db.QueryRow(context.Background(), `SELECT CAST(pg_current_wal_insert_lsn() - '0/0' AS BIGINT)`).Scan(&at)
	return at, err
}

// multiply fills a database with all users and sessions. The indexes of sessions are
// made afterwards, which takes a fraction of the time.
func (c *crowd) multiply() error {
	ctx := context.Background()
	start := time.Now()
	rows, err := c.db.Query(ctx, `SELECT indexdef FROM pg_indexes WHERE tablename = 'sessions'`)
	if err != nil {
		return err
	}
	indexes, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	statements := []string{`ALTER TABLE sessions DROP CONSTRAINT sessions_pkey`, `DROP INDEX sessions_live`}
	if err := c.exec(ctx, statements...); err != nil {
		return err
	}
	if err := c.fill(ctx, manyUsers, manySessions); err != nil {
		return err
	}
	if err := c.exec(ctx, append(append([]string{`SET maintenance_work_mem = '1GB'`}, indexes...), `VACUUM (ANALYZE) users`, `VACUUM (ANALYZE) sessions`)...); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "bench: %d sessions written in %v\n", manySessions, time.Since(start).Round(time.Second))
	return nil
}

func (c *crowd) exec(ctx context.Context, statements ...string) error {
	for _, statement := range statements {
		if _, err := c.db.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// settle makes PostgreSQL write now, so that PostgreSQL does not write during the measurement.
func settle(postgres *pgtest.Durable, small *crowd) error {
	ctx := context.Background()
	if err := small.exec(ctx, `VACUUM (ANALYZE) users`, `VACUUM (ANALYZE) sessions`); err != nil {
		return err
	}
	admin, err := pgx.Connect(ctx, postgres.Superuser())
	if err != nil {
		return err
	}
	_, err = admin.Exec(ctx, `CHECKPOINT`)
	return errors.Join(err, admin.Close(ctx))
}

// distinct returns random different numbers below a bound.
func distinct(n, below int) []int {
	seen, numbers := map[int]bool{}, make([]int, 0, n)
	for len(numbers) < n {
		if k := rand.IntN(below); !seen[k] {
			seen[k] = true
			numbers = append(numbers, k)
		}
	}
	return numbers
}
