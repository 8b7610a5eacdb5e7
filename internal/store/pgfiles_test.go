package store_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// serviceFile is a service file of PostgreSQL clients with one service, "auth".
type serviceFile string

// name makes the file name the database and the credentials of a URI, and a database at
// another port if port is given.
func (f serviceFile) name(t *testing.T, uri, port string) {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal("the database's URI is malformed") // url.Parse's error would show the password
	}
	if port == "" {
		port = u.Port()
	}
	password, _ := u.User.Password()
	text := fmt.Sprintf("[auth]\nhost=%s\nport=%s\ndbname=%s\nuser=%s\npassword=%s\n", u.Hostname(), port, u.Path[1:], u.User.Username(), password)
	if err := os.WriteFile(string(f), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// query asks a database for a value.
func query(t *testing.T, uri, question string, args ...any) (answer string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if err := conn.QueryRow(t.Context(), question, args...).Scan(&answer); err != nil {
		t.Fatalf("%s: %v", question, err)
	}
	return answer
}

// grant gives a role all rights on the tables of a database until the end of the test.
func grant(t *testing.T, uri, role string) {
	t.Helper()
	owner, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := owner.Exec(t.Context(), "GRANT ALL ON ALL TABLES IN SCHEMA public TO "+role); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer owner.Close(context.Background())
		if _, err := owner.Exec(context.Background(), "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM "+role); err != nil {
			t.Error(err)
		}
	})
}

// listen waits until a store listens for hints. The returned function ends the listening.
func listen(t *testing.T, s *store.Store) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	listening, ended := make(chan struct{}, 100), make(chan struct{})
	go func() {
		defer close(ended)
		s.Hints(ctx, func() { listening <- struct{}{} })
	}()
	<-listening
	return func() {
		cancel()
		<-ended
	}
}

// New connections follow the service file to other credentials. If the file names
// another database, new connections, also the one that listens, stay at the database of
// the start, with the latest credentials of that database.
func TestFilesThatNameAnotherDatabase(t *testing.T) {
	first, other := storetest.Postgres(t), storetest.Postgres(t)
	later := pgtest.Stranger(t, first)
	grant(t, first, userOf(later))
	file := serviceFile(filepath.Join(t.TempDir(), "services"))
	file.name(t, first, "")
	var log bytes.Buffer
	s, err := store.Open(t.Context(), "postgres://?service=auth&application_name=moved&servicefile="+url.QueryEscape(string(file)),
		store.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const ours = ` FROM pg_stat_activity WHERE application_name = 'moved'`
	for i, c := range []struct{ cut, named, port, user string }{
		{first, later, "", later},
		{later, other, "", later},
		{later, first, "1", later}, // no server has port 1
		{later, first, "", first},
	} {
		file.name(t, c.named, c.port)
		if query(t, c.cut, `SELECT count(pg_terminate_backend(pid))::text`+ours+` AND usename = current_user`) == "0" {
			t.Fatalf("step %d: no connection to cut", i)
		}
		recovered(t, s)
		if err := s.Write(t.Context(), set("step", fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		stop := listen(t, s)
		if got := query(t, first, `SELECT value FROM settings WHERE name = 'step'`); got != fmt.Sprint(i) {
			t.Errorf("the database of the start has step %s, want %d", got, i)
		}
		if n := query(t, other, `SELECT count(*)::text`+ours+` AND datname = current_database()`); n != "0" {
			t.Errorf("step %d: %s connections to the other database", i, n)
		}
		users := ""
		for deadline := time.Now().Add(10 * time.Second); users != userOf(c.user) && time.Now().Before(deadline); { // the cut connections end soon
			users = query(t, first, `SELECT string_agg(DISTINCT usename, ' ')`+ours)
		}
		if users != userOf(c.user) {
			t.Errorf("step %d: the connections are of %q, want %q", i, users, userOf(c.user))
		}
		stop()
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 2 {
		t.Errorf("%d errors in the log, want one for each other database:\n%s", n, log.String())
	}
}

func userOf(uri string) string {
	u, _ := url.Parse(uri)
	return u.User.Username()
}
