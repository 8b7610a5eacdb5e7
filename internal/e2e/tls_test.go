package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// authority is a CA for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // the certificate, PEM
}

func newAuthority(t *testing.T, dir, name string) *authority {
	t.Helper()
	a := &authority{key: newKey(t), file: filepath.Join(dir, name+".pem")}
	template := template(name)
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func template(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
}

// issue makes a certificate for a loopback server or for a client, in memory and in files.
func (a *authority) issue(t *testing.T, name string, usage x509.ExtKeyUsage) (cert tls.Certificate, certFile, keyFile string) {
	t.Helper()
	key, template := newKey(t), template(name)
	template.ExtKeyUsage = []x509.ExtKeyUsage{usage}
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	if usage == x509.ExtKeyUsageServerAuth {
		template.DNSNames = []string{"auth.example"} // the name on the pages about proxies
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(filepath.Dir(a.file), name)
	writePEM(t, base+".crt", "CERTIFICATE", der)
	writePEM(t, base+".key", "PRIVATE KEY", private)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, base + ".crt", base + ".key"
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// trusting returns a client's configuration that trusts the CA. The client sends the first
// certificate in certs, even if the server asks for certificates of other CAs.
func (a *authority) trusting(certs ...tls.Certificate) *tls.Config {
	config := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	config.RootCAs.AddCert(a.cert)
	if len(certs) > 0 {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[0], nil }
	}
	return config
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	ca, other := newAuthority(t, dir, "ca"), newAuthority(t, dir, "other-ca")
	_, certFile, keyFile := ca.issue(t, "server", x509.ExtKeyUsageServerAuth)
	flags := []string{"--tls-cert", certFile, "--tls-key", keyFile}

	t.Run("server certificate", func(t *testing.T) { serverCertificate(t, ca, other, flags) })
	t.Run("client certificates", func(t *testing.T) {
		clientCertificates(t, ca, other, append(flags, "--client-ca", ca.file))
	})
	t.Run("off loopback", func(t *testing.T) { // serve refuses to listen there in plaintext
		s := serve(t, t.TempDir(), append(flags, "--grpc-addr", "0.0.0.0:0", "--http-addr", "0.0.0.0:0")...)
		_, port, err := net.SplitHostPort(s.grpcAddr)
		if err != nil {
			t.Fatal(err)
		}
		dialWith(t, "127.0.0.1:"+port, credentials.NewTLS(ca.trusting())).login(t, "admin", s.admin)
	})
}

func serverCertificate(t *testing.T, ca, other *authority, flags []string) {
	s := serve(t, t.TempDir(), flags...)
	c := dialWith(t, s.grpcAddr, credentials.NewTLS(ca.trusting()))
	pair := c.login(t, "admin", s.admin)
	p, err := c.verify(callCtx(t), pair)
	if err != nil || !strings.HasPrefix(p.GetIssuer(), "https://") {
		t.Errorf("got principal %v, error %v; want an https URL as issuer", p, err)
	}
	if resp, err := getTLS(t, ca.trusting(), "https://"+s.httpAddr+"/readyz"); err != nil || resp != http.StatusOK {
		t.Errorf("/readyz over HTTPS: got status %d, error %v", resp, err)
	}
	if resp, err := getTLS(t, ca.trusting(), "http://"+s.httpAddr+"/readyz"); err == nil && resp == http.StatusOK {
		t.Error("/readyz in plaintext HTTP: got status 200, want a refusal")
	}
	wantUnavailable(t, "gRPC in plaintext", dial(t, s.grpcAddr))
	wantUnavailable(t, "a client that trusts another CA", dialWith(t, s.grpcAddr, credentials.NewTLS(other.trusting())))

	// HTTP/2 would allow hundreds of requests at a time on one connection to the HTTP address.
	for addr, protocol := range map[string]string{s.grpcAddr: "h2", s.httpAddr: "http/1.1"} {
		old := ca.trusting()
		old.MaxVersion, old.NextProtos = tls.VersionTLS12, []string{"h2", "http/1.1"}
		wantAlert(t, addr, old, "protocol version")
		current := ca.trusting()
		current.NextProtos = old.NextProtos
		conn, err := tls.Dial("tcp", addr, current)
		if err != nil {
			t.Errorf("TLS 1.3 to %s: %v", addr, err)
			continue
		}
		if conn.ConnectionState().Version != tls.VersionTLS13 {
			t.Errorf("%s chose TLS version %x, want 1.3", addr, conn.ConnectionState().Version)
		}
		if chosen := conn.ConnectionState().NegotiatedProtocol; chosen != protocol {
			t.Errorf("%s chose the protocol %q, want %q", addr, chosen, protocol)
		}
		conn.Close()
	}

	args := []string{"login", "admin", "--password-stdin", "--addr", s.grpcAddr}
	wantExit(t, 0, cli(t, s.dir, s.admin, append(args, "--ca-file", ca.file)...))
	wantExit(t, 0, cli(t, s.dir, "", "healthcheck", "--addr", s.grpcAddr, "--ca-file", ca.file))
	for _, wrong := range [][]string{{"--ca-file", other.file}, {"--plaintext"}, nil} {
		wantExit(t, 1, cli(t, s.dir, s.admin, append(args, wrong...)...))
	}
}

func getTLS(t *testing.T, config *tls.Config, url string) (int, error) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: config}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: runTimeout}).Get(url)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// wantUnavailable calls a public method. The connection must fail.
func wantUnavailable(t *testing.T, what string, c *client) {
	t.Helper()
	if _, err := c.GetKeySet(callCtx(t), &watchwordv1.GetKeySetRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("%s: got %v, want UNAVAILABLE", what, err)
	}
}

// wantAlert opens a connection that the server must end with a TLS alert. In TLS 1.3, the
// server's answer to the client's certificate arrives at the client's first read.
func wantAlert(t *testing.T, addr string, config *tls.Config, alert string) {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, config)
	if err == nil {
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(runTimeout))
		for err == nil { // HTTP/2 settings may come first
			_, err = conn.Read(make([]byte, 1<<10))
		}
	}
	if !strings.Contains(err.Error(), "remote error: tls: ") || !strings.Contains(err.Error(), alert) {
		t.Errorf("%s: got error %v, want the alert %q", addr, err, alert)
	}
}

func clientCertificates(t *testing.T, ca, other *authority, flags []string) {
	s := serve(t, t.TempDir(), flags...)
	cert, _, _ := ca.issue(t, "client", x509.ExtKeyUsageClientAuth)
	foreign, _, _ := other.issue(t, "stranger", x509.ExtKeyUsageClientAuth)

	without := dialWith(t, s.grpcAddr, credentials.NewTLS(ca.trusting()))
	pair := without.login(t, "admin", s.admin)
	without.refresh(t, pair)
	_, err := without.verify(callCtx(t), pair)
	wantOK(t, "verify without a certificate", err)
	wantRefusal(t, "WatchBundle without a certificate", readFirstMessage(t, without), "CLIENT_CERTIFICATE_REQUIRED")
	if resp, err := getTLS(t, ca.trusting(), "https://"+s.httpAddr+"/.well-known/jwks.json"); err != nil || resp != http.StatusOK {
		t.Errorf("JWKS without a certificate: got status %d, error %v", resp, err)
	}

	with := dialWith(t, s.grpcAddr, credentials.NewTLS(ca.trusting(cert)))
	wantOK(t, "WatchBundle with a certificate", readFirstMessage(t, with))

	wantUnavailable(t, "a certificate from another CA", dialWith(t, s.grpcAddr, credentials.NewTLS(ca.trusting(foreign))))
	for addr, protocol := range map[string]string{s.grpcAddr: "h2", s.httpAddr: "http/1.1"} {
		config := ca.trusting(foreign)
		config.NextProtos = []string{protocol}
		wantAlert(t, addr, config, "unknown certificate authority")
	}
	serverCert, _, _ := ca.issue(t, "a-server-as-client", x509.ExtKeyUsageServerAuth)
	wantUnavailable(t, "a server's certificate", dialWith(t, s.grpcAddr, credentials.NewTLS(ca.trusting(serverCert))))
}

// readFirstMessage opens WatchBundle and reads the first message. readFirstMessage returns
// the error of the stream.
func readFirstMessage(t *testing.T, c *client) error {
	t.Helper()
	stream, err := c.WatchBundle(callCtx(t), &watchwordv1.WatchBundleRequest{})
	if err != nil {
		return err
	}
	message, err := stream.Recv()
	if err == nil && len(message.GetSnapshotChunk().GetTrustState().GetKeys()) == 0 {
		t.Errorf("the first message holds no keys: %v", message)
	}
	return err
}
