package e2e

import (
	"fmt"
	"regexp"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// clockSetLine matches the log of a server that has noticed that the database's clock was set.
var clockSetLine = regexp.MustCompile(`the database's clock was set`)

// shiftClock lets a test set the clock of an installation's database. Later connections find
// functions with the names of PostgreSQL's clocks first in their search path.
func shiftClock(t *testing.T, in *installation) (set func(by time.Duration)) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), in.superuser())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(callCtx(t)) })
	do := func(statement string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	do(`CREATE SCHEMA shift; GRANT USAGE ON SCHEMA shift TO PUBLIC; CREATE TABLE shift.by (seconds DOUBLE PRECISION); INSERT INTO shift.by VALUES (0);
		GRANT SELECT ON shift.by TO PUBLIC`)
	for _, name := range []string{"clock_timestamp", "transaction_timestamp"} {
		do(fmt.Sprintf(`CREATE FUNCTION shift.%s() RETURNS timestamptz LANGUAGE sql VOLATILE AS
			'SELECT pg_catalog.%[1]s() + make_interval(secs => (SELECT seconds FROM shift.by))'`, name))
	}
	do(fmt.Sprintf(`ALTER DATABASE %s SET search_path = public, shift, pg_catalog`, pgx.Identifier{conn.Config().Database}.Sanitize()))
	return func(by time.Duration) { do(fmt.Sprintf(`UPDATE shift.by SET seconds = %v`, by.Seconds())) }
}

// TestTheDatabasesClockIsSet sets the clock of the database ahead and back while the server
// runs, and before the first start. The server and every verifier follow within a second, and
// say so in the log. A token of a session that was logged out stays refused, and so does a
// token of another time.
func TestTheDatabasesClockIsSet(t *testing.T) {
	in := install(t)
	set := shiftClock(t, in)
	set(24 * time.Hour) // at the first start
	r := in.replicate(t)
	c := dial(t, r.door.addr())
	set(0)
	r.server.awaitLog(t, clockSetLine)
	verifier, err := authn.NewVerifier(callCtx(t), dialConn(t, r.door.addr(), insecure.NewCredentials()),
		authn.WithAudience("internal"), authn.WithMaxStaleness(10*time.Second, authn.RefuseWhenStale))
	if err != nil {
		t.Fatal(err)
	}
	defer verifier.Close()
	is := func(want string, pair *watchwordv1.TokenPair) error {
		_, err := verifier.Verify(t.Context(), pair.GetAccessToken())
		_, err2 := c.verify(callCtx(t), pair)
		if got, got2 := authn.Reason(err).String(), authn.Reason(err2).String(); got != want || got2 != want {
			return fmt.Errorf("%s here and %s at the server, want %s", got, got2, want)
		}
		return nil
	}
	const soon = 5 * time.Second // a heartbeat comes as often, also if a reading of the clock should bring none
	const good, expired, revoked, invalid = "ERROR_REASON_UNSPECIFIED", "ERROR_REASON_TOKEN_EXPIRED", "ERROR_REASON_TOKEN_REVOKED", "ERROR_REASON_TOKEN_INVALID"
	login := func() *watchwordv1.TokenPair { return c.login(t, "admin", in.admin) }
	first, out := login(), login()
	eventually(t, soon, "a token after a first start a day ahead", func() error { return is(good, first) })
	wantExit(t, 0, run(t, in.command("key", "rotate", "--master-key-file", in.masterKey))) // brings back the key of the first start
	if err := c.logout(callCtx(t), out); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "logout", func() error { return is(revoked, out) })
	for _, step := range []struct {
		by           time.Duration
		first, ended string // what becomes of the tokens of the right time
	}{
		{2 * time.Hour, expired, expired}, {0, good, revoked}, {-20 * time.Minute, invalid, invalid}, {0, good, revoked},
	} {
		set(step.by)
		fresh := login()
		took := eventually(t, soon, fmt.Sprintf("a fresh token, the clock set to %v", step.by), func() error { return is(good, fresh) })
		eventually(t, soon, fmt.Sprintf("an earlier token, the clock set to %v", step.by), func() error { return is(step.first, first) })
		eventually(t, soon, fmt.Sprintf("a logged out token, the clock set to %v", step.by), func() error { return is(step.ended, out) })
		t.Logf("the clock set to %v: a fresh token is accepted after %v", step.by, took)
	}
	if n := len(clockSetLine.FindAllString(r.server.stderr.String(), -1)); n != 5 {
		t.Errorf("%d lines of the log say that the clock was set, want 5", n)
	}
}
