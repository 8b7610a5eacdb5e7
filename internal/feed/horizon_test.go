package feed_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// shifted returns the URI of a new database with a clock that set shifts: functions with the
// names of PostgreSQL's clocks come first in the search path.
func shifted(t *testing.T) (uri string, set func(by time.Duration)) {
	t.Helper()
	uri = storetest.Postgres(t)
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(t.Context()) })
	do := func(statement string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), statement, args...); err != nil {
			t.Fatal(err)
		}
	}
	do(`CREATE SCHEMA shift; CREATE TABLE shift.by (seconds DOUBLE PRECISION); INSERT INTO shift.by VALUES (0)`)
	for _, name := range []string{"clock_timestamp", "transaction_timestamp"} {
		do(fmt.Sprintf(`CREATE FUNCTION shift.%s() RETURNS timestamptz LANGUAGE sql VOLATILE AS
			'SELECT pg_catalog.%[1]s() + make_interval(secs => (SELECT seconds FROM shift.by))'`, name))
	}
	do(fmt.Sprintf(`ALTER DATABASE %s SET search_path = public, shift, pg_catalog`, pgx.Identifier{conn.Config().Database}.Sanitize()))
	return uri, func(by time.Duration) { do(`UPDATE shift.by SET seconds = $1`, by.Seconds()) }
}

// A token was minted while the clock was an hour ahead, and its session ended afterwards. An hour
// later the token's time comes: every verifier must refuse the token, also a verifier that has
// started since, and after the server has pruned.
func TestARevocationOutlivesATokenOfAWrongTime(t *testing.T) {
	uri, set := shifted(t)
	s := storetest.Open(t, uri)
	master, life := keys(t, s), 5*time.Minute
	write(t, s, func(tx *feed.Tx) error { return tx.RaiseMaxLifetime(life) })
	set(time.Hour)
	var now time.Time
	if err := s.Read(t.Context(), func(tx *store.Tx) error { now = tx.Now(); return nil }); err != nil {
		t.Fatal(err)
	}
	set1, ends := keySet(master), now.Add(time.Hour)
	if err := set1.Load(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	raw, _, err := issuer.New(s, set1, "https://auth.test", "", life).Mint(t.Context(), now, issuer.Subject{
		UserID: "alice", Username: "alice", Version: 1, SessionID: "one", Audience: []string{"internal"}, SessionEnd: ends})
	if err != nil {
		t.Fatal(err)
	}
	set(0)
	write(t, s, ended("one"))
	write(t, s, ended("two")) // the newest event stays
	prune := func(from, to time.Duration) *feed.Feed {
		for d := from; d < to; d += store.TickEvery {
			set(d)
			if err := s.Write(t.Context(), (*store.Tx).Tick); err != nil {
				t.Fatal(err)
			}
		}
		f := openWith(t, s, keySet(master).Read)
		if err := f.Prune(t.Context()); err != nil {
			t.Fatal(err)
		}
		return openWith(t, s, keySet(master).Read)
	}
	f := prune(0, time.Hour+time.Minute)
	run(t, f)
	v, err := authn.NewVerifier(t.Context(), f.Hub().Conn(), authn.WithAudience("internal"))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if _, err := v.Verify(t.Context(), raw); authn.Reason(err).String() != "ERROR_REASON_TOKEN_REVOKED" {
		t.Errorf("when the token's time comes: %v", err)
	}
	if sessions, _ := snapshot(t, watch(t, prune(time.Hour+time.Minute, 2*time.Hour))); len(sessions) > 1 {
		t.Errorf("never pruned: %v", sessions)
	}
}
