//go:build unix

package authn

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// openOurs opens the file for reading. A link or a pipe put in the file's place after
// [bundle.load] looked is neither followed nor waited for.
func openOurs(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
}

// checkOurs refuses a file if another user may have written or may read the file. The
// content is no secret; but a readable file shows an operator careless about its mode.
func checkOurs(info fs.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("has mode %04o, and must be nobody else's to read or write (0600)", mode)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || int(stat.Uid) != os.Geteuid() {
		return errors.New("belongs to another user")
	}
	return nil
}

// checkFolder refuses a folder if another user may replace the file in the folder. In a
// sticky folder, such as /tmp, only the owners of the file and of the folder may.
func checkFolder(info fs.FileInfo) error {
	if mode := info.Mode(); mode&0o022 != 0 && mode&fs.ModeSticky == 0 {
		return fmt.Errorf("has mode %04o, and must be nobody else's to write to", mode.Perm())
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(stat.Uid) != os.Geteuid() && stat.Uid != 0 {
		return errors.New("belongs to another user")
	}
	return nil
}
