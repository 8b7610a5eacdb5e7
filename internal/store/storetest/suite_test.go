package storetest_test

import (
	"os"
	"testing"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func TestSuite(t *testing.T) { storetest.EachEngine(t, storetest.Suite) }

// Behind PgBouncer each transaction can be on another connection, and an old PgBouncer, such as
// Debian's, knows no prepared statements. The schema has further tables and columns, as in a
// rolling upgrade to a later program.
func TestSuiteBehindPgBouncerOnAnExpandedSchema(t *testing.T) {
	storetest.Suite(t, func(t testing.TB) string {
		uri := storetest.Postgres(t)
		storetest.Expand(t, uri)
		return pgtest.Bouncer(t, uri) + "&default_query_exec_mode=exec"
	})
}

// A migration of the next program finds this one at work, with statements that the
// database has prepared for it.
func TestTheSchemaExpandsBeneathUs(t *testing.T) {
	uri := storetest.Postgres(t)
	s := storetest.Open(t, uri)
	storetest.TouchEverything(t, s, 1)
	storetest.Expand(t, uri)
	storetest.TouchEverything(t, s, 2)
}
