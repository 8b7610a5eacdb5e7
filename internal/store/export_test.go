package store

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// WaitQueued waits until n writes are queued behind the write that runs.
func WaitQueued(s *Store, n int) {
	for len(embedded(s).writer.queue.jobs) < n {
		runtime.Gosched()
	}
}

// LongestLog is the bound of the write-ahead log, in frames.
const LongestLog = longestLog

// FailDriver runs a statement that the driver refuses.
func FailDriver(tx *Tx) error {
	return tx.exec(`INSERT INTO no_such_table (x) VALUES (1)`)
}

// SetSettingReturning sets a setting by a statement that returns a row.
func SetSettingReturning(tx *Tx, name, value string) error {
	return tx.queryRow(into(&value), `INSERT INTO settings (name, value) VALUES ($1, $2) RETURNING value`, name, value)
}

// LimitPages makes the disk full when the file has the given number of pages, or at once if the
// file has more: statements that need another page fail.
func LimitPages(t *testing.T, s *Store, pages int) {
	t.Helper()
	err := embedded(s).write(t.Context(), func(tx *Tx) error {
		return tx.queryRow(into(&pages), fmt.Sprintf(`PRAGMA max_page_count = %d`, pages))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Integrity is SQLite's own verdict on the file: ok.
func Integrity(tx *Tx) (verdict string, err error) {
	err = tx.queryRow(into(&verdict), `PRAGMA integrity_check`)
	return verdict, err
}

// ForgeSchemaVersion marks the schema as one of a later program, with which
// programs of a version can work.
func ForgeSchemaVersion(t *testing.T, s *Store, floor string) {
	t.Helper()
	err := s.Write(t.Context(), func(tx *Tx) error {
		if err := tx.SetSetting(schemaFloor, floor); err != nil {
			return err
		}
		return tx.exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, $1)`, true)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Exec runs a statement of another program.
func Exec(t *testing.T, s *Store, statement string, args ...any) error {
	t.Helper()
	return s.Write(t.Context(), func(tx *Tx) error { return tx.exec(statement, args...) })
}

// CheckSchemaAs is [Store.CheckSchema] of a program whose newest migration is known.
func CheckSchemaAs(t *testing.T, s *Store, known int64) error {
	t.Helper()
	was := s.schema
	defer func() { s.schema = was }()
	s.schema = known
	return s.CheckSchema(t.Context())
}

func embedded(s *Store) *sqliteDB { return s.engine.(*sqliteDB) }

// StepsOfACopy is the number of steps of a copy that starts from the beginning.
const StepsOfACopy = 7

// CopySteps runs the first steps of a copy, and leaves the databases as they are after these
// steps.
func CopySteps(ctx context.Context, from, to string, steps int) error {
	c, err := openCopying(ctx, from, to)
	if err != nil {
		return err
	}
	for _, step := range c.steps()[:steps] {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// WaitForLock sets how long the writer waits for a lock that another process holds.
func WaitForLock(t *testing.T, s *Store, patience time.Duration) {
	t.Helper()
	if _, err := embedded(s).writer.conn.c.ExecContext(t.Context(), fmt.Sprintf(`PRAGMA busy_timeout = %d`, patience.Milliseconds())); err != nil {
		t.Fatal(err)
	}
}

// PoolSize is how many connections there are, and MaxBatch how many spendings
// share a transaction. BatchLead is the time for which a batch runs alone. AnswerTime is what a
// caller's deadline leaves for the answer.
const (
	PoolSize   = poolSize
	MaxBatch   = maxBatch
	BatchLead  = batchLead
	AnswerTime = answerTime
)

// SpendTogether spends in one batch.
func SpendTogether(ctx context.Context, s *Store, spends []*Spend) []error {
	batch := make([]*job[refresh], len(spends))
	for i, spend := range spends {
		batch[i] = newJob(context.Background(), refresh{ctx: ctx, spend: spend})
	}
	s.engine.(*pgDB).spender.run(slices.Clone(batch))
	errs := make([]error, len(batch))
	for i, j := range batch {
		errs[i] = <-j.result
	}
	return errs
}

// SpendQueued gives a refresh to the workers, as if other refreshes ran, and returns the place of
// the answer.
func SpendQueued(t *testing.T, s *Store, spend *Spend) <-chan error {
	t.Helper()
	j, err := s.engine.(*pgDB).spender.queue.enqueue(t.Context(), refresh{ctx: context.Background(), spend: spend})
	if err != nil {
		t.Fatal(err)
	}
	return j.result
}

// LeadBatches sets for how long a batch runs alone, from the next batch on.
func LeadBatches(s *Store, lead time.Duration) { s.engine.(*pgDB).spender.lead = lead }

// LetBatchesWait lets each batch wait for a row as long as PostgreSQL allows a statement to run,
// until the end of the test.
func LetBatchesWait(t *testing.T) {
	before := pgBatchBounds
	t.Cleanup(func() { pgBatchBounds = before })
	pgBatchBounds = strings.Replace(before, fmt.Sprintf("'%d'", batchLockTime.Milliseconds()), "'0'", 1)
}

// WrapConnections wraps every connection to PostgreSQL that is made until the end
// of the test.
func WrapConnections(t *testing.T, wrap func(net.Conn) net.Conn) {
	before := dial
	t.Cleanup(func() { dial = before })
	dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := before(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return wrap(conn), nil
	}
}

// Refused reports whether an error says that the server has rolled back.
func Refused(err error) bool { return refused(err) }

// SQLState returns PostgreSQL's code of an error, and "" for another error.
func SQLState(err error) string { return sqlState(err) }

// HintEvery is the shortest time between two hints.
const HintEvery = hintEvery

// Readers is the number of connections that read an embedded database.
func Readers(s *Store) int { return cap(embedded(s).readers) }

// Prepared lists the statements that the connection of a transaction has prepared.
func Prepared(tx *Tx) []string {
	return slices.Collect(maps.Keys(tx.run.(sqliteTx).stmts))
}

// QueryPlan is SQLite's plan of a statement, one step a line.
func QueryPlan(tx *Tx, sql string) (plan string, err error) {
	err = tx.queryRows(func(r row) error {
		var id, parent, unused int
		var step string
		err := r.Scan(&id, &parent, &unused, &step)
		plan += step + "\n"
		return err
	}, "EXPLAIN QUERY PLAN "+sql, make([]any, strings.Count(sql, "$"))...) // at least as many arguments as the statement has
	return plan, err
}

// RunForYears runs a query that counts to a number out of reach.
func RunForYears(tx *Tx) error {
	return tx.exec(`WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers) SELECT count(*) FROM numbers`)
}

// Noting returns a function that gives the error of a call to a new outage.
func Noting(logger *slog.Logger) func(context.Context, error) error {
	o := newOutage(logger)
	return func(ctx context.Context, err error) error { return o.note(ctx, time.Now(), err) }
}

// Slots are the slots of a pool.
type Slots struct{ *slots }

// NewSlots returns the slots of a pool of a size. open returns the number of idle and of all
// connections.
func NewSlots(size int, open func() (int, int), logger *slog.Logger) Slots {
	return Slots{newSlots(size, open, logger)}
}

func (s Slots) Take(ctx context.Context) error { return s.take(ctx, true) }
func (s Slots) Give()                          { s.give() }
func (s Slots) Refused(err error) bool         { return s.refused(err) }
func (s Slots) RestoreAll()                    { s.restoreAll() }
func (s Slots) Free() int                      { return len(s.free) }

// GrowAfter and ReportAfter are times of the slots.
const (
	GrowAfter   = growAfter
	ReportAfter = reportAfter
)

// PublicURI returns what [Copy] prints for the URI of a target.
func PublicURI(t *testing.T, uri string) string {
	config, err := parseURI(uri)
	if err != nil {
		t.Fatal(err)
	}
	return publicURI(uri, config.ConnConfig)
}

// ErrDown is the error of a call that the breaker refuses.
var ErrDown = errDown

// Summary names the span of a statement.
var Summary = summary

// Queued returns the number of writes that wait in SQLite's queue.
func Queued(s *Store) int { return len(s.engine.(*sqliteDB).writer.queue.jobs) }
