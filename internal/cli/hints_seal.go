package cli

import (
	"errors"

	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/seal"
)

// keyHint returns what to do about an error that concerns the keys, in the words of
// the command line, to stand behind the error's text; empty for every other error.
func keyHint(err error) string {
	switch {
	case errors.Is(err, seal.ErrWrongKey):
		return "; name the right file by --master-key-file"
	case errors.Is(err, issuer.ErrChainBroken):
		return "; watchword datastore restored replaces all keys, and ends every session"
	}
	return ""
}
