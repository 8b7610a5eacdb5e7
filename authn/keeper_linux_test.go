package authn

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// In a folder of root, a user cannot make a snapshot file, but may read one.
func TestAFolderThatCannotBeWritten(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can act as another user")
	}
	folder := t.TempDir()
	for dir := folder; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(folder, "bundle")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var without, with, acting error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends with this goroutine
		const user = 65534
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, user, user, user); errno != 0 {
			acting = errno
			return
		}
		without, with = checkForever(filepath.Join(folder, "other")), checkForever(file)
	}()
	<-done
	if acting != nil {
		t.Fatal(acting)
	}
	if !errors.Is(without, fs.ErrPermission) || !strings.Contains(without.Error(), "belongs to uid 0") {
		t.Errorf("without a file: %v", without)
	}
	if with != nil {
		t.Errorf("with a file: %v", with)
	}
}
