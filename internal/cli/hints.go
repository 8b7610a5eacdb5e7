package cli

import (
	"errors"
	"strings"

	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/server"
	"github.com/watchword-auth/watchword/internal/store"
)

// explainError returns an error's text for a person at a terminal, in one line for each of
// the errors that errors.Join has joined. The error of a running server begins with its
// reason, such as INVALID_CREDENTIALS; any other error ends with a hint.
func explainError(err error) string {
	var lines []string
	for _, e := range joined(err) {
		lines = append(lines, oneLine(explainOne(e)))
	}
	return strings.Join(lines, "\n")
}

// joined returns the errors that errors.Join has joined into err, also in several steps. If
// errors.Join has not made err, joined returns err alone.
func joined(err error) []error {
	if list, ok := err.(interface{ Unwrap() []error }); ok {
		if same := errors.Join(list.Unwrap()...); same != nil && same.Error() == err.Error() {
			var all []error
			for _, e := range list.Unwrap() {
				all = append(all, joined(e)...)
			}
			return all
		}
	}
	return []error{err}
}

func explainOne(err error) string {
	var refused interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &refused) {
		return err.Error() + hint(err)
	}
	s, more := refused.GRPCStatus(), ""
	if named := (about{}); errors.As(err, &named) {
		more = ": " + named.name
	}
	if ended := (over{}); errors.As(err, &ended) {
		more = "; log in again: " + ended.command
	}
	if reason := refusal.Reason(err); reason != watchwordv1.ErrorReason_ERROR_REASON_UNSPECIFIED {
		return refusal.Name(reason) + ": " + s.Message() + more
	}
	return s.Code().String() + ": " + s.Message() + more
}

// hint returns a text that names the command or the flag that mends an error; "" if no command
// and no flag mends the error. Only package cli knows the commands and the flags, so the errors
// of other packages cannot name a command or a flag.
func hint(err error) string {
	switch {
	case errors.As(err, new(*store.MovedError)):
		return ": give the new database as --datastore-uri, with the same --master-key-file"
	case errors.Is(err, store.ErrNoDatabase):
		return ": name the database of the server by --datastore-uri (`watchword serve` and `watchword migrate` make a new database)"
	case errors.Is(err, store.ErrIncomplete):
		return ": run the same `watchword datastore copy` again, which finishes the copy or starts over"
	case errors.Is(err, store.ErrOldSchema): // before the case of ErrSchema, since ErrOldSchema matches ErrSchema too
		return "; run: watchword migrate --datastore-uri …"
	case errors.Is(err, store.ErrSchema):
		return "; run a newer watchword"
	case errors.As(err, new(*store.EarlierError)):
		return "; replace these servers by this version, and run the command again"
	case errors.Is(err, store.ErrUnfinished):
		return "; run: watchword migrate --finish --datastore-uri …"
	case errors.Is(err, store.ErrRights):
		return "; on PostgreSQL 15 and newer, a role that does not own the database needs: GRANT USAGE, CREATE ON SCHEMA public TO that role"
	case errors.Is(err, server.ErrDamagedMAC):
		return "; put the row back from a backup, or stop every server and run watchword datastore rekey --master-key-is-lost, which ends every session"
	case errors.Is(err, seal.ErrWrongKey):
		return "; name the right file by --master-key-file; if the master key is lost, see watchword datastore rekey --help"
	case errors.Is(err, issuer.ErrChainBroken), errors.Is(err, issuer.ErrRolledBack):
		return "; watchword datastore restored replaces all keys, and ends every session"
	}
	return ""
}
