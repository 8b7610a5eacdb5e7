//go:build unix

package authn

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// othersFile is a file as it looks to another user.
type othersFile struct{ fs.FileInfo }

func (f othersFile) Sys() any {
	stat := *f.FileInfo.Sys().(*syscall.Stat_t)
	stat.Uid++
	return &stat
}

func TestAnotherUsersFileIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bundle")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkOurs(info); err != nil {
		t.Errorf("our own: %v", err)
	}
	if checkOurs(othersFile{info}) == nil {
		t.Error("another user's was taken")
	}
}
