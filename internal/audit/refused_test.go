package audit_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/store"
)

// rowsPerHour bounds the records of refused calls in an hour: 64 places in each of three
// tables, and one record for each type and reason.
const rowsPerHour = 3 * 64

func guessAt(name string) audit.Event {
	e := audit.Event{Type: audit.Login, Reason: "INVALID_CREDENTIALS"}
	if name != "" {
		e.UserID, e.UserName = name+"-id", name
	}
	return e
}

// network returns an address of its own for every n.
func network(n int) string { return fmt.Sprintf("10.%d.%d.%d", n>>16, n>>8&255, n&255) }

// counts returns the counts of the records by user name, actor and source, and their sum.
func (w *world) counts(t *testing.T) (counts map[string]int64, total int64) {
	t.Helper()
	counts = map[string]int64{}
	for _, r := range w.all(t, store.AuditFilter{}, 1000) {
		counts[r.ActorName+">"+r.UserName+" "+r.Source] += r.Count
		total += r.Count
	}
	return counts, total
}

// Whatever strangers do, they leave a bounded number of records and of lines, and every refused
// call is counted: also calls of a kind that loses its entry in memory, before or after the kind
// has a record.
func TestRefusalsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t)
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { w.log.Run(ctx) })
		const hours, perHour, reasons = 3, 10_000, 2
		for hour := range hours {
			for i := range perHour {
				e := guessAt(map[bool]string{true: fmt.Sprint("user", i/3%999)}[i%3 == 0])
				e.Reason = []string{"INVALID_CREDENTIALS", "OVERLOADED"}[i/2%reasons]
				w.log.Refused(from(network(i%7_000)), e)
				if i%400 == 0 {
					time.Sleep(1500 * time.Millisecond)
					if n, most := len(w.all(t, store.AuditFilter{}, 1000)), (hour+1)*(rowsPerHour+reasons); n > most {
						t.Fatalf("%d records in hour %d, want at most %d", n, hour, most)
					}
				}
			}
			time.Sleep(time.Hour)
		}
		stop()
		running.Wait()
		_, total := w.counts(t)
		records := len(w.all(t, store.AuditFilter{}, 1000))
		if most := hours * (rowsPerHour + reasons); records > most || total != hours*perHour {
			t.Errorf("%d records stand for %d refusals; want at most %d, for %d", records, total, most, hours*perHour)
		}
		// Of each hour: the lines about new kinds, with a user and without, the reserve of the
		// start, the final lines, and the first lines of the totals.
		if most := (2*hours+1)*2*64 + records + hours*reasons; w.lines() > most {
			t.Errorf("%d lines for %d records, want at most %d", w.lines(), records, most)
		}
		t.Logf("%d refusals left %d records and %d lines in %d hours", total, records, w.lines(), hours)
	})
}

// A few guesses at a user keep the user's name, the source and the number of guesses in the
// record, whether a flood of kinds with one call each came first, comes later, or comes at the
// same time; from many networks without the name of a user, or from one network with names of
// thousands of users.
func TestGuessesAreNamedInAFlood(t *testing.T) {
	for name, flood := range map[string]func(w *world, n int){
		"of strangers": func(w *world, n int) { w.log.Refused(from(network(n)), guessAt("")) },
		"of one guesser": func(w *world, n int) {
			w.log.Refused(from("192.0.2.66"), guessAt(fmt.Sprint("user", n)))
		},
		"of one guesser that repeats": func(w *world, n int) {
			w.log.Refused(from("192.0.2.66"), guessAt(fmt.Sprint("user", n/100)))
		},
		"of one IPv6 network": func(w *world, n int) {
			w.log.Refused(from(fmt.Sprintf("2001:db8::%x:1", n)), guessAt(fmt.Sprint("user", n)))
		},
		"of one user": func(w *world, n int) {
			w.log.Refused(from(network(n)), audit.Event{Type: audit.Call, Reason: "ROLE_REQUIRED", Detail: "/ListSessions",
				ActorID: "mallory-id", ActorName: "mallory", UserID: fmt.Sprint("id", n), UserName: fmt.Sprint("user", n)})
		},
	} {
		for when, begin := range map[string]int{"before": 3_900, "after": 0, "in between": 2_000} {
			t.Run(name+" "+when, func(t *testing.T) {
				w := open(t)
				const calls = 4_000
				for n := range calls {
					flood(w, n)
					if n >= begin && n < begin+20 {
						w.log.Refused(from("192.0.2.9"), guessAt("admin"))
					}
					if n%1000 == 0 {
						w.flush(t)
					}
				}
				w.flush(t)
				counts, total := w.counts(t)
				if counts[">admin 192.0.2.9"] != 20 || total != calls+20 {
					t.Errorf("%d guesses at admin from 192.0.2.9, want 20; %d refused calls, want %d; of %v", counts[">admin 192.0.2.9"], total, calls+20, counts)
				}
			})
		}
	}
}

// Kinds with few calls lose their own record, and the shared record keeps what the calls have in
// common: guesses of ten thousand networks at one user name the user, guesses of one network at
// ten thousand users name the network, and calls of one user with many sessions name the user.
func TestLightKindsShareARecord(t *testing.T) {
	for name, c := range map[string]struct {
		event func(n int) audit.Event
		from  func(n int) string
		want  string // the records that must stand for nearly all calls
	}{
		"one user":    {func(int) audit.Event { return guessAt("admin") }, network, ">admin many"},
		"one network": {func(n int) audit.Event { return guessAt(fmt.Sprint("user", n)) }, func(int) string { return "192.0.2.9" }, "> 192.0.2.9"},
		"one caller": {func(n int) audit.Event {
			return audit.Event{Type: audit.Call, Reason: "ROLE_REQUIRED", Detail: "/ListUsers", ActorID: "m", ActorName: "mallory", SessionID: fmt.Sprint(n)}
		}, network, "mallory> many"},
	} {
		t.Run(name, func(t *testing.T) {
			w := open(t)
			const calls = 10_000
			for n := range calls {
				w.log.Refused(from(c.from(n)), c.event(n))
			}
			w.flush(t)
			counts, total := w.counts(t)
			if counts[c.want] < calls-64 || total != calls {
				t.Errorf("%d calls of %d in records of %q; of %v", counts[c.want], total, c.want, counts)
			}
		})
	}
}

// The addresses of an IPv6 /64 are one network. The record of an action has the whole
// address.
func TestSourcesOfIPv6(t *testing.T) {
	w := open(t)
	for n := range 1000 {
		w.log.Refused(from(fmt.Sprintf("2001:db8:1:2:3::%x", n)), guessAt("admin"))
	}
	w.flush(t)
	err := w.store.Write(t.Context(), func(tx *store.Tx) error {
		return w.log.Record(from("2001:db8:1:2:3::4"), tx, audit.Event{Type: audit.Login})
	})
	if err != nil {
		t.Fatal(err)
	}
	counts, _ := w.counts(t)
	if len(counts) != 2 || counts[">admin 2001:db8:1:2::/64"] != 1000 || counts["> 2001:db8:1:2:3::4"] != 1 {
		t.Errorf("%v", counts)
	}
}

// A new kind of refused calls with many calls gets its line in the log, in spite of a flood of
// kinds with few calls.
func TestTheHeaviestKindsAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t)
		flood := func(from0, calls int) {
			for n := range calls {
				w.log.Refused(from(network(from0+n)), guessAt(fmt.Sprint("user", from0+n)))
			}
			w.flush(t)
		}
		for i := range 50 { // uses up the lines about new kinds
			flood(200*i, 200)
		}
		if n := w.lines(); n > 2*64 {
			t.Errorf("%d lines about light kinds", n)
		}
		for range 10_000 {
			w.log.Refused(from("192.0.2.9"), guessAt("admin"))
		}
		time.Sleep(time.Minute)
		flood(10_000, 1000)
		if want := "user_name=admin source=192.0.2.9 count=10000"; !strings.Contains(w.logged.String(), want) {
			t.Errorf("no line with %q", want)
		}
	})
}

// Repeats of refresh tokens are counted beside the refused calls: their number of records and
// lines is bounded, each is counted, and no refused call loses its entry because of the repeats.
func TestRepeatsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t)
		guesses := func() {
			for n := range 64 {
				w.log.Refused(from("192.0.2.9"), guessAt(fmt.Sprint("user", n)))
			}
			w.flush(t)
		}
		repeat := func(n int) {
			name := fmt.Sprint("repeats", n)
			w.log.Repeated(from(network(n)), audit.Event{UserID: name + "-id", UserName: name, SessionID: name})
		}
		guesses()
		const repeats = 10_000
		for n := range repeats {
			repeat(n)
			repeat(0)
			if n%100 == 0 {
				w.flush(t)
			}
		}
		guesses()
		records := map[string]int64{}
		for _, success := range []bool{true, false} {
			for _, r := range w.all(t, store.AuditFilter{}, 1000) {
				if r.Success == success {
					records[fmt.Sprint(r.Type, " ", success)]++
					records[fmt.Sprint(r.Type, " ", success, " calls")] += r.Count
				}
				if r.UserName == "repeats0" && r.Success && r.Source == network(0) && r.SessionID == "repeats0" {
					records["of one session"] = r.Count
				}
			}
		}
		if n := records["refresh.repeated true"]; n > 64+1 || records["refresh.repeated true calls"] != 2*repeats || records["refresh.repeated false"] != 0 {
			t.Errorf("repeats: %v", records)
		}
		if records["of one session"] < repeats {
			t.Errorf("the session with most repeats has a record of %d", records["of one session"])
		}
		if records["login false"] != 64 || records["login false calls"] != 2*64 {
			t.Errorf("refused calls: %v", records)
		}
		if n := w.lines(); n > 64+64+1 {
			t.Errorf("%d lines", n)
		}
	})
}
