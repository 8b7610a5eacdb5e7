//go:build !unix

package cli

import "os"

// isClosed returns false: only Unix tells a closed standard output from the null device.
func isClosed(*os.File) bool { return false }
