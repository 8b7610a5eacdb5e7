package issuer_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
	"github.com/watchword-auth/watchword/internal/token"
)

// wired is a keyring whose database is behind a proxy that notes every statement.
type wired struct {
	store  *store.Store
	ring   *issuer.Keyring
	proxy  *pgtest.Proxy
	uri    string // the URI of the database itself, without the proxy
	master string // the file of the master key
}

func wireUp(t *testing.T) *wired {
	t.Helper()
	uri := storetest.Postgres(t)
	proxy := pgtest.NewProxy(t, uri)
	s := storetest.Open(t, proxy.URI())
	path := filepath.Join(t.TempDir(), "master")
	master, err := seal.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), func(tx *store.Tx) error {
		return errors.Join(tx.SetSetting(store.DatabaseID, "database"), issuer.Setup(tx, master, token.EdDSA))
	}); err != nil {
		t.Fatal(err)
	}
	ring := issuer.NewKeyring(s, feed.Direct(s), keySet(master), audit.New(s, slog.New(slog.DiscardHandler)))
	return &wired{s, ring, proxy, uri, path}
}

// refuse makes the database refuse a kind of statement on the table of keys.
func (w *wired) refuse(t *testing.T, kind string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), w.uri)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, statement := range []string{
		`CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$`,
		`CREATE TRIGGER refuse BEFORE ` + kind + ` ON signing_keys EXECUTE FUNCTION refuse()`,
	} {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
}

// writes returns the statements that transactions which write have sent since the
// last call, without BEGIN, its settings and the time.
func (w *wired) writes() (sent []string) {
	writing := map[int]bool{} // whether the transaction of a connection writes, by the number of the connection
	for _, trip := range w.proxy.Trips() {
		if len(trip.Statements) == 0 && writing[trip.Conn] {
			sent = append(sent, "a statement to prepare")
		}
		for _, s := range trip.Statements {
			switch {
			case strings.HasPrefix(s.SQL, "BEGIN"):
				writing[trip.Conn] = !strings.Contains(s.SQL, "READ ONLY")
			case strings.Contains(s.SQL, "_timestamp()"): // leaves out the statements that read the settings and the time
			case writing[trip.Conn]:
				sent = append(sent, s.SQL)
			}
		}
	}
	return sent
}

func (w *wired) changes(t *testing.T) map[string]func(by caller.Caller) error {
	kid := signing(t, w.store).KID
	return map[string]func(by caller.Caller) error{
		"Rotate": func(by caller.Caller) error { _, err := w.ring.Rotate(t.Context(), by, ""); return err },
		"Revoke": func(by caller.Caller) error { _, err := w.ring.Revoke(t.Context(), by, kid); return err },
	}
}

// A change of the keys takes the lock before the transaction reads anything that the change
// depends on. If the caller has no rights, no statement follows the statement that shows this.
func TestTheLockComesFirst(t *testing.T) {
	w := wireUp(t)
	for name, change := range w.changes(t) {
		w.writes()
		if err := change(caller.Caller{Subject: caller.Subject{Kind: caller.User, ID: "gone"}}); !errors.Is(err, caller.ErrRevoked) {
			t.Errorf("%s: %v", name, err)
		}
		sent := w.writes()
		if len(sent) == 0 || !strings.Contains(sent[0], "exclusive_lock") {
			t.Errorf("%s: the first statement is not the lock: %q", name, sent)
		}
		if last := len(sent) - 2; last < 0 || !strings.Contains(sent[last], "FROM users") || !strings.HasPrefix(strings.ToUpper(sent[last+1]), "ROLLBACK") {
			t.Errorf("%s: statements follow the refusal: %q", name, sent)
		}
	}
}

// A statement that fails is the last one of its transaction.
func TestNothingFollowsAFailedStatement(t *testing.T) {
	for _, kind := range []string{"UPDATE", "INSERT"} {
		w := wireUp(t)
		changes := w.changes(t)
		changes["ReplaceAll"] = func(caller.Caller) error {
			_, err := replaceAll(t, w.ring)
			return err
		}
		if kind == "UPDATE" {
			changes["Reseal"] = func(caller.Caller) error {
				return w.store.Write(t.Context(), func(tx *store.Tx) error { _, err := issuer.Reseal(tx, w.withNewKey(t)); return err })
			}
		}
		w.refuse(t, kind)
		for name, change := range changes {
			w.writes()
			if err := change(caller.AtCommandLine); err == nil {
				t.Errorf("%s, %s fails: no error", name, kind)
			}
			sent := w.writes()
			failed := -1
			for i, statement := range sent {
				if strings.HasPrefix(statement, kind+" ") && strings.Contains(statement, "signing_keys") {
					failed = i
					break
				}
			}
			if failed < 0 || failed != len(sent)-2 || !strings.HasPrefix(strings.ToUpper(sent[failed+1]), "ROLLBACK") {
				t.Errorf("%s: after the failed %s come others: %q", name, kind, sent)
			}
		}
	}
}

// withNewKey adds a new master key before the other master keys, and returns all of them.
func (w *wired) withNewKey(t *testing.T) *seal.Keys {
	t.Helper()
	keys, err := seal.Add(w.master)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}
