//go:build !unix

package store_test

import "testing"

// refuseFileWrites needs the file size limit of Unix.
func refuseFileWrites(t *testing.T) (fill, free func()) {
	t.Helper()
	t.Skip("this system cannot make a commit fail by a limit of file sizes")
	return nil, nil
}
