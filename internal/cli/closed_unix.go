//go:build unix

package cli

import (
	"os"

	"golang.org/x/sys/unix"
)

// isClosed reports whether standard output was possibly closed when the process began. The Go
// runtime opens the null device in place of a closed standard output, for reading and writing. A
// shell opens the null device for writing alone. Python (subprocess.DEVNULL) and Node.js (stdio
// "ignore") open the null device as the Go runtime does, so nothing tells them from a closed
// standard output.
func isClosed(f *os.File) bool {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_ACCMODE == unix.O_RDWR && isNull(f)
}
