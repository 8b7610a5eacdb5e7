//go:build !unix

package server

// fileLimit returns 0: Go cannot read a limit of open files on this system.
func fileLimit() int { return 0 }
