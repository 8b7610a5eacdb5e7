package roster

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
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

// pollOfFeed is the time between two readings of the events; each reading also shows whether a
// client asks for the list of watchers.
const pollOfFeed = 200 * time.Millisecond

// run runs a roster and its feed on a database until the end of the test, or until stop.
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
	f.Pace(pollOfFeed, time.Minute)
	f.OnQuestion(r.Asked)
	running.Go(func() { f.Run(ctx) })
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

// A watcher's report that arrives at another replica belongs to the stream of the same watcher:
// the same id and the same certificate. Of two streams of a watcher, at any replicas, the newer
// one is listed.
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

// A process without a hub, such as a command on the database, asks the replicas and is not
// listed as a replica. A row that cannot be read is listed as a replica that does not answer.
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

// A replica that was killed leaves its row. When the process that was started again at the same
// address stops, the row of the killed process goes too: the list names neither process.
func TestAStopDeletesTheRowOfAKilledPredecessor(t *testing.T) {
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) {
		uri := new(t)
		observer, _ := run(t, uri, "observer")
		rows := func() (addresses []string) {
			err := observer.store.Read(t.Context(), func(tx *store.Tx) error {
				rows, err := tx.Replicas()
				for _, row := range rows {
					addresses = append(addresses, row.Address)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(addresses)
			return addresses
		}
		insert := func(id int64, address string) {
			err := observer.store.Write(t.Context(), func(tx *store.Tx) error {
				return tx.WriteReplica(&store.Replica{ID: id, Address: address, Summary: []byte("{}")})
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		insert(1, "restarted")
		insert(2, "killed")
		_, stop := run(t, uri, "restarted")
		await(t, observer, func(list *List) error {
			if got := rows(); !slices.Equal(got, []string{"killed", "observer", "restarted", "restarted"}) {
				return fmt.Errorf("the rows are of %q", got)
			}
			return nil
		})
		insert(3, "restarted") // the row of a replica on another machine with the same name
		stop()
		if got := rows(); !slices.Equal(got, []string{"killed", "observer", "restarted"}) {
			t.Errorf("after the stop, the rows are of %q; want the observer, the killed one, and the one that wrote last", got)
		}
	})
}

// A replica's row is taken for the row of an ended replica when another process writes for the
// same address, or after a quarter of an hour.
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

// At rest the roster of a replica, its list of watchers, reads nothing from the database, and
// writes its row once a minute, whatever the watchers do. Some time after the last call of
// ListWatchers, the roster comes to rest again.
func TestARosterAtRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, stop := run(t, "sqlite:"+filepath.Join(t.TempDir(), "r.db"), "one")
		other := storetest.Open(t, r.store.Address())
		calls := func() (reads, writes uint64) {
			stats := r.store.Stats()
			return stats.Reads.Count, stats.Writes.Count
		}
		reports := r.Reporting(Client{Watcher: []byte("a")}, Words{})
		const span, rows = 5 * time.Minute, 5
		atRest := func(when string) {
			t.Helper()
			reads, writes := calls()
			for range 40 {
				time.Sleep(span / 40)
				reports.Add(Report{})
			}
			read, wrote := calls()
			polls := uint64(span / pollOfFeed)
			ticks := uint64(span / store.TickEvery)
			if read-reads > polls+10 || wrote-writes > ticks+rows+10 {
				t.Errorf("%s, the store has %d reads and %d writes in %v, want %d and %d", when, read-reads, wrote-writes, span, polls, ticks+rows)
			}
		}
		atRest("before the first question")
		if err := other.Write(t.Context(), func(tx *store.Tx) error { _, err := tx.AskReplicas(); return err }); err != nil {
			t.Fatal(err)
		}
		_, before := calls()
		time.Sleep(2 * pollOfFeed)
		reports.Add(Report{})
		time.Sleep(gather)
		if _, writes := calls(); writes == before {
			t.Error("the roster has not answered a question")
		}
		atRest("after a question")
		stop()
	})
}

// The largest summary that strangers can cause is written again before the replica counts as
// one that does not answer.
func TestTheLargestSummaryIsWrittenInTime(t *testing.T) {
	const streams, words, reasons, id = 1536, 128, 64, 32 // the largest values by default, and by the bounds of package rpc
	longest := strings.Repeat("\x01", words)
	refusals := map[int32]uint64{}
	for i := range int32(reasons) {
		refusals[math.MinInt32+i] = math.MaxUint64
	}
	s := &summary{}
	for range streams {
		client := Client{Watcher: make([]byte, id), Address: "127.255.255.255"}
		s.Streams = append(s.Streams, streamLine{Watcher: client.Watcher, Address: client.Address, Age: time.Hour})
		s.Reports = append(s.Reports, reportLine{Watcher: client.Watcher, Words: Words{longest, longest, longest}, Report: Report{Refusals: refusals}})
	}
	encoded, err := s.encode()
	if err != nil {
		t.Fatal(err)
	}
	if pause := time.Duration(len(encoded)) * time.Second / writeRate; pause > lateAfter-time.Second {
		t.Errorf("a summary of %d bytes is written every %v", len(encoded), pause)
	}
}
