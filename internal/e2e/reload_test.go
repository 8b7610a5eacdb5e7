package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// TestFilesOfTLSChange replaces the certificates and the CAs of the server and of its clients
// once, with broken files in between, while clients make calls. No call may fail.
func TestFilesOfTLSChange(t *testing.T) { newExchange(t).run(t, 1, 0) }

// TestSlowFilesOfTLSChange is TestFilesOfTLSChange with a change every five seconds, for a
// minute.
func TestSlowFilesOfTLSChange(t *testing.T) {
	slow(t)
	newExchange(t).run(t, 3, 5*time.Second)
}

// Names of the files of TLS on both sides.
const (
	caFile   = "ca.pem"
	certFile = "tls.crt"
	keyFile  = "tls.key"
)

// mounted are the files of one side. Each change makes a new folder and changes a link, as
// Kubernetes does for a mounted secret.
type mounted struct {
	dir     string
	n       int
	content map[string][]byte
}

func (m *mounted) path(name string) string { return filepath.Join(m.dir, "..data", name) }

// replace changes some files at once.
func (m *mounted) replace(t *testing.T, changes map[string][]byte) {
	t.Helper()
	m.n++
	folder := filepath.Join(m.dir, fmt.Sprint("version", m.n))
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range changes {
		m.content[name] = content
	}
	for name, content := range m.content {
		if err := os.WriteFile(filepath.Join(folder, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(m.dir, "..data_tmp")
	if err := os.Symlink(folder, link); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link, filepath.Join(m.dir, "..data")); err != nil {
		t.Fatal(err)
	}
}

// exchange is a server and its clients, and the files of both.
type exchange struct {
	dir              string
	server, client   *mounted
	s                *server
	creds            *authn.TLSCredentials
	token            string
	ca               *authority
	trusted          atomic.Pointer[x509.CertPool] // the CAs of the client that asks over HTTP, which reads no files
	logged           map[string]int                // how many lines of a kind were awaited
	calls, handshake atomic.Int64
}

func newExchange(t *testing.T) *exchange {
	x := &exchange{dir: t.TempDir(), logged: map[string]int{}}
	x.server = &mounted{dir: t.TempDir(), content: map[string][]byte{}}
	x.client = &mounted{dir: t.TempDir(), content: map[string][]byte{}}
	x.ca = newAuthority(t, x.dir, "ca-0")
	x.trust(x.ca)
	server, client := x.pairs(t, 0)
	server[caFile], client[caFile] = read(t, x.ca.file), read(t, x.ca.file)
	x.server.replace(t, server)
	x.client.replace(t, client)
	x.s = serve(t, t.TempDir(), "--tls-cert", x.server.path(certFile), "--tls-key", x.server.path(keyFile), "--client-ca", x.server.path(caFile))
	var err error
	x.creds, err = authn.TLSFromFiles(authn.TLSFiles{CAFile: x.client.path(caFile), CertFile: x.client.path(certFile), KeyFile: x.client.path(keyFile)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.creds.Close() })
	x.token = dialWith(t, x.s.grpcAddr, x.creds).login(t, "admin", x.s.admin).GetAccessToken()
	return x
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// trust lets the client that asks over HTTP trust CAs.
func (x *exchange) trust(cas ...*authority) {
	pool := x509.NewCertPool()
	for _, ca := range cas {
		pool.AddCert(ca.cert)
	}
	x.trusted.Store(pool)
}

// pairs issues a certificate for the server and one for the client.
func (x *exchange) pairs(t *testing.T, n int) (server, client map[string][]byte) {
	t.Helper()
	issue := func(name string, usage x509.ExtKeyUsage) map[string][]byte {
		_, cert, key := x.ca.issue(t, fmt.Sprint(name, "-", n), usage)
		for line := range strings.Lines(string(read(t, key))) {
			if !strings.HasPrefix(line, "-") {
				noteSecret(strings.TrimSpace(line))
			}
		}
		return map[string][]byte{certFile: read(t, cert), keyFile: read(t, key)}
	}
	return issue("server", x509.ExtKeyUsageServerAuth), issue("client", x509.ExtKeyUsageClientAuth)
}

// run replaces everything a number of times, with a pause between two changes, under load.
func (x *exchange) run(t *testing.T, rounds int, pause time.Duration) {
	stop := x.load(t)
	tick := time.NewTimer(0)
	defer tick.Stop()
	next := func() { <-tick.C; tick.Reset(pause) }
	for n := 1; n <= rounds; n++ {
		old := x.ca
		next() // one broken file on each side, in turn: a CA here and a private key there
		if broken := map[string][]byte{caFile: []byte("broken")}; n%2 == 0 {
			x.server.replace(t, broken)
			x.client.replace(t, map[string][]byte{keyFile: x.server.content[keyFile]})
		} else {
			x.server.replace(t, map[string][]byte{keyFile: x.client.content[keyFile]})
			x.client.replace(t, broken)
		}
		x.awaitServer(t, "the new files cannot be used", 1)
		x.awaitClient(t, func(s authn.TLSFileStatus) bool { return s.Fault != nil }, 1)

		next() // the server and the clients trust the old CA and a new one
		x.ca = newAuthority(t, x.dir, fmt.Sprint("ca-", n))
		both := append(read(t, old.file), read(t, x.ca.file)...)
		began := time.Now()
		x.server.replace(t, map[string][]byte{caFile: both})
		x.client.replace(t, map[string][]byte{caFile: both})
		x.trust(old, x.ca)
		since := func(s authn.TLSFileStatus) bool { return s.ReadAt.After(began) && s.Fault == nil }
		x.awaitServer(t, "read again", 1)
		x.awaitClient(t, since, 1)

		next() // the server and the clients show certificates of the new CA
		server, client := x.pairs(t, n)
		x.server.replace(t, server)
		x.client.replace(t, client)
		x.awaitServer(t, "read again", 1)
		x.awaitClient(t, since, 2)

		next() // the server and the clients trust the new CA alone
		began = time.Now()
		x.server.replace(t, map[string][]byte{caFile: read(t, x.ca.file)})
		x.client.replace(t, map[string][]byte{caFile: read(t, x.ca.file)})
		x.trust(x.ca)
		x.awaitServer(t, "read again", 1)
		x.awaitClient(t, since, 1)
		x.check(t, old, server[certFile])
	}
	stop()
	t.Logf("%d calls and %d handshakes", x.calls.Load(), x.handshake.Load())
}

// awaitServer waits until the log has n more lines with a text.
func (x *exchange) awaitServer(t *testing.T, text string, n int) {
	t.Helper()
	x.logged[text] += n
	eventually(t, runTimeout, "the log of the server", func() error {
		if got := strings.Count(x.s.stderr.String(), text); got < x.logged[text] {
			return fmt.Errorf("%d lines with %q, want %d", got, text, x.logged[text])
		}
		return nil
	})
	if got := strings.Count(x.s.stderr.String(), text); got != x.logged[text] {
		t.Errorf("%d lines with %q, want %d", got, text, x.logged[text])
	}
}

// awaitClient waits until n values of the client are in a state.
func (x *exchange) awaitClient(t *testing.T, in func(authn.TLSFileStatus) bool, n int) {
	t.Helper()
	eventually(t, runTimeout, "the client's files", func() error {
		got := 0
		for _, status := range x.creds.Status() {
			if in(status) {
				got++
			}
		}
		if got < n {
			return fmt.Errorf("%d values, want %d", got, n)
		}
		return nil
	})
}

// check looks at the certificate of both addresses, and shows the server a certificate of the
// old CA.
func (x *exchange) check(t *testing.T, old *authority, want []byte) {
	t.Helper()
	block, _ := pem.Decode(want)
	for _, addr := range []string{x.s.grpcAddr, x.s.httpAddr} {
		if got := served(t, addr, x.ca.trusting()); string(got.Raw) != string(block.Bytes) {
			t.Errorf("%s shows the certificate of %s, want the newest", addr, got.Subject)
		}
	}
	withdrawn, _, _ := old.issue(t, "withdrawn", x509.ExtKeyUsageClientAuth)
	wantUnavailable(t, "a certificate of a CA that is gone", dialWith(t, x.s.grpcAddr, credentials.NewTLS(x.ca.trusting(withdrawn))))
}

// served returns the certificate that a server shows.
func served(t *testing.T, addr string, config *tls.Config) *x509.Certificate {
	t.Helper()
	config.NextProtos = []string{"h2", "http/1.1"}
	conn, err := tls.Dial("tcp", addr, config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0]
}

// load makes calls until the function that load returns: over one connection, over new
// connections, by a watcher with a client certificate, and over HTTP. Each error of a call
// fails the test.
func (x *exchange) load(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var workers sync.WaitGroup
	worker := func(what string, call func() error) {
		workers.Go(func() {
			for ctx.Err() == nil {
				if err := call(); err != nil {
					t.Errorf("%s: %v", what, err)
				}
				x.calls.Add(1)
			}
		})
	}
	steady := dialWith(t, x.s.grpcAddr, x.creds)
	worker("over one connection", func() error { return x.verify(steady.conn) })
	worker("over a new connection", func() error { return x.dial(x.verify) })
	worker("a new watcher", func() error { return x.dial(x.watch) })
	worker("HTTP", x.get)
	stop = func() { cancel(); workers.Wait() }
	t.Cleanup(stop)
	return stop
}

// dial gives a new connection to a call.
func (x *exchange) dial(call func(*grpc.ClientConn) error) error {
	conn, err := grpc.NewClient(x.s.grpcAddr, append(keepErrors(), grpc.WithTransportCredentials(x.creds))...)
	if err != nil {
		return err
	}
	x.handshake.Add(1)
	return errors.Join(call(conn), conn.Close())
}

func (x *exchange) verify(conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(context.Background(), runTimeout)
	defer cancel()
	_, err := watchwordv1.NewAuthServiceClient(conn).Verify(ctx, &watchwordv1.VerifyRequest{AccessToken: x.token})
	return err
}

func (x *exchange) watch(conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(context.Background(), runTimeout)
	defer cancel()
	stream, err := watchwordv1.NewTrustServiceClient(conn).WatchBundle(ctx, &watchwordv1.WatchBundleRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	return err
}

func (x *exchange) get() error {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: x.trusted.Load()}, DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport, Timeout: runTimeout}).Get("https://" + x.s.httpAddr + "/healthz")
	if err == nil {
		err = resp.Body.Close()
	}
	x.handshake.Add(1)
	return err
}

// TestHangup sends SIGHUP: the server reads the files at once, and goes on. A client whose CA
// is gone must not come back by resuming its earlier session of TLS.
func TestHangup(t *testing.T) {
	dir := t.TempDir()
	ca, next := newAuthority(t, dir, "ca"), newAuthority(t, dir, "next")
	_, cert, key := ca.issue(t, "server", x509.ExtKeyUsageServerAuth)
	shown, _, _ := ca.issue(t, "client", x509.ExtKeyUsageClientAuth)
	clientCA := filepath.Join(dir, "client-ca.pem")
	replace := func(path string, from ...string) {
		t.Helper()
		var content []byte
		for _, file := range from {
			content = append(content, read(t, file)...)
		}
		if err := os.WriteFile(path+".new", content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	replace(clientCA, ca.file)
	s := serve(t, t.TempDir(), "--tls-cert", cert, "--tls-key", key, "--client-ca", clientCA)
	before := dialWith(t, s.grpcAddr, credentials.NewTLS(ca.trusting(shown)))
	pair := before.login(t, "admin", s.admin)

	config := ca.trusting(shown)
	config.ClientSessionCache, config.NextProtos = tls.NewLRUClientSessionCache(8), []string{"http/1.1"}
	for range 2 {
		conn, err := tls.Dial("tcp", s.httpAddr, config)
		if err != nil {
			t.Fatal(err)
		}
		if conn.ConnectionState().DidResume {
			t.Error("the server resumed a session, which skips the check of the client's certificate")
		}
		askHealth(t, conn) // the tickets come with the answer
	}

	unusable := func(what string) int {
		t.Helper()
		return s.metric(t, `watchword_files_unusable\{what="`+what+`"\}`)
	}
	replace(clientCA, key)
	s.hangup(t, "the new files cannot be used", "what=--client-ca")
	if cas, pair := unusable("--client-ca"), unusable("--tls-cert, --tls-key"); cas != 1 || pair != 0 {
		t.Errorf("unusable by the metric: the CAs %v, the certificate %v", cas, pair)
	}

	_, newCert, newKey := ca.issue(t, "new-server", x509.ExtKeyUsageServerAuth)
	replace(clientCA, next.file)
	replace(cert, newCert)
	replace(key, newKey)
	s.hangup(t, "read again", "what=--client-ca")
	s.hangup(t, "msg=\"read again", "what=\"--tls-cert, --tls-key")
	if unusable("--client-ca") != 0 {
		t.Error("the new CAs are unusable by the metric")
	}
	if got := served(t, s.grpcAddr, ca.trusting()).Subject.CommonName; got != "new-server" {
		t.Errorf("the server shows the certificate of %q", got)
	}
	wantAlert(t, s.httpAddr, config, "unknown certificate authority")
	_, err := before.verify(callCtx(t), pair) // an open connection goes on
	wantOK(t, "verify after SIGHUP", err)
}

// TestHangupReadsTheSettings changes the file of --config of a running server, and sends SIGHUP.
func TestHangupReadsTheSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "watchword.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("log-level: info\n")
	cmd := exec.Command(watchword(t), serveArgs(t.TempDir(), "--config", file)...)
	cmd.Env = []string{"WATCHWORD_DRAIN_TIMEOUT=9s"}
	s := serveCommand(t, "", cmd)
	write("log-level: [debug\n")
	s.hangup(t, "the settings cannot be read again", file+", line 1: not YAML")
	write("log-level: debug\naccess-ttl: 6m\ndrain-timeout: 8s\n") // drain-timeout has no effect: the environment variable comes before the file
	s.hangup(t, "the settings are read again", "log_level=debug", "config="+file, "restart_needed_for=[--access-ttl]")
	_, err := dial(t, s.grpcAddr).GetKeySet(callCtx(t), &watchwordv1.GetKeySetRequest{})
	wantOK(t, "GetKeySet", err)
	s.awaitLog(t, regexp.MustCompile(`level=DEBUG msg="finished call".*GetKeySet`))
	write("log-level: error\n")
	s.hangup(t, "the settings are read again", "log_level=error") // from the next line on, the log has errors only
	write("log-level: debug\nlog-level: info\n")
	s.hangup(t, "the settings cannot be read again", "log-level stands in line 1 too")
	write("log-level: debug\n")
	s.hangup(t, "the settings are read again", "log_level=debug")
}

// hangup sends SIGHUP, and waits for a line of the log that has all texts.
func (s *server) hangup(t *testing.T, texts ...string) {
	t.Helper()
	s.signal(t, syscall.SIGHUP)
	eventually(t, runTimeout, "SIGHUP", func() error {
		for line := range strings.Lines(s.stderr.String()) {
			if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
				return nil
			}
		}
		return fmt.Errorf("the log has no line with %q", texts)
	})
}

// askHealth asks over a connection, and reads the answer.
func askHealth(t *testing.T, conn net.Conn) {
	t.Helper()
	defer conn.Close()
	if _, err := fmt.Fprint(conn, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 1<<10)
	if n, err := conn.Read(answer); err != nil || !strings.Contains(string(answer[:n]), " 200 ") {
		t.Fatalf("got %q, error %v", answer[:n], err)
	}
}
