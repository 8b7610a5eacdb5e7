//go:build !unix

package server

// fileLimit returns 0: the system has no such limit, or none that Go can read.
func fileLimit() int { return 0 }
