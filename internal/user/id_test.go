package user_test

import (
	"strings"
	"testing"

	"github.com/watchword-auth/watchword/internal/user"
)

// A command would read an id that begins with "-" as a flag.
func TestNoIDBeginsWithADash(t *testing.T) {
	for range 2000 { // enough ids: of random ids, one in 64 begins with "-"
		if id := user.NewID(); strings.HasPrefix(id, "-") || len(id) != 16 {
			t.Fatalf("the id %q", id)
		}
	}
}
