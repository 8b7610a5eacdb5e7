package check

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/sdk/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/tokensource"
	"github.com/watchword-auth/watchword/internal/pgtest"
)

// prometheus is a running Prometheus.
type prometheus struct {
	url     string
	ignored []string // names of alarms
}

// startPrometheus starts Prometheus with the alarms of the rules file. The alarms have the
// expressions of the file, and wait a second in place of the file's times. jobs maps the name of
// a job to the addresses of its processes, by the name of the process.
func startPrometheus(t *testing.T, program string, jobs map[string]map[string]string) *prometheus {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	alarms := write("rules.yaml", regexp.MustCompile(`(?m)^( +for:) .*$`).ReplaceAllString(read(t, rules), "$1 1s"))
	text := "global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}\nrule_files: [" + alarms + "]\nscrape_configs:\n"
	for job, processes := range jobs {
		text += "- job_name: " + job + "\n  static_configs:\n"
		for name, addr := range processes {
			text += fmt.Sprintf("  - {targets: [%q], labels: {instance: %s}}\n", addr, name)
		}
	}
	cmd := exec.Command(program, "--config.file="+write("prometheus.yaml", text), "--storage.tsdb.path="+dir+"/data", "--web.listen-address=127.0.0.1:0")
	return &prometheus{url: "http://" + await(t, cmd, regexp.MustCompile(`msg="Listening on" address=(\S+)`))}
}

// await starts a program, and returns what the pattern finds in the log. The end of the test
// stops the program.
func await(t *testing.T, cmd *exec.Cmd, pattern *regexp.Regexp) string {
	t.Helper()
	logs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	found := make(chan string, 1)
	go func() {
		defer close(found)
		var text strings.Builder
		buf := make([]byte, 4096)
		for {
			n, err := logs.Read(buf)
			text.Write(buf[:n])
			if m := pattern.FindStringSubmatch(text.String()); m != nil {
				found <- m[1]
				_, _ = io.Copy(io.Discard, logs)
				return
			}
			if err != nil {
				t.Errorf("%s ended: %s", cmd, text.String())
				return
			}
		}
	}()
	return <-found
}

// get reads the field "data" of an answer of Prometheus' API. get returns false while Prometheus
// starts.
func (p *prometheus) get(t *testing.T, path string, data any) bool {
	t.Helper()
	resp, err := http.Get(p.url + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusServiceUnavailable {
		return false
	}
	if err := json.NewDecoder(resp.Body).Decode(&struct{ Data any }{data}); err != nil {
		t.Fatal(err)
	}
	return true
}

// alarmTime bounds the wait for alarms. The longest wait is a minute, for the age of the feed.
const alarmTime = 5 * time.Minute

// poll asks until the answer is want.
func poll(t *testing.T, want string, ask func() string) {
	t.Helper()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; <-tick.C {
		got := ask()
		if got == want {
			t.Logf("after %v: %s", time.Since(began).Round(time.Millisecond), want)
			return
		}
		if time.Since(began) > alarmTime {
			t.Fatalf("got: %s\nwant: %s", got, want)
		}
	}
}

// await waits until the alarms that are firing are those of want, each with the name of its
// process.
func (p *prometheus) await(t *testing.T, want ...string) {
	t.Helper()
	slices.Sort(want)
	poll(t, "firing: "+strings.Join(want, ", "), func() string {
		var answer struct {
			Alerts []struct {
				State  string
				Labels map[string]string
			}
		}
		if !p.get(t, "/api/v1/alerts", &answer) {
			return "Prometheus starts"
		}
		var all []string
		for _, alarm := range answer.Alerts {
			if alarm.State == "firing" && !slices.Contains(p.ignored, alarm.Labels["alertname"]) {
				all = append(all, alarm.Labels["alertname"]+" "+alarm.Labels["instance"])
			}
		}
		slices.Sort(all)
		return "firing: " + strings.Join(all, ", ")
	})
}

// awaitValue waits until an expression with one series has a value.
func (p *prometheus) awaitValue(t *testing.T, expression, want string) {
	t.Helper()
	poll(t, expression+": "+want, func() string {
		var answer struct {
			Result []struct{ Value [2]any } // the time, and the value
		}
		if !p.get(t, "/api/v1/query?query="+url.QueryEscape(expression), &answer) || len(answer.Result) != 1 {
			return fmt.Sprintf("%s: %d series", expression, len(answer.Result))
		}
		return fmt.Sprintf("%s: %v", expression, answer.Result[0].Value[1])
	})
}

// startGuarded runs a guarded service with metrics as docs/monitoring.md says, and returns its
// address and the address of its page of metrics.
func startGuarded(t *testing.T, server string) addresses {
	t.Helper()
	conn, err := tokensource.Dial(server, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	exporter, err := otelprometheus.New()
	if err != nil {
		t.Fatal(err)
	}
	provider := metric.NewMeterProvider(metric.WithReader(exporter))
	verifier, err := authn.NewVerifier(t.Context(), conn, authn.WithAudience("internal"), authn.WithMeterProvider(provider),
		authn.WithMaxStaleness(10*time.Second, authn.ContinueWhenStale))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { verifier.Close() })
	guarded := grpc.NewServer(verifier.ServerOptions()...)
	healthv1.RegisterHealthServer(guarded, health.NewServer()) // has no access rule, so every caller needs a token
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = guarded.Serve(listener) }()
	t.Cleanup(guarded.Stop)
	page := httptest.NewServer(promhttp.Handler())
	t.Cleanup(page.Close)
	return addresses{listener.Addr().String(), page.Listener.Addr().String()}
}

// line carries connections to a server, and can be cut.
type line struct {
	listener net.Listener
	mu       sync.Mutex
	isCut    bool
	open     []net.Conn
}

func newLine(t *testing.T, server string) *line {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &line{listener: listener}
	t.Cleanup(func() { listener.Close(); l.cut() })
	go func() {
		for {
			front, err := listener.Accept()
			if err != nil {
				return
			}
			l.carry(front, server)
		}
	}()
	return l
}

func (l *line) addr() string { return l.listener.Addr().String() }

func (l *line) carry(front net.Conn, server string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	back, err := net.Dial("tcp", server)
	if err != nil || l.isCut {
		front.Close()
		if err == nil {
			back.Close()
		}
		return
	}
	l.open = append(l.open, front, back)
	go func() { _, _ = io.Copy(back, front); back.Close() }()
	go func() { _, _ = io.Copy(front, back); front.Close() }()
}

// cut ends all connections, and refuses others until mend.
func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = true
	for _, conn := range l.open {
		conn.Close()
	}
	l.open = nil
}

func (l *line) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = false
}

// freeAddress returns an address on which nothing listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	port, err := pgtest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint("127.0.0.1:", port)
}
