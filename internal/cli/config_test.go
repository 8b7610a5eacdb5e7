package cli_test

import (
	"reflect"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/watchword-auth/watchword/internal/server"
)

// TestDefaultConfig compares server.DefaultConfig with the defaults of serve's flags.
func TestDefaultConfig(t *testing.T) {
	t.Parallel()
	var flags server.Config
	if err := kong.ApplyDefaults(&flags); err != nil {
		t.Fatal(err)
	}
	if want := server.DefaultConfig(); !reflect.DeepEqual(flags, want) {
		t.Errorf("the flags default to\n%+v, but DefaultConfig returns\n%+v", flags, want)
	}
}
