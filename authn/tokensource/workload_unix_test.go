//go:build unix

package tokensource_test

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/watchword-auth/watchword/authn/tokensource"
)

// TestFileRefusesAPipe: opening the pipe would wait for a writer.
func TestFileRefusesAPipe(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	check(t, syscall.Mkfifo(pipe, 0o600))
	if _, err := tokensource.File(pipe)(t.Context()); err == nil || !strings.Contains(err.Error(), "not a regular file") || !strings.Contains(err.Error(), pipe) {
		t.Error(err)
	}
}
