package pgtest

import (
	"context"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

func connect(t *testing.T, uri string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func TestDatabasesOfTheirOwn(t *testing.T) {
	first, second := connect(t, URI(t)), connect(t, URI(t))
	if _, err := first.Exec(t.Context(), "CREATE TABLE mine (id BIGINT)"); err != nil {
		t.Fatal(err)
	}
	for conn, want := range map[*pgx.Conn]int{first: 1, second: 0} {
		var tables int
		if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_tables WHERE tableowner = current_user").Scan(&tables); err != nil {
			t.Fatal(err)
		}
		if tables != want {
			t.Errorf("%d tables, want %d", tables, want)
		}
	}
}
