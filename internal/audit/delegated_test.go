package audit_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/store"
)

// Every delegation is counted once: in the record of its service, audience and hour, or, if
// there are too many services and audiences, in one record for all further ones. The counts of
// refused calls keep their room in memory.
func TestDelegationsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t)
		delegate := func(service, audience string) {
			w.log.Delegated(caller.Caller{Subject: caller.Subject{Kind: caller.Service, ID: service + "-id"}, Name: service}, audience)
		}
		flush := func() {
			if err := w.log.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		const hours, calls = 2, 3
		for range hours {
			for range calls {
				delegate("notes", "search")
				flush()
			}
			delegate("notes", "mail")
			time.Sleep(time.Hour + time.Second)
			flush()
		}
		got := map[string]int{}
		for _, r := range w.all(t, store.AuditFilter{Type: string(audit.TokenDelegated)}, 1000) {
			got[fmt.Sprintf("%s %s %s %t %d", r.ActorID, r.ActorName, r.Detail, r.Success, r.Count)]++
		}
		for _, want := range []string{"notes-id notes audience: search true 3", "notes-id notes audience: mail true 1"} {
			if len(got) != 2 || got[want] != hours {
				t.Errorf("%v, want %q twice", got, want)
			}
		}

		w.log.Refused(from(network(1)), guessAt("alice"))
		for i := range 10_000 {
			delegate(fmt.Sprint("service", i%100), fmt.Sprint("audience", i%32))
			if i%1000 == 0 {
				flush()
			}
		}
		flush()
		var total int64
		guesses := 0
		records := w.all(t, store.AuditFilter{}, 1000)
		for _, r := range records {
			if r.Type == string(audit.TokenDelegated) {
				total += r.Count
			} else if r.UserName == "alice" {
				guesses++
			}
		}
		if most := 4 + 1 + 256 + 1; len(records) > most || total != 10_000+hours*(calls+1) || guesses != 1 {
			t.Errorf("%d records of %d delegations and %d guesses, want at most %d", len(records), total, guesses, most)
		}
	})
}
