package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"regexp"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strconv"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"github.com/watchword-auth/watchword/internal/password"
)

// Size is a number of bytes. As text, a Size has the form of GOMEMLIMIT: a whole number and B,
// KiB, MiB, GiB or TiB, such as 256MiB.
type Size int64

var (
	sizeForm = regexp.MustCompile(`^([0-9]+)(B|KiB|MiB|GiB|TiB)$`)
	units    = []string{"B", "KiB", "MiB", "GiB", "TiB"} // powers of 1024
)

// UnmarshalText parses a size, for the command line. An error does not repeat the text, since
// the text may be a password that was given to the wrong flag.
func (s *Size) UnmarshalText(text []byte) error {
	parts := sizeForm.FindStringSubmatch(string(text))
	if parts == nil {
		return errors.New("not a size such as 256MiB or 1GiB")
	}
	shift := 10 * slices.Index(units, parts[2])
	n, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil || n > math.MaxInt64>>shift {
		return errors.New("larger than 8388607TiB")
	}
	*s = Size(n << shift)
	return nil
}

// String returns the size in the largest unit that gives a whole number.
func (s Size) String() string {
	unit := 0
	for ; s != 0 && s%1024 == 0 && unit < len(units)-1; unit++ {
		s /= 1024
	}
	return fmt.Sprint(int64(s), units[unit])
}

// oneHash is the memory that a password hash takes.
var oneHash = Size(password.Default.Footprint())

// memoryLimits holds how much memory this process is allowed to take, in bytes.
type memoryLimits struct {
	cgroup  func() (uint64, error) // returns the lowest limit of the process's cgroup and the cgroups above
	golang  uint64                 // the value of GOMEMLIMIT; math.MaxInt64 without a limit
	machine func() (uint64, error)
}

// processLimits returns the limits of this process.
func processLimits() memoryLimits {
	return memoryLimits{memlimit.FromCgroup, uint64(debug.SetMemoryLimit(-1)), memlimit.FromSystem}
}

// hashMemory returns the memory for password hashes if --hash-memory is not given. The memory
// is a half of the process's limit, since the process needs the rest for everything else.
// Without a limit, the process shares the machine with others, and the memory for hashes is a
// quarter of the machine's memory. If the size of the machine is unknown too, hashMemory
// returns the memory of one hash.
//
// hashMemory returns a size even with an error. Errors: errors of the cgroup's files.
func (l memoryLimits) hashMemory() (Size, error) {
	limit := l.golang
	cgroup, err := l.cgroup()
	switch {
	case err == nil:
		limit = min(limit, cgroup)
	case errors.Is(err, memlimit.ErrNoLimit), errors.Is(err, memlimit.ErrNoCgroup), errors.Is(err, memlimit.ErrCgroupsNotSupported):
		err = nil
	}
	machine, unknown := l.machine()
	if unknown != nil {
		machine = math.MaxInt64
	}
	switch {
	case limit < machine:
		return Size(limit / 2), err
	case unknown == nil:
		return Size(machine / 4), err
	}
	return oneHash, err
}

// connectionMemory is the planned memory for each connection of --max-connections, in bytes,
// including the requests, streams and watchers that clients without a token can hold. The
// end-to-end test TestAHundredStrangers measures the memory.
const connectionMemory = 112 << 10

// proxiedMemory is the planned memory for each connection of a trusted proxy, in bytes, while
// the connection is idle. connectionMemory includes what the calls on connections of proxies
// hold.
const proxiedMemory = 21 << 10

// MemoryGoal returns the memory below which the server plans to stay, in bytes, for Go's soft
// limit (debug.SetMemoryLimit). Without the limit, Go lets the memory grow to twice the used
// memory before Go frees unused memory.
func (s *Server) MemoryGoal() int64 {
	hashes := int64(s.passwords.Parallel()) * password.Default.Footprint()
	connections := connectionMemory*int64(s.limits.connections) + proxiedMemory*int64(s.limits.proxied)
	return processLimits().goal(connections + hashes + s.policy.List.Footprint())
}

// goal returns the memory that the server plans for, and at most nine tenths of the cgroup's limit:
// near its limit, Go collects garbage often, and the process lives on with less memory.
func (l memoryLimits) goal(planned int64) int64 {
	if cgroup, err := l.cgroup(); err == nil {
		return int64(min(uint64(planned), cgroup/10*9))
	}
	return planned
}

// spareMemory gives memory back to the operating system after a flood. After the last call of a
// flood, a server allocates so little that Go's garbage collector runs for the next time two
// minutes later, and only then Go begins to give back what is free.
type spareMemory struct{ cycles uint64 } // cycles is the number of garbage collections at the latest look

const (
	// spareEvery is the time between two looks. A server without a collection for spareEvery is
	// nearly idle, so that a collection harms no call.
	spareEvery = 15 * time.Second
	// spareLeast is the least memory that is worth a collection, in bytes: more than the unused
	// memory of a server at rest.
	spareLeast = 12 << 20
)

// giveBack gives back the unused memory if no collection has run since the latest look, and if
// at least spareLeast is unused. Before the first collection Go does not know what is in use, and
// giveBack takes all memory of Go as unused.
func (m *spareMemory) giveBack(context.Context) error {
	samples := []metrics.Sample{
		{Name: "/gc/cycles/total:gc-cycles"}, {Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"}, {Name: "/gc/heap/live:bytes"},
	}
	metrics.Read(samples)
	cycles, total, released, live := samples[0].Value.Uint64(), samples[1].Value.Uint64(), samples[2].Value.Uint64(), samples[3].Value.Uint64()
	idle := cycles == m.cycles
	m.cycles = cycles
	if idle && total > released+live+spareLeast {
		runtime.GC() // a sync.Pool, such as those of gRPC's buffers, keeps what is unused until the second collection
		debug.FreeOSMemory()
	}
	return nil
}
