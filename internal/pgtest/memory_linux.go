package pgtest

import (
	"os"
	"syscall"
)

// memory returns a directory for the files of PostgreSQL servers: /dev/shm, where Linux keeps
// files in memory. A database has some 300 files; on a virtual disk, making the files may take
// ten times as long. If TMPDIR is set, or if /dev/shm has less than 2 GiB free, as in a
// container by default, memory returns os.TempDir().
func memory() string {
	const dir, enough = "/dev/shm", 2 << 30
	var fs syscall.Statfs_t
	if os.Getenv("TMPDIR") != "" || syscall.Statfs(dir, &fs) != nil || fs.Bavail*uint64(fs.Bsize) < enough {
		return os.TempDir()
	}
	return dir
}
