package cli

import (
	"errors"
	"strings"

	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/store"
)

// explain returns an error's text for a person at a terminal: a refusal by a server
// begins with the reason, and any other error ends with a hint.
func explain(err error) string {
	var refusal interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &refusal) {
		return err.Error() + hint(err)
	}
	s := refusal.GRPCStatus()
	if reason := authn.Reason(err); reason != watchwordv1.ErrorReason_ERROR_REASON_UNSPECIFIED {
		return strings.TrimPrefix(reason.String(), "ERROR_REASON_") + ": " + s.Message()
	}
	return s.Code().String() + ": " + s.Message()
}

// hint names the command or flag that mends an error. The packages below know no
// commands and no flags.
func hint(err error) string {
	switch {
	case errors.As(err, new(*store.MovedError)):
		return ": use that as --datastore-uri, with the same --master-key-file"
	case errors.Is(err, store.ErrIncomplete):
		return ": run the same `watchword datastore copy` again, which finishes the copy or starts over"
	case errors.Is(err, store.ErrOldSchema):
		return "; run: watchword migrate --datastore-uri …"
	case errors.Is(err, store.ErrSchema):
		return "; run a newer watchword"
	}
	return ""
}
