package store_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// Of eight callers, five are refused a connection: three slots remain, one line tells how
// many, and the five slots come back later. The last slot stays.
func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		idle, open := 0, 3
		s := store.NewSlots(8, func() (int, int) { return idle, open }, slog.New(slog.NewTextHandler(&log, nil)))
		for round := range 3 {
			for range 8 {
				if err := s.Take(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 5 {
				if !s.Refused(&pgconn.PgError{Code: "53300"}) {
					t.Errorf("round %d: call %d has no other connection to wait for", round, i)
				}
			}
			for range 3 {
				s.Give()
			}
			if s.Free() != 3 {
				t.Errorf("round %d: %d slots are free, want 3", round, s.Free())
			}
			time.Sleep(2 * store.ReportAfter)
			synctest.Wait()
			if lines := strings.Count(log.String(), "\n"); lines != 1 || !strings.Contains(log.String(), "connections=3 configured=8") {
				t.Errorf("round %d: the log says %s", round, &log)
			}
			time.Sleep(2 * store.GrowAfter)
			synctest.Wait()
			if s.Free() != 8 {
				t.Errorf("round %d: %d slots are free later, want 8", round, s.Free())
			}
		}
		open = 2 // the pool has fewer open connections than before, but no server refuses a connection
		for range 8 {
			_ = s.Take(t.Context())
		}
		for range 7 {
			s.Refused(errors.New("away"))
		}
		if s.Refused(errors.New("away")) || s.Free() == 0 {
			t.Errorf("without a connection, %d slots are free", s.Free())
		}
		time.Sleep(2 * store.ReportAfter)
		synctest.Wait()
		idle = 1 // such as a connection that the pool checks
		s.RestoreAll()
		for i := range 8 {
			_ = s.Take(t.Context())
			if !s.Refused(&pgconn.PgError{Code: "53300"}) || s.Free() == 0 {
				t.Errorf("after %d slots were withheld, %d are free", i, s.Free())
			}
		}
		s.RestoreAll()
		if s.Free() != 8 {
			t.Errorf("%d slots are free when the database is back", s.Free())
		}
		time.Sleep(2 * store.GrowAfter) // the timers run, and have no slot to give back
		synctest.Wait()
		if lines := strings.Count(log.String(), "\n"); s.Free() != 8 || lines != 1 {
			t.Errorf("%d slots are free; the log says %s", s.Free(), &log)
		}
	})
}

// A replica that has lost the connections of its pool, while other programs have taken these
// connections of PostgreSQL, gives up the connection that listens for notifications.
func TestTheListenerYields(t *testing.T) {
	uri := storetest.Postgres(t)
	s := storetest.Open(t, uri)
	hinted := make(chan struct{}, 1)
	listening, stop := context.WithCancel(t.Context())
	var hints sync.WaitGroup
	defer hints.Wait()
	defer stop()
	hints.Go(func() {
		s.Hints(listening, func() {
			select {
			case hinted <- struct{}{}:
			default:
			}
		})
	})
	<-hinted // the hint shows that LISTEN has run
	other, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(t.Context())
	database := other.Config().Database
	for _, statement := range []string{
		`ALTER DATABASE ` + database + ` CONNECTION LIMIT 2`,
		`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '` + database + `' AND pid <> pg_backend_pid() AND query NOT LIKE 'LISTEN%'`,
	} {
		if _, err := other.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := calls["Read"](t.Context(), s); err != nil { // a write on a connection that was terminated may be uncertain
		t.Fatal(err)
	}
	for name, call := range calls {
		if err := call(t.Context(), s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
