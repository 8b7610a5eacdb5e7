package cli

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

// The first collection makes the ballast, and Go's usual percentage then counts from there.
func TestBallast(t *testing.T) {
	t.Setenv("GOGC", "")
	defer debug.SetGCPercent(debug.SetGCPercent(defaultGOGC))
	read := func(name string) uint64 {
		sample := []metrics.Sample{{Name: name}}
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	percent := func() uint64 { return read("/gc/gogc:percent") }
	if extra := collectRarely(); extra != ballastSize || percent() != 500 {
		t.Errorf("before a collection: %d bytes for the limit, %d %%", extra, percent())
	}
	runtime.GC()
	for deadline := time.Now().Add(30 * time.Second); percent() != defaultGOGC; time.Sleep(time.Millisecond) { // the collection does not wait for the cleanup
		if time.Now().After(deadline) {
			t.Fatalf("30 seconds behind a collection: %d %%", percent())
		}
	}
	runtime.GC()
	if live := read("/gc/heap/live:bytes"); live < ballastSize {
		t.Errorf("%d bytes are in use, less than the ballast", live)
	}
	t.Setenv("GOGC", "200")
	if extra := collectRarely(); extra != 0 || percent() != defaultGOGC {
		t.Errorf("with GOGC: %d bytes for the limit, %d %%", extra, percent())
	}
}
