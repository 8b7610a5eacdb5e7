//go:build unix

package authn

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"
)

// openOurs opens the snapshot file for reading. If a link or a pipe has taken the file's place
// since [bundle.load] looked, openOurs does not follow the link and does not wait for a writer
// of the pipe.
func openOurs(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
}

// checkOurs returns an error if another user has the right to read or write the file, or may
// have written the file. The content is no secret, but a readable file shows that the operator
// has not thought about the mode of the file.
func checkOurs(info fs.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("has mode %04o, so other users may read or write: use mode 0600", mode)
	}
	return checkOwner(info, os.Geteuid())
}

// checkFolder returns an error if another user has the right to replace the files of a folder.
// In a sticky folder, such as /tmp, only the owners of a file and of the folder have the
// right to replace the file.
func checkFolder(info fs.FileInfo) error {
	if mode := info.Mode(); mode&0o022 != 0 && mode&fs.ModeSticky == 0 {
		return fmt.Errorf("has mode %04o, so other users may write to the folder", mode.Perm())
	}
	return checkOwner(info, os.Geteuid(), 0)
}

// widened reports whether the user of this process owns a file or folder that the function
// check refuses, and that check would accept with a narrower mode.
func widened(info fs.FileInfo, check func(fs.FileInfo) error) bool {
	return checkOwner(info, os.Geteuid()) == nil && check(info) != nil
}

// checkOwner returns an error if none of the users given owns the file or folder.
func checkOwner(info fs.FileInfo, users ...int) error {
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || !slices.Contains(users, int(stat.Uid)) {
		return errors.New("belongs to another user")
	}
	return nil
}
