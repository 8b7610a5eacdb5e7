package cli

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/internal/store"
)

func TestExplainEndsWithWhatMendsAnError(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&store.MovedError{To: "postgres://db/w"}, "this database was moved to postgres://db/w, and must not be used any more: give the new database as --datastore-uri, with the same --master-key-file"},
		{store.ErrIncomplete, "a copy into this database was interrupted; until the copy is finished, use the database that was copied from: " +
			"run the same `watchword datastore copy` again, which finishes the copy or starts over"},
		{fmt.Errorf("%w: there is none yet", store.ErrOldSchema), "unknown database schema: there is none yet; run: watchword migrate --datastore-uri …"},
		{fmt.Errorf("%w: version 7 is newer than this program's 4", store.ErrSchema), "unknown database schema: version 7 is newer than this program's 4; run a newer watchword"},
		{fmt.Errorf("migrating schema: %w: permission denied for schema public", store.ErrRights), "migrating schema: the role of the database lacks a right: permission denied for schema public; " +
			"on PostgreSQL 15 and newer, a role that does not own the database needs: GRANT USAGE, CREATE ON SCHEMA public TO that role"},
		{errors.New("anything else"), "anything else"},
		{status.Error(codes.NotFound, "no such user"), "NotFound: no such user"},
	} {
		if got := explainError(c.err); got != c.want {
			t.Errorf("%v is explained as %q", c.err, got)
		}
	}
}
