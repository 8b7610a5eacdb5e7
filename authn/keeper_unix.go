//go:build unix

package authn

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// checkOurs refuses a file that somebody else may have written, or may read: the
// latter only because it says that nobody looked after the former.
func checkOurs(info fs.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("has mode %04o, and must be nobody else's to read or write (0600)", mode)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || int(stat.Uid) != os.Geteuid() {
		return errors.New("belongs to another user")
	}
	return nil
}

// syncFolder makes a rename last.
func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Sync()
}
