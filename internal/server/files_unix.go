//go:build unix

package server

import "syscall"

// missing tells the operator what the server lacks on this operating system: nothing on Unix.
const missing = ""

// fileLimit returns the number of files that the process can have open, and 0 if the number is
// unknown or has no limit. Go has raised the soft limit to the hard limit at the start of the
// process.
func fileLimit() int {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil || uint64(limit.Cur) > 1<<30 {
		return 0
	}
	return int(limit.Cur)
}
