package cli_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// recorded makes a database with the users alice and bob and a handful of records, and
// returns alice's id. One record is older than the names.
func recorded(t *testing.T) (db, alice string) {
	t.Helper()
	db = database(t)
	write(t, db, func(tx *store.Tx) error {
		a, err := user.Insert(tx, "alice", nil, "hash")
		if err != nil {
			return err
		}
		b, err := user.Insert(tx, "bob", nil, "hash")
		if err != nil {
			return err
		}
		alice = a.ID
		for _, r := range []store.AuditRecord{
			{Type: "login", Success: true, ActorID: a.ID, ActorName: "alice", UserID: a.ID, UserName: "alice", SessionID: "session-1", Source: "192.0.2.7"},
			{Type: "login", Success: true, ActorID: b.ID, ActorName: "bob", UserID: b.ID, UserName: "bob", SessionID: "session-2"},
			{Type: "user.updated", Success: true, ActorID: a.ID, ActorName: "alice", UserID: b.ID, UserName: "bob", Detail: "roles: reader"},
			{Type: "key.revoked", Success: true, KID: "kid-1"},
			{Type: "login", Reason: "INVALID_CREDENTIALS", UserID: a.ID, Source: "many", Count: 41},
		} {
			r.Count++
			if err := tx.InsertAudit(&r); err != nil {
				return err
			}
		}
		return nil
	})
	return db, alice
}

func TestAuditTable(t *testing.T) {
	t.Parallel()
	db, alice := recorded(t)
	rows := table(t, done(t, "", "audit", db))
	if header := []string{"TIME", "TYPE", "OUTCOME", "ACTOR", "USER", "SESSION", "SOURCE", "COUNT", "DETAIL"}; !slices.Equal(rows[0], header) {
		t.Errorf("the header is %q", rows[0])
	}
	var got []string
	for _, row := range rows[1:] {
		if len(row) != 9 || !recent(row[0]) {
			t.Fatalf("a row is %q", row)
		}
		got = append(got, strings.ReplaceAll(strings.Join(row[1:], " "), alice, "ID"))
	}
	for _, want := range []string{
		"login ok alice/ID alice/ID session-1 192.0.2.7 1 -",
		"key.revoked ok - - - - 1 kid-1",
		"login INVALID_CREDENTIALS - ID - many 42 -",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no row is %q, of %q", want, got)
		}
	}
	if len(got) != 5 {
		t.Errorf("%d rows: %q", len(got), got)
	}
}

func TestAuditFilters(t *testing.T) {
	t.Parallel()
	db, alice := recorded(t)
	done(t, "", "user", "delete", "bob", db) // a sixth record, by the operator
	for flags, want := range map[string]int{
		"": 6, "--limit=0": 6, "--limit=1": 1, "--limit=6": 6, "--limit=7": 6,
		"--type=login": 3, "--type=keys.resealed": 0, "--type=login --limit=2": 2,
		"--user=alice": 3, "--user=ALICE": 3, "--user-id=" + alice: 3, "--user-id=unknown": 0, "--user=alice --type=login": 2,
		"--session=session-2": 1, "--session=nothing": 0,
		"--since=1h": 6, "--since=1ns": 0,
		"--user=bob": 3, "--user=bob --limit=2": 2, "--user=bob --limit=0": 3, "--user=bob --type=user.deleted": 1,
	} {
		rows := table(t, done(t, "", append(strings.Fields("audit "+flags), db)...))
		if len(rows) != 1+want {
			t.Errorf("audit %s shows %d records, want %d", flags, len(rows)-1, want)
		}
	}
	fails(t, 2, "--user: malformed", "", "audit", "--user=a b", db)
	fails(t, 1, "no such user: carol", "", "audit", "--user=carol", db)
}

// A line of JSON has the field names of the API, and only fields that are set.
func TestAuditJSON(t *testing.T) {
	t.Parallel()
	db, alice := recorded(t)
	decode := func(line string) (fields map[string]any) {
		t.Helper()
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		at, err := time.Parse(time.RFC3339, fmt.Sprint(fields["time"]))
		if fields["id"] == "" || err != nil || time.Since(at) > time.Minute {
			t.Errorf("id and time: %q", line)
		}
		delete(fields, "id")
		delete(fields, "time")
		return fields
	}
	got := decode(done(t, "", "audit", "--json", "--session=session-1", db))
	want := map[string]any{"type": "login", "success": true, "actor_id": alice, "actor_name": "alice",
		"user_id": alice, "user_name": "alice", "session_id": "session-1",
		"source": "192.0.2.7", "count": 1.0}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	got = decode(done(t, "", "audit", "--json", "--type=key.revoked", db))
	if want := map[string]any{"type": "key.revoked", "success": true, "kid": "kid-1", "count": 1.0}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if n := strings.Count(done(t, "", "audit", "--json", db), "\n"); n != 5 {
		t.Errorf("%d lines", n)
	}
	if out := done(t, "", "audit", "--json", "--type=keys.resealed", db); out != "" {
		t.Errorf("without records: %q", out)
	}
}

// audit reads pages of 500 records and shows the newest first.
func TestAuditPages(t *testing.T) {
	t.Parallel()
	db := database(t)
	const n, batch = 1003, 100
	for from := 0; from < n; from += batch {
		write(t, db, func(tx *store.Tx) error {
			for i := from; i < min(n, from+batch); i++ {
				if err := tx.InsertAudit(&store.AuditRecord{Type: "login", Count: int64(from)}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for flag, want := range map[string]int{"--limit=0": n, "--limit=100": 100, "--limit=500": 500, "--limit=501": 501, "--limit=1002": 1002, "--limit=2000": n, "": 100} {
		last := int64(n)
		lines := strings.Split(strings.TrimSpace(done(t, "", append(strings.Fields("audit --json "+flag), db)...)), "\n")
		for _, line := range lines {
			var record struct{ Count int64 }
			if err := json.Unmarshal([]byte(line), &record); err != nil || record.Count > last {
				t.Fatalf("%q comes after %d, %v", line, last, err)
			}
			last = record.Count
		}
		if len(lines) != want {
			t.Errorf("audit %s shows %d records, want %d", flag, len(lines), want)
		}
	}
}

// Several users may have had a name, one after the other. --user shows the records of all
// of them, in one order, and a record of two of them once.
func TestAuditOfAName(t *testing.T) {
	t.Parallel()
	db := database(t)
	const users, each = 3, 700
	var ids []string
	write(t, db, func(tx *store.Tx) error {
		for range users {
			u, err := user.Insert(tx, "bot", nil, "hash")
			if err != nil {
				return err
			}
			ids = append(ids, u.ID)
			u.DeletedAt = tx.Now()
			if err := tx.UpdateUser(u); err != nil {
				return err
			}
		}
		return nil
	})
	const batch = 100
	for from := 0; from < users*each; from += batch {
		write(t, db, func(tx *store.Tx) error {
			for n := from; n < from+batch; n++ {
				if err := tx.InsertAudit(&store.AuditRecord{Type: "t", ActorID: ids[n%users], UserID: ids[n/users%users], Count: int64(from)}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for limit, want := range map[string]int{"--limit=0": users * each, "--limit=1": 1, "--limit=501": 501, "": 100} {
		lines := strings.Split(strings.TrimSpace(done(t, "", append(strings.Fields("audit --json --user=bot "+limit), db)...)), "\n")
		if len(lines) != want {
			t.Errorf("audit --user %s shows %d records, want %d", limit, len(lines), want)
		}
		shown, last := map[string]bool{}, users*each
		for _, line := range lines {
			var record struct {
				ID    string
				Count int
			}
			if err := json.Unmarshal([]byte(line), &record); err != nil || record.Count > last || shown[record.ID] {
				t.Fatalf("%q comes after %d, or twice: %v", line, last, err)
			}
			shown[record.ID], last = true, record.Count
		}
	}
}
