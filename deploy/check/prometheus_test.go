package check

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const rules = deploy + "/prometheus/watchword.rules.yaml"

// TestRules lets promtool read the alarms, run their tests, and read the configuration of
// Prometheus. Every alarm has a test.
func TestRules(t *testing.T) {
	promtool := tool(t, "promtool", "prometheus")
	output(t, exec.Command(promtool, "check", "rules", rules))
	tests := deploy + "/prometheus/watchword.rules.test.yaml"
	output(t, exec.Command(promtool, "test", "rules", tests))
	output(t, exec.Command(promtool, "check", "config", "--syntax-only", deploy+"/prometheus/prometheus.yaml"))
	alarms := regexp.MustCompile(`(?m)- alert: (\w+)$`).FindAllStringSubmatch(read(t, rules), -1)
	if len(alarms) == 0 || alarms[0][1] != "WatchwordVerifierStale" {
		t.Errorf("the first alarm is not of a stale verifier: %q", alarms)
	}
	for _, m := range alarms {
		if !strings.Contains(read(t, tests), `alertname="`+m[1]+`"`) {
			t.Errorf("%s has no test", m[1])
		}
	}
}

// dashboard returns the expressions of the dashboard, with values for Grafana's variables.
func dashboard(t *testing.T) (expressions []string) {
	t.Helper()
	var board struct {
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, deploy+"/grafana/watchword.json")), &board); err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	values := strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*")
	for _, panel := range board.Panels {
		if seen[panel.ID] || len(panel.Targets) == 0 {
			t.Errorf("the panel %q shares its id, or shows nothing", panel.Title)
		}
		seen[panel.ID] = true
		for _, target := range panel.Targets {
			expressions = append(expressions, values.Replace(target.Expr))
		}
	}
	return expressions
}

// TestDashboard lets promtool read every expression of the dashboard, as a recording rule.
func TestDashboard(t *testing.T) {
	promtool := tool(t, "promtool", "prometheus")
	text := "groups:\n- name: dashboard\n  rules:\n"
	for i, expression := range dashboard(t) {
		text += fmt.Sprintf("  - {record: 'panel:%d', expr: %q}\n", i, expression)
	}
	file := filepath.Join(t.TempDir(), "dashboard.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	output(t, exec.Command(promtool, "check", "rules", file))
}

// TestMetricsExist checks that each metric in the alarms and in the dashboard is served by a
// server, or is an instrument of package authn.
func TestMetricsExist(t *testing.T) {
	cmd := exec.Command(watchword(t), "serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0",
		"--datastore-uri", "sqlite:"+filepath.Join(t.TempDir(), "watchword.db"))
	cmd.Env = environment()
	addresses := startReplica(t, cmd)
	resp, err := http.Get("http://" + addresses.http + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	served := instruments(t)
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)$`).FindAllStringSubmatch(string(page), -1) {
		served = append(served, m[1])
		if m[2] == "histogram" {
			served = append(served, m[1]+"_bucket")
		}
	}
	// These metrics are missing without TLS.
	served = append(served, "watchword_certificate_expiry_timestamp_seconds", "watchword_files_unusable")
	name := regexp.MustCompile(`\b(?:watchword|process)_[a-z_]+\b`)
	used := name.FindAllString(strings.Join(dashboard(t), "\n")+"\n"+read(t, rules), -1)
	if len(used) < 40 {
		t.Errorf("only %d metrics were found in the alarms and the dashboard", len(used))
	}
	for _, metric := range used {
		if !slices.Contains(served, metric) {
			t.Errorf("no server and no verifier has the metric %s", metric)
		}
	}
}

// instruments returns the instruments of the package authn and of the packages below, as
// OpenTelemetry spells the names for Prometheus, without a suffix for the unit. A counter has the
// suffix _total.
func instruments(t *testing.T) (names []string) {
	t.Helper()
	instrument := regexp.MustCompile(`"(watchword\.[a-z.]+[a-z])"`)
	err := filepath.WalkDir(filepath.Join(deploy, "..", "authn"), func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") {
			for _, m := range instrument.FindAllStringSubmatch(read(t, path), -1) {
				name := strings.ReplaceAll(m[1], ".", "_")
				names = append(names, name, name+"_total")
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
