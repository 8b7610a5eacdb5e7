package cli_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/user"
)

// hashes returns the password hash of each user by name.
func hashes(t *testing.T, db string) map[string]string {
	t.Helper()
	all := map[string]string{}
	write(t, db, func(tx *store.Tx) error {
		rows, err := tx.Users("", 100)
		for _, row := range rows {
			all[row.Username] = row.PasswordHash
		}
		return err
	})
	return all
}

func TestUsers(t *testing.T) {
	t.Parallel()
	db := database(t)
	wantStates := func(states map[string]string) {
		t.Helper()
		rows := table(t, done(t, "", "user", "list", db))
		if header := []string{"ID", "USERNAME", "ROLES", "STATE", "CREATED"}; !slices.Equal(rows[0], header) {
			t.Errorf("the header is %q", rows[0])
		}
		got := map[string]string{}
		for _, row := range rows[1:] {
			if got[row[1]] = strings.Join(row[2:len(row)-1], " "); len(row[0]) != 16 || !recent(row[len(row)-1]) {
				t.Errorf("a row is %q", row)
			}
		}
		if !reflect.DeepEqual(got, states) {
			t.Errorf("user list shows %v, want %v", got, states)
		}
	}
	wantStates(map[string]string{})
	id := done(t, "a password of alice\r\nand a line that is not read", "user", "create", "Alice", "--role=writer", "--role=reader", "--password-stdin", db)
	if len(id) != 17 || table(t, done(t, "", "user", "list", db))[1][0] != strings.TrimSpace(id) {
		t.Errorf("user create printed %q", id)
	}
	done(t, "a password of bob", "user", "create", "bob", db)
	before := hashes(t, db)
	wantStates(map[string]string{"alice": "reader,writer enabled", "bob": "enabled"})

	for _, c := range []struct {
		args   []string
		stdin  string
		states map[string]string
	}{
		{[]string{"user", "disable", "ALICE"}, "", map[string]string{"alice": "reader,writer disabled", "bob": "enabled"}},
		{[]string{"user", "disable", "alice"}, "", map[string]string{"alice": "reader,writer disabled", "bob": "enabled"}}, // the same once more, which changes nothing
		{[]string{"user", "enable", "alice"}, "", map[string]string{"alice": "reader,writer enabled", "bob": "enabled"}},
		{[]string{"user", "set-password", "alice"}, "another password", map[string]string{"alice": "reader,writer enabled", "bob": "enabled"}},
		{[]string{"user", "set-roles", "bob", "--role=b", "--role=a,b"}, "", map[string]string{"alice": "reader,writer enabled", "bob": "a,b enabled"}},
		{[]string{"user", "set-roles", "bob", "--no-roles"}, "", map[string]string{"alice": "reader,writer enabled", "bob": "enabled"}},
		{[]string{"user", "delete", "bob"}, "", map[string]string{"alice": "reader,writer enabled"}},
	} {
		if out := done(t, c.stdin, append(c.args, db)...); out != "" {
			t.Errorf("watchword %v printed %q", c.args, out)
		}
		wantStates(c.states)
	}
	if after := hashes(t, db); after["alice"] == before["alice"] {
		t.Error("set-password left the hash as it was")
	}
}

// user list reads pages of 500 users.
func TestAThousandUsers(t *testing.T) {
	t.Parallel()
	db := database(t)
	const n = 1001
	write(t, db, func(tx *store.Tx) error {
		for i := range n {
			if _, err := user.Insert(tx, user.Name(fmt.Sprint("user-", i)), nil, "hash"); err != nil {
				return err
			}
		}
		return nil
	})
	seen := map[string]bool{}
	for _, row := range table(t, done(t, "", "user", "list", db))[1:] {
		seen[row[1]] = true
	}
	if len(seen) != n {
		t.Errorf("user list shows %d users", len(seen))
	}
}

// withKeys makes a database that has signing keys and a master key file beside it, as
// after the first start of a server.
func withKeys(t *testing.T) (db string) {
	t.Helper()
	db = database(t)
	master, err := seal.Create(strings.TrimPrefix(db, "--datastore-uri=sqlite:") + ".master-key")
	if err != nil {
		t.Fatal(err)
	}
	write(t, db, func(tx *store.Tx) error {
		return errors.Join(tx.SetSetting(store.DatabaseID, "database"), issuer.Setup(tx, master, token.EdDSA), (&feed.Tx{Tx: tx}).RaiseMaxLifetime(5*time.Minute))
	})
	return db
}

// states returns the kids that key list shows, by state.
func states(t *testing.T, db string) map[string][]string {
	t.Helper()
	rows := table(t, done(t, "", "key", "list", db))
	if header := []string{"KID", "ALGORITHM", "STATE", "PUBLISHED", "SIGNS FROM", "SIGNS UNTIL", "VERIFIES UNTIL"}; !slices.Equal(rows[0], header) {
		t.Errorf("the header is %q", rows[0])
	}
	all := map[string][]string{}
	for _, row := range rows[1:] {
		if len(row) != 7 || !recent(row[3]) {
			t.Errorf("a row is %q", row)
		}
		all[row[2]] = append(all[row[2]], row[0])
	}
	return all
}

func TestKeys(t *testing.T) {
	t.Parallel()
	if got := states(t, database(t)); len(got) > 0 {
		t.Errorf("an empty database has %v", got)
	}
	db := withKeys(t)
	first := states(t, db)
	if len(first["signing"]) != 1 || len(first["next"]) != 1 {
		t.Fatalf("at first there are %v", first)
	}
	next := first["next"][0]
	if out := done(t, "", "key", "rotate", db); !strings.HasPrefix(out, next+" EdDSA signs from ") {
		t.Errorf("key rotate printed %q, want %s", out, next)
	}
	out := done(t, "", "key", "rotate", "--alg=ES256", db)
	if kid, rest, _ := strings.Cut(out, " "); kid == next || !strings.HasPrefix(rest, "ES256 signs from ") {
		t.Errorf("key rotate --alg=ES256 printed %q", out)
	}
	signing := first["signing"][0]
	done(t, "", "key", "revoke", db, "--", signing) // one id in 64 begins with a "-"
	if got := states(t, db); !slices.Equal(got["revoked"], []string{signing}) || len(got["signing"]) != 1 {
		t.Errorf("after the withdrawal of %s there are %v", signing, got)
	}
	fails(t, 1, "no such signing key", "", "key", "revoke", "no-such-kid", db)
}

func TestMasterKeys(t *testing.T) {
	t.Parallel()
	db := withKeys(t)
	if out := done(t, "", "key", "reseal", db); !strings.HasPrefix(out, "resealed 0 keys") {
		t.Errorf("with one master key, reseal printed %q", out)
	}
	out := done(t, "", "key", "reseal", "--new-master-key", db)
	if !strings.HasPrefix(out, "resealed ") || strings.HasPrefix(out, "resealed 0 ") {
		t.Errorf("with a new master key, reseal printed %q", out)
	}
	done(t, "", "key", "rotate", db) // the command can open the keys by the new master key
	other := filepath.Join(t.TempDir(), "other")
	done(t, "", "key", "create-master-key", other)
	fails(t, 1, "--master-key-file", "", "key", "reseal", "--master-key-file="+other, db)
	fails(t, 1, "--master-key-file", "", "datastore", "restored", "--master-key-file="+other, db)
}

func TestRestored(t *testing.T) {
	t.Parallel()
	db := withKeys(t)
	before := states(t, db)
	write(t, db, func(tx *store.Tx) error {
		_, err := user.Insert(tx, "alice", nil, "hash")
		return err
	})
	if out := done(t, "", "datastore", "restored", db); !strings.HasPrefix(out, "1 users raised") {
		t.Errorf("datastore restored printed %q", out)
	}
	after := states(t, db)
	for _, kid := range slices.Concat(before["signing"], before["next"]) {
		if !slices.Contains(after["revoked"], kid) {
			t.Errorf("key %s was not withdrawn: %v", kid, after)
		}
	}
	if len(after["signing"]) != 1 {
		t.Errorf("after it there are %v", after)
	}
}
