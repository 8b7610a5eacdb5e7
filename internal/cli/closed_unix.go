//go:build unix

package cli

import (
	"os"

	"golang.org/x/sys/unix"
)

// isClosed reports whether standard output was closed when the process began. The Go runtime
// opens the null device in place of a closed standard output, for reading and writing; a shell
// or a service manager opens the null device for writing alone.
func isClosed(f *os.File) bool {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_ACCMODE == unix.O_RDWR && isNull(f)
}
