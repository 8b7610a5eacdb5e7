//go:build unix

package durable_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/watchword-auth/watchword/internal/durable"
)

// A file has mode 0600 under every umask. The umask belongs to the process, so the test
// does not run beside others.
func TestMode(t *testing.T) {
	folder := t.TempDir() // before the umask, which could make the folder unusable
	for _, mask := range []int{0, 0o022, 0o077, 0o277, 0o777} {
		old := syscall.Umask(mask)
		path := filepath.Join(folder, "file")
		err := durable.Replace(path, func(f *os.File) error {
			if info, err := f.Stat(); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("umask %03o: the draft has mode %v, %v", mask, info.Mode(), err)
			}
			return nil
		})
		syscall.Umask(old)
		if err != nil {
			t.Fatalf("umask %03o: %v", mask, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
			t.Errorf("umask %03o: the file has mode %v, %v", mask, info.Mode(), err)
		}
	}
}
