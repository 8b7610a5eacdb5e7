package cli

import (
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
)

const (
	// ballastSize is the size of ballast, in bytes.
	ballastSize = 16 << 20
	// leastHeap is the size of the heap, in bytes, below which Go collects no garbage with GOGC at
	// defaultGOGC. Another percentage changes the size in proportion.
	leastHeap   = 4 << 20
	defaultGOGC = 100 // percent
)

// ballast makes Go collect garbage a third as often in a server with little memory in use. No code
// reads or writes ballast, so the operating system gives no memory for it: see
// docs/decisions/2026-11-29-ballast.md.
var ballast atomic.Pointer[[ballastSize]byte]

// collectRarely makes Go collect garbage rarely in a server with little memory in use, unless the
// variable GOGC is set. Until the first collection, a higher percentage does what the ballast does
// later: to make the ballast at the start would start a collection, which costs a server at rest
// processor time and memory.
//
// collectRarely returns the size of the ballast for Go's memory limit, in bytes: Go counts the
// ballast, which takes no memory.
func collectRarely() int64 {
	if os.Getenv("GOGC") != "" {
		return 0
	}
	debug.SetGCPercent(defaultGOGC * (leastHeap + ballastSize) / leastHeap)
	unused := new(*byte) // the first collection frees unused, and then makes the ballast
	runtime.AddCleanup(unused, func(ballast *atomic.Pointer[[ballastSize]byte]) {
		ballast.Store(new([ballastSize]byte))
		debug.SetGCPercent(defaultGOGC)
	}, &ballast)
	return ballastSize
}
