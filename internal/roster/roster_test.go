package roster

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(withDatabases{m}) }

type withDatabases struct{ *testing.M }

func (m withDatabases) Run() int { return pgtest.Main(m.M) }

// run runs a roster on a database until the end of the test, or until stop.
func run(t *testing.T, uri, address string) (r *Roster, stop func()) {
	t.Helper()
	silent := slog.New(slog.DiscardHandler)
	s := storetest.Open(t, uri)
	f, err := feed.Open(t.Context(), s, feed.Origin{Issuer: "https://auth.test", DatabaseID: "database"}, silent)
	if err != nil {
		t.Fatal(err)
	}
	r = New(s, f.Hub(), Self{Address: address}, silent)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { r.Run(ctx) })
	stop = func() { cancel(); running.Wait() }
	t.Cleanup(stop)
	return r, stop
}

// await lists until check returns nil.
func await(t *testing.T, r *Roster, check func(*List) error) *List {
	t.Helper()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		list, err := r.List(t.Context())
		if err == nil {
			err = check(list)
		}
		if err == nil {
			return list
		}
		if time.Since(began) > 20*time.Second {
			t.Fatal(err)
		}
	}
}

// describe returns a watcher in a line.
func describe(list *List) string {
	var lines []string
	for _, w := range list.Watchers {
		lines = append(lines, fmt.Sprint(w.Address, " ", w.Certificate, " ", w.Reports, " ", w.Service))
	}
	return strings.Join(lines, "; ")
}

// A report at another replica counts for the stream of the same watcher: the same id and the
// same certificate. Of two streams of a watcher, at any replicas, the newer one is listed.
func TestReportsAtAnotherReplica(t *testing.T) {
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) {
		uri := new(t)
		one, _ := run(t, uri, "one")
		two, stop := run(t, uri, "two")
		orders := Client{Watcher: []byte("orders"), Address: "old", Certificate: "DNS orders"}
		one.Opened(orders)
		orders.Address = "new"
		stream := two.Opened(orders)
		one.Opened(Client{Watcher: []byte("billing"), Address: "b"})
		one.Opened(Client{Address: "silent"})
		one.Reporting(orders, Words{Service: "service"}).Add(Report{Staleness: time.Second, Refusals: map[int32]uint64{3: 4}})
		thief := orders
		thief.Certificate = "DNS thief"
		lie := two.Reporting(thief, Words{Service: "a lie"})
		lie.Add(Report{})
		two.mu.Lock()
		lie.at = lie.at.Add(time.Minute) // the newest report by far
		two.mu.Unlock()
		two.Reporting(Client{Watcher: []byte("billing")}, Words{Service: "no report yet"})
		for _, r := range []*Roster{one, two} {
			list := await(t, r, func(list *List) error {
				got := describe(list)
				for _, want := range []string{"new DNS orders true service", "b  false ", "silent  false "} {
					if !strings.Contains(got, want) || len(list.Watchers) != 3 {
						return fmt.Errorf("listed are: %s; want %s", got, want)
					}
				}
				return nil
			})
			for _, w := range list.Watchers {
				if w.Reports && (w.Staleness < time.Second || w.Refusals[3] != 4) {
					t.Errorf("the report is %+v", w.Report)
				}
			}
		}
		stream.Close()
		stop()
		await(t, one, func(list *List) error {
			if got := describe(list); !strings.Contains(got, "old DNS orders true") || len(list.Replicas) != 1 || len(list.Absent) != 0 {
				return fmt.Errorf("after the newer stream has ended: %s; absent %v", got, list.Absent)
			}
			return nil
		})
	})
}

// A process without a hub, as a command on the database, asks and is no replica. A row that
// cannot be read is one of a replica that does not answer.
func TestAskFromACommand(t *testing.T) {
	uri := storetest.SQLite(t)
	replica, _ := run(t, uri, "replica")
	replica.Opened(Client{Address: "a", Certificate: "DNS a"})
	s := storetest.Open(t, uri)
	err := s.Write(t.Context(), func(tx *store.Tx) error {
		return tx.WriteReplica(&store.Replica{ID: 1, Address: "newer", Answered: tx.Now().Add(time.Hour), Summary: []byte("{")})
	})
	if err != nil {
		t.Fatal(err)
	}
	command := New(s, nil, Self{}, slog.New(slog.DiscardHandler))
	await(t, command, func(list *List) error {
		answers := map[string]bool{}
		for _, r := range list.Replicas {
			answers[r.Address] = r.Answers
		}
		if len(answers) != 2 || !answers["replica"] || answers["newer"] || describe(list) != "a DNS a false " {
			return fmt.Errorf("replicas %v, watchers %s", answers, describe(list))
		}
		return nil
	})
}

// A row counts as one of a replica that has ended when another process writes for the same
// address, or after a quarter of an hour.
func TestRowsOfEndedReplicas(t *testing.T) {
	now := time.Now()
	row := func(id int64, address string, age time.Duration) *store.Replica {
		return &store.Replica{ID: id, Address: address, WrittenAt: now.Add(-age)}
	}
	all := []*store.Replica{
		row(1, "a", 5*time.Minute), row(2, "a", time.Second), row(3, "b", 5*time.Minute), row(4, "c", time.Hour), row(5, "a", 2*time.Second),
	}
	for i, want := range []bool{true, false, false, true, false} {
		if got := hidden(all[i], all, now); got != want {
			t.Errorf("row %d is hidden: %t, want %t", all[i].ID, got, want)
		}
	}
}

// Between questions, a replica writes its row once in ten seconds, whatever its watchers do.
func TestARowIsSeldomWritten(t *testing.T) {
	r, _ := run(t, storetest.SQLite(t), "one")
	written := func() (at time.Time) {
		err := r.store.Read(t.Context(), func(tx *store.Tx) error {
			rows, err := tx.Replicas()
			if len(rows) > 0 {
				at = rows[0].WrittenAt
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	for written().IsZero() {
		time.Sleep(time.Millisecond)
	}
	first := written()
	reports := r.Reporting(Client{Watcher: []byte("a")}, Words{})
	for range 8 {
		reports.Add(Report{})
		time.Sleep(lookEvery / 4)
	}
	if again := written(); !again.Equal(first) && again.Sub(first) < writeEvery/2 {
		t.Errorf("the row was written at %v and again after %v", first, again.Sub(first))
	}
}
