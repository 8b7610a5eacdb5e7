package server

import (
	"errors"
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// After a flood of allocations, the second look finds no collection since the first look, and
// gives the memory back. A look behind a collection gives nothing back.
func TestMemoryGoesBackAfterAFlood(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	resident := func() uint64 {
		samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
		metrics.Read(samples)
		return samples[0].Value.Uint64() - samples[1].Value.Uint64()
	}
	const flood = 128 << 20
	var m spareMemory
	if err := m.giveBack(t.Context()); err != nil {
		t.Fatal(err)
	}
	block := make([]byte, flood)
	for i := 0; i < flood; i += 4 << 10 {
		block[i] = 1
	}
	runtime.KeepAlive(block)
	runtime.GC()
	before := resident()
	if err := m.giveBack(t.Context()); err != nil || resident()+flood/2 < before {
		t.Errorf("behind a collection: %d bytes, %d before, error %v", resident(), before, err)
	}
	if err := m.giveBack(t.Context()); err != nil || resident()+flood/2 > before {
		t.Errorf("when idle: %d bytes, %d before, error %v", resident(), before, err)
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{
		"256MiB": 256 << 20, "1GiB": 1 << 30, "100000KiB": 100000 << 10, "59768832B": 59768832, "0B": 0, "8388607TiB": 8388607 << 40,
	} {
		var got Size
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%s: got %d, error %v; want %d", text, got, err, want)
		}
		var again Size
		if err := again.UnmarshalText([]byte(want.String())); err != nil || again != want {
			t.Errorf("%s is written as %s, and read again as %d (%v)", text, want, again, err)
		}
	}
	for _, text := range []string{"", "256", "256MB", "256M", "256mib", "-1MiB", "+1MiB", "1.5GiB", "256 MiB", "MiB", "0x10MiB", "1MiB\n", "8388608TiB", "9223372036854775808B"} {
		var got Size
		if err := got.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was read as %d", text, got)
		}
	}
}

func TestMemoryGoal(t *testing.T) {
	const mib = 1 << 20
	for name, test := range map[string]struct {
		cgroup uint64
		err    error
		want   int64
	}{
		"within the cgroup":        {1000 * mib, nil, 300 * mib},
		"more than the cgroup":     {100 * mib, nil, 90 * mib},
		"a cgroup without limit":   {0, memlimit.ErrNoLimit, 300 * mib},
		"a limit near the largest": {math.MaxUint64, nil, 300 * mib},
	} {
		limits := memoryLimits{cgroup: func() (uint64, error) { return test.cgroup, test.err }}
		if got := limits.goal(300 * mib); got != test.want {
			t.Errorf("%s: %d MiB, want %d", name, got/mib, test.want/mib)
		}
	}
}

func TestHashMemory(t *testing.T) {
	const gib = 1 << 30
	is := func(n uint64) func() (uint64, error) { return func() (uint64, error) { return n, nil } }
	fails := func(err error) func() (uint64, error) { return func() (uint64, error) { return 0, err } }
	broken := errors.New("cannot be read")
	for name, test := range map[string]struct {
		limits memoryLimits
		want   Size
		err    error
	}{
		"half of the cgroup's limit":       {memoryLimits{is(gib), math.MaxInt64, is(16 * gib)}, gib / 2, nil},
		"half of GOMEMLIMIT":               {memoryLimits{fails(memlimit.ErrNoLimit), gib, is(16 * gib)}, gib / 2, nil},
		"the lower one, GOMEMLIMIT":        {memoryLimits{is(2 * gib), gib, is(16 * gib)}, gib / 2, nil},
		"the lower one, the cgroup's":      {memoryLimits{is(gib), 2 * gib, is(16 * gib)}, gib / 2, nil},
		"a quarter of the machine":         {memoryLimits{fails(memlimit.ErrNoLimit), math.MaxInt64, is(16 * gib)}, 4 * gib, nil},
		"no cgroup":                        {memoryLimits{fails(memlimit.ErrNoCgroup), math.MaxInt64, is(16 * gib)}, 4 * gib, nil},
		"no cgroups on this system":        {memoryLimits{fails(memlimit.ErrCgroupsNotSupported), math.MaxInt64, is(16 * gib)}, 4 * gib, nil},
		"a limit above the machine":        {memoryLimits{is(64 * gib), math.MaxInt64, is(16 * gib)}, 4 * gib, nil},
		"a limit, and an unknown machine":  {memoryLimits{is(gib), math.MaxInt64, fails(memlimit.ErrNoLimit)}, gib / 2, nil},
		"nothing is known":                 {memoryLimits{fails(memlimit.ErrNoLimit), math.MaxInt64, fails(memlimit.ErrNoLimit)}, oneHash, nil},
		"a cgroup that cannot be read":     {memoryLimits{fails(broken), math.MaxInt64, is(16 * gib)}, 4 * gib, broken},
		"GOMEMLIMIT, and a broken cgroup":  {memoryLimits{fails(broken), gib, is(16 * gib)}, gib / 2, broken},
		"a limit that is less than a hash": {memoryLimits{is(32 << 20), math.MaxInt64, is(16 * gib)}, 16 << 20, nil},
	} {
		if got, err := test.limits.hashMemory(); got != test.want || !errors.Is(err, test.err) {
			t.Errorf("%s: got %v, error %v; want %v, error %v", name, got, err, test.want, test.err)
		}
	}
}
