//go:build unix

package tokensource_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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

// In a folder in which every user may create files, a token file of another user is refused, and
// so is a link of another user: the reader of the file would see a stranger's token. In a folder
// of one user such a file is replaced.
func TestTokenFileOfAStranger(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make a file of another user")
	}
	const stranger = 65534
	folder := t.TempDir()
	path := filepath.Join(folder, "access-token")
	open := func() error {
		source, err := tokensource.Workload(startAuth(t).dial(t, nil), assertion, tokensource.WithTokenFile(path))
		if err == nil {
			source.Close()
		}
		return err
	}
	for name, plant := range map[string]func() error{
		"file": func() error { return os.WriteFile(path, []byte("a.b.c"), 0o644) },
		"link": func() error { return os.Symlink("elsewhere", path) },
	} {
		check(t, plant())
		check(t, os.Lchown(path, stranger, stranger))
		check(t, os.Chmod(folder, 0o777|os.ModeSticky))
		if err := open(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "belongs to uid 65534") {
			t.Errorf("a %s of another user: %v", name, err)
		}
		check(t, os.Lchown(path, 0, 0))
		check(t, open())
		check(t, os.Lchown(path, stranger, stranger))
		check(t, os.Chmod(folder, 0o755))
		check(t, open())
		check(t, os.Remove(path))
	}
}
