package store_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// The statement for a batch does what the statement for a single refresh does, also for a
// refresh between two others of the batch.
func TestABatchSpendsAsASingleRefresh(t *testing.T) {
	s := storetest.Open(t, storetest.Postgres(t))
	insertAlice(t, s, 2)
	generation := int64(0)
	spend := func(spend *store.Spend) error {
		generation++
		errs := store.SpendTogether(t.Context(), s, []*store.Spend{spendOf("s0", generation), spend, spendOf("s1", generation)})
		if errs[0] != nil || errs[2] != nil {
			t.Errorf("the other members: %v", errs)
		}
		return errs[1]
	}
	storetest.SpendRefuses(t, s, spend)
	storetest.SpendAdvances(t, s, spend)
}

// heldBatch is a batch of one refresh that waits for the row of the session s0, since another
// connection holds the row.
type heldBatch struct {
	s      *store.Store
	holder *pgx.Conn
	other  *pgx.Conn // shows what waits; in a transaction, PostgreSQL shows one state of pg_stat_activity
	answer <-chan error
}

// holdBatch makes a batch wait, of a database with the sessions s0 to s3. Each batch of the
// database runs alone for a time.
func holdBatch(t *testing.T, lead time.Duration) *heldBatch {
	t.Helper()
	store.LetBatchesWait(t)
	uri := storetest.Postgres(t)
	h := &heldBatch{s: storetest.Open(t, uri)}
	insertAlice(t, h.s, 4)
	for _, conn := range []**pgx.Conn{&h.holder, &h.other} {
		var err error
		if *conn, err = pgx.Connect(t.Context(), uri); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*conn).Close(context.Background()) }) // runs before the cleanup of the store, which waits for the batch
	}
	h.exec(t, `BEGIN; SELECT 1 FROM sessions WHERE id = 's0' FOR UPDATE`)
	store.LeadBatches(h.s, lead)
	h.answer = store.SpendQueued(t, h.s, spendOf("s0", 1))
	for !h.waits(t) {
	}
	return h
}

func (h *heldBatch) exec(t *testing.T, sql string) {
	t.Helper()
	if _, err := h.holder.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

// waits reports whether the batch waits for the row.
func (h *heldBatch) waits(t *testing.T) (waits bool) {
	t.Helper()
	if err := h.other.QueryRow(t.Context(), `SELECT count(*) > 0 FROM pg_locks l JOIN pg_stat_activity a USING (pid)
		WHERE NOT l.granted AND a.datname = current_database() AND a.query LIKE '%unnest%ORDINALITY%'`).Scan(&waits); err != nil {
		t.Fatal(err)
	}
	return waits
}

// release ends the transaction that holds the row, and waits for the answer of the batch.
func (h *heldBatch) release(t *testing.T) {
	t.Helper()
	h.exec(t, `ROLLBACK`)
	if err := <-h.answer; err != nil {
		t.Error(err)
	}
}

// While a batch waits for a row, the next batch runs.
func TestABatchThatWaitsHoldsUpNoOther(t *testing.T) {
	h := holdBatch(t, store.BatchLead)
	if err := <-store.SpendQueued(t, h.s, spendOf("s1", 1)); err != nil {
		t.Error(err)
	}
	if !h.waits(t) {
		t.Error("the second refresh waited for the end of the first batch")
	}
	h.release(t)
}

// Refreshes that come while a batch runs alone gather, and share the transaction of the next batch.
func TestRefreshesGather(t *testing.T) {
	h := holdBatch(t, time.Hour)
	var answers []<-chan error
	for i := range 3 {
		answers = append(answers, store.SpendQueued(t, h.s, spendOf(fmt.Sprint("s", i+1), 1)))
		for range 5 { // gives a worker time to take the refresh
			h.waits(t)
		}
	}
	h.release(t)
	for _, answer := range answers {
		if err := <-answer; err != nil {
			t.Error(err)
		}
	}
	var transactions int
	err := h.other.QueryRow(t.Context(), `SELECT count(DISTINCT xmin::text) FROM sessions WHERE id IN ('s1', 's2', 's3')`).Scan(&transactions)
	if err != nil || transactions != 1 {
		t.Errorf("three refreshes took %d transactions: %v", transactions, err)
	}
}
