package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/store"
)

// metric returns a value that the server reports to Prometheus.
func (s *server) metric(t *testing.T, name string) int {
	t.Helper()
	scheme := "http"
	if slices.Contains(s.cmd.Args, "--tls-cert") {
		scheme = "https"
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // the name matters to no test
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: runTimeout}).Get(scheme + "://" + s.httpAddr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindSubmatch(text)
	if match == nil {
		t.Fatalf("no metric %s", name)
	}
	value, err := strconv.ParseFloat(string(match[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return int(value)
}

// endSessions appends the ends of n sessions to the database of a server that was stopped.
func endSessions(t *testing.T, dir string, n int) {
	t.Helper()
	s, err := store.Open(t.Context(), database(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = feed.Direct(s).Write(t.Context(), func(tx *feed.Tx) error {
		for i := range n {
			if err := tx.SessionEnded(fmt.Sprintf("%022d", i)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestMemoryOfWatchers reports what watchers cost the server: idle watchers, and watchers
// that leave their snapshot unread. -v shows the figures. The bounds are wide: they notice
// a copy of the bundle for each watcher, and a goroutine that stays.
func TestMemoryOfWatchers(t *testing.T) {
	dir := t.TempDir()
	ca := newAuthority(t, dir, "ca")
	_, certFile, keyFile := ca.issue(t, "server", x509.ExtKeyUsageServerAuth)
	plain, secure := insecure.NewCredentials(), credentials.NewTLS(ca.trusting())
	withTLS := []string{"--tls-cert", certFile, "--tls-key", keyFile}
	serve(t, dir).stop(t)
	endSessions(t, dir, 6_000) // 240 kB: more than a connection's buffers hold
	for name, c := range map[string]watcherCost{
		"idle, a connection each, TLS":       {reads: true, perConn: 1, creds: secure, flags: withTLS, memory: 500 << 10, goroutines: 8},
		"idle, a connection each, plaintext": {reads: true, perConn: 1, creds: plain, memory: 400 << 10, goroutines: 8},
		"idle, ten on a connection":          {reads: true, perConn: 10, creds: plain, memory: 200 << 10, goroutines: 5},
		"reporting, a connection each, TLS":  {reads: true, reports: true, perConn: 1, creds: secure, flags: withTLS, memory: 600 << 10, goroutines: 11},
		"unread, a connection each, TLS":     {perConn: 1, creds: secure, flags: withTLS, memory: 500 << 10, goroutines: 8},
		"unread, ten on a connection":        {perConn: 10, creds: plain, memory: 200 << 10, goroutines: 5},
	} {
		t.Run(name, func(t *testing.T) { c.measure(t, dir) })
	}
}

// watcherCost is one kind of watcher, and the most that one of them may cost the server.
type watcherCost struct {
	reads      bool // false: the client reads only the first message of its snapshot
	reports    bool
	perConn    int
	creds      credentials.TransportCredentials
	flags      []string
	memory     int // bytes
	goroutines int
}

func (c watcherCost) measure(t *testing.T, dir string) {
	const n, perPeer = 300, 10 // a peer gets 16 snapshots at a time
	s := serve(t, dir, c.flags...)
	memory, goroutines := s.metric(t, "process_resident_memory_bytes"), s.metric(t, "go_goroutines")
	var conn *grpc.ClientConn
	for i := range n {
		if i%c.perConn == 0 {
			conn = dialAs(t, fmt.Sprintf("127.0.1.%d", i/perPeer+1), s.grpcAddr, c.creds)
		}
		stream, err := watchwordv1.NewTrustServiceClient(conn).WatchBundle(t.Context(), &watchwordv1.WatchBundleRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if c.reports {
			reports, err := watchwordv1.NewTrustServiceClient(conn).ReportWatcher(t.Context())
			for _, m := range []*watchwordv1.ReportWatcherRequest{
				{Message: &watchwordv1.ReportWatcherRequest_Identity{Identity: &watchwordv1.WatcherIdentity{Watcher: []byte{byte(i), byte(i >> 8)}, Service: "service"}}},
				{Message: &watchwordv1.ReportWatcherRequest_Report{Report: &watchwordv1.WatcherReport{}}},
			} {
				if err == nil {
					err = reports.Send(m)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		for opened := false; !opened; {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			opened = m.GetHeartbeat() != nil || !c.reads
		}
	}
	memory, goroutines = (s.metric(t, "process_resident_memory_bytes")-memory)/n, (s.metric(t, "go_goroutines")-goroutines+n/2)/n
	t.Logf("each of %d watchers: %d kB of resident memory, %d goroutines", n, memory>>10, goroutines)
	if goroutines == 0 || memory > c.memory || goroutines > c.goroutines {
		t.Errorf("each watcher: %d bytes, want at most %d; %d goroutines, want 1 to %d", memory, c.memory, goroutines, c.goroutines)
	}
}
