//go:build unix

package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// CheckWriters returns an error if every user of the machine can write to the file at path, can
// replace the file in its folder, or can replace a link that leads to the file. For a missing
// file, CheckWriters checks the folder. A file that its group can write to is no error:
// Kubernetes gives the files of a volume to a group (fsGroup), and OpenShift to the group 0.
// [Exposure] reports what the group is allowed to do.
func CheckWriters(path string) error {
	if err := checkFolder(path); err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(path); err == nil && real != path {
		path = real
		if err := checkFolder(path); err != nil {
			return err
		}
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil
	case info.IsDir(): // the error gives no advice to run chmod, since the folder can be /tmp
		return fmt.Errorf("%s is a folder: name a file", path)
	case info.Mode()&0o002 != 0:
		return fmt.Errorf("%s has mode %04o, so every user may write to the file: run chmod o-w %[1]s", path, info.Mode().Perm())
	}
	return nil
}

// checkFolder returns an error if every user can replace the file at path in its folder, or if
// another user can have replaced the folder. If every user can write to the folder above, any
// user can put a new folder in the place of the file's folder. The new folder belongs to the
// user that made it, so checkFolder looks at the owner.
func checkFolder(path string) error {
	folder := filepath.Dir(path)
	info, err := os.Stat(folder)
	if err != nil {
		return nil
	}
	if everyUserWrites(info) {
		return fmt.Errorf("the folder %s has mode %04o, so every user may replace %s: run chmod o-w %[1]s, "+
			"or name a file in a folder of its own", folder, info.Mode().Perm(), filepath.Base(path))
	}
	above, err := os.Stat(filepath.Dir(folder))
	stat, ok := info.Sys().(*syscall.Stat_t)
	if own := os.Geteuid(); err == nil && ok && everyUserWrites(above) && own != 0 && !slices.Contains([]int{0, own}, int(stat.Uid)) {
		return fmt.Errorf("the folder %s belongs to uid %d, this process runs as uid %d, and every user may replace the folder: run chmod o-w %s",
			folder, stat.Uid, own, filepath.Dir(folder))
	}
	return nil
}

// CheckOwner returns an error if another user can have put the file at path there: the file or
// link belongs to another user, and every user is allowed to create files in the folder, such
// as /tmp. In /tmp, only root and the owner can replace the file, so this process perhaps could
// not write the file.
func CheckOwner(path string) error {
	folder, err := os.Stat(filepath.Dir(path))
	if err != nil || folder.Mode()&0o002 == 0 {
		return nil
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to uid %d, this process runs as uid %d, and every user may create files in %s: "+
			"name a file in a folder of its own, or remove %[1]s", path, stat.Uid, os.Geteuid(), filepath.Dir(path))
	}
	return nil
}

// everyUserWrites reports whether every user is allowed to replace files in a folder. In a
// sticky folder, such as /tmp, only the owner of a file or of the folder can replace the file.
func everyUserWrites(folder fs.FileInfo) bool {
	return folder.Mode()&0o002 != 0 && folder.Mode()&fs.ModeSticky == 0
}

// Exposure returns a text that says what the group and other users are allowed to do with the
// file at path, for a warning. Exposure returns "" for a file of mode 0600, and for a missing
// file.
func Exposure(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	mode, gid := info.Mode().Perm(), -1
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		gid = int(stat.Gid)
	}
	switch {
	case mode&0o004 != 0:
		return fmt.Sprintf("every user may read the file (mode %04o): use mode 0600", mode)
	case mode&0o020 != 0:
		return fmt.Sprintf("the group %d may write to the file (mode %04o): use mode 0600, unless the platform has set the mode, as fsGroup of Kubernetes does", gid, mode)
	case mode&0o040 != 0:
		return fmt.Sprintf("the group %d may read the file (mode %04o): use mode 0600, unless the platform has set the mode, as fsGroup of Kubernetes does", gid, mode)
	}
	return ""
}

// CheckUsable returns an error if this process is not allowed to read and write the file at
// path. A missing file is no error. CheckUsable opens no file: closing a file would release the
// locks of SQLite on the file.
func CheckUsable(path string) error {
	err := unix.Access(path, unix.R_OK|unix.W_OK)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return Denied(path, &fs.PathError{Op: "open", Path: path, Err: err})
}

// Denied adds to fs.ErrPermission, the error of a missing permission, the owner of the file, or
// of its folder if the file is missing or hidden, and the user of this process. Denied returns
// any other error unchanged.
func Denied(path string, err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	info, failed := os.Stat(path)
	if failed != nil {
		path = filepath.Dir(path)
		info, failed = os.Stat(path)
	}
	if failed != nil {
		return fmt.Errorf("%w (this process runs as uid %d, gid %d)", err, os.Geteuid(), os.Getegid())
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return err
	}
	return fmt.Errorf("%w (%s belongs to uid %d, gid %d, with mode %04o, and this process runs as uid %d, gid %d)",
		err, path, stat.Uid, stat.Gid, info.Mode().Perm(), os.Geteuid(), os.Getegid())
}

// adopt gives a new file the owner and the group of another file (like), and the mode, so that
// a service can use a file that root has made beside a file of the service. If the owner cannot
// be changed, and the group can read and write the other file, adopt changes the group alone.
func adopt(file *os.File, like fs.FileInfo, mode fs.FileMode) error {
	stat, ok := like.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if own, ok := info.Sys().(*syscall.Stat_t); !ok || own.Uid != stat.Uid || own.Gid != stat.Gid {
		err := file.Chown(int(stat.Uid), int(stat.Gid))
		if err != nil && like.Mode()&0o060 == 0o060 { // a file that the group shares, as on a volume of Kubernetes
			err = file.Chown(-1, int(stat.Gid))
		}
		if err != nil {
			return fmt.Errorf("keeping the owner, uid %d and gid %d: %w; run the command as this user or as root", stat.Uid, stat.Gid, err)
		}
	}
	return file.Chmod(mode)
}
