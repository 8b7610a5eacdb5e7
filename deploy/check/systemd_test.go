package check

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const unit = deploy + "/systemd/watchword.service"

// TestUnit lets systemd read the unit. The program in the unit is not on this machine, so
// the test writes the path of the built program into a copy.
func TestUnit(t *testing.T) {
	analyze := tool(t, "systemd-analyze", "systemd")
	const installed = "ExecStart=/usr/local/bin/watchword "
	text := read(t, unit)
	if !strings.Contains(text, installed) {
		t.Fatalf("the unit has no %s", installed)
	}
	copied := filepath.Join(t.TempDir(), "watchword.service")
	text = strings.Replace(text, installed, "ExecStart="+watchword(t)+" ", 1)
	if err := os.WriteFile(copied, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	// systemd warns of an unknown setting and goes on, so any output is a fault.
	if out := output(t, exec.Command(analyze, "verify", "--man=no", copied)); out != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	// The exposure level goes from 0.0 to 10.0, and the threshold is ten times as high.
	output(t, exec.Command(analyze, "security", "--offline=true", "--no-pager", "--threshold=13", copied))
}

// TestUnitWaitsForTheStop checks that systemd kills no server that stops in order.
func TestUnitWaitsForTheStop(t *testing.T) {
	timeout := regexp.MustCompile(`(?m)^TimeoutStopSec=(\S+)$`).FindStringSubmatch(read(t, unit))
	if timeout == nil {
		t.Fatal("the unit has no TimeoutStopSec")
	}
	environment := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^Environment=(\w+)=(.*)$`).FindAllStringSubmatch(read(t, unit), -1) {
		environment[m[1]] = m[2]
	}
	wantTimeToStop(t, "TimeoutStopSec", parse(t, timeout[1]), environment)
}

// wantTimeToStop checks that a bound on the stop covers --shutdown-delay and --drain-timeout
// of an environment, and some seconds for the end of the process.
func wantTimeToStop(t *testing.T, name string, bound time.Duration, environment map[string]string) {
	t.Helper()
	delay, drain := time.Duration(0), 10*time.Second // the defaults
	if value, set := environment["WATCHWORD_SHUTDOWN_DELAY"]; set {
		delay = parse(t, value)
	}
	if value, set := environment["WATCHWORD_DRAIN_TIMEOUT"]; set {
		drain = parse(t, value)
	}
	if needed := delay + drain + 5*time.Second; bound < needed {
		t.Errorf("%s is %v, and a stop may take %v", name, bound, needed)
	}
}

func parse(t *testing.T, value string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(value)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
