package store_test

import (
	"database/sql"
	"testing"

	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// The database refuses a password of a service account, and audiences of a user, from any
// program. The first statements are those of programs that do not know service accounts.
func TestNoProgramGivesAServiceAPassword(t *testing.T) {
	const (
		insert = `INSERT INTO users (id, username, password_hash, roles, disabled, ver, revoked_below, created_at, updated_at, deleted_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING`
		update = `UPDATE users SET username = $2, password_hash = $3, roles = $4, disabled = $5, ver = $6,
			revoked_below = $7, updated_at = $8, deleted_at = $9 WHERE id = $1`
	)
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) {
		s := storetest.Open(t, new(t))
		err := s.Write(t.Context(), func(tx *store.Tx) error {
			return tx.InsertUser(&store.User{ID: "search", Username: "search", Kind: store.KindService, Audiences: []string{"search"}, CreatedAt: tx.Now()})
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			statement string
			args      []any
			ok        bool
		}{
			{insert, []any{"alice", "alice", "$hash", "", false, 1, 0, 1, 1, sql.NullInt64{}}, true},
			{update, []any{"alice", "alice", "$another", "", false, 2, 2, 2, sql.NullInt64{}}, true},
			{update, []any{"search", "searched", "", "reader", true, 2, 2, 2, sql.NullInt64{}}, true},
			{update, []any{"search", "search", "$hash", "", false, 2, 2, 2, sql.NullInt64{}}, false},
			{`UPDATE users SET kind = 'SERVICE' WHERE id = 'alice'`, nil, false},
			{`UPDATE users SET kind = 'USER' WHERE id = 'search'`, nil, false},
			{`UPDATE users SET kind = '' WHERE id = 'alice'`, nil, false},
			{`UPDATE users SET audiences = 'a' WHERE id = 'alice'`, nil, false},
			{`UPDATE users SET delegates_to = 'a' WHERE id = 'alice'`, nil, false},
			{`UPDATE users SET password_hash = '' WHERE id = 'alice'`, nil, true},
		} {
			if err := store.Exec(t, s, c.statement, c.args...); (err == nil) != c.ok {
				t.Errorf("%s %v: %v, want it to be accepted: %t", c.statement, c.args, err, c.ok)
			}
		}
	})
}
