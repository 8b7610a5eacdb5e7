//go:build unix

package store_test

import (
	"syscall"
	"testing"
)

// refuseFileWrites makes every write to a file fail, of this process: so a
// commit fails, and not only the statements before it.
func refuseFileWrites(t *testing.T) (fill, free func()) {
	t.Helper()
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	none := before
	none.Cur = 0
	set := func(limit syscall.Rlimit) {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
			t.Error(err)
		}
	}
	return func() { set(none) }, func() { set(before) }
}
