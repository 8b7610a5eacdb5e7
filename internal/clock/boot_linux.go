package clock

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// suspended returns for how long the machine was suspended since the boot: CLOCK_BOOTTIME
// counts suspensions, and CLOCK_MONOTONIC stands still. suspended reads CLOCK_BOOTTIME first, so
// an interruption between the two readings makes the result too small, and never too large.
func suspended(time.Time) time.Duration {
	boot := read(unix.CLOCK_BOOTTIME)
	return boot - read(unix.CLOCK_MONOTONIC)
}

func read(id int32) time.Duration {
	var at unix.Timespec
	if unix.ClockGettime(id, &at) != nil { // the kernel lacks the clock
		return 0
	}
	return time.Duration(at.Nano())
}

// Boot returns an id of the machine's present boot, and the time since the boot, suspensions of
// the machine included. Two processes that get the same id can compare their times. The id is
// empty if the system has no id of its boot.
func Boot() (id string, since time.Duration) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", 0
	}
	return strings.TrimSpace(string(text)), read(unix.CLOCK_BOOTTIME)
}
