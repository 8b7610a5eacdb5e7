//go:build !linux

package pgtest

import "os"

// memory returns os.TempDir() for the files of PostgreSQL servers: only Linux has a directory
// in memory on every machine.
func memory() string { return os.TempDir() }
