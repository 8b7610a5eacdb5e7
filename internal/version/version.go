// Package version says which version of Watchword the running program was built from.
//
// Two ways to build Watchword put the version into the program. The Go toolchain stores a
// version in a program that was built in a clone of the repository, or by `go install`. A build
// in a folder without the repository, such as in a container, stamps the version:
//
//	go build -ldflags "-X github.com/watchword-auth/watchword/internal/version.stamped=v1.2.3"
package version

import "runtime/debug"

// stamped is set by the linker. String returns the stamped version even if the Go toolchain has
// stored another version.
var stamped string

// String returns the version, such as `v1.2.3`. For a program that was built from a commit
// between two versions, String returns the pseudo-version of Go, such as
// `v1.2.4-0.20261129021413-d7c295a08c5a`, with `+dirty` if the clone had changes. String
// returns `(devel)` if the build named no version.
func String() string {
	if stamped != "" {
		return stamped
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
