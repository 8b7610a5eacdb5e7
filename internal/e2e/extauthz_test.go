package e2e

import (
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	errs "github.com/watchword-auth/watchword/internal/refusal"
)

var listeningLine = regexp.MustCompile(`(?m)^.*msg="listening;[^"]*" grpc=(\S+) http=(\S+)`)

// envoy is a connection to `watchword-ext-authz serve`, in the role of Envoy.
type envoy struct {
	t      *testing.T
	conn   *grpc.ClientConn
	client http.Client
	url    string // the URL of the HTTP address
}

// extAuthz runs the program, and connects to it by TLS if ca is not nil.
func extAuthz(t *testing.T, creds credentials.TransportCredentials, flags ...string) (*process, *envoy) {
	t.Helper()
	p := start(t, extAuthzCommand(t, flags...))
	at := p.awaitLog(t, listeningLine)
	return p, &envoy{t: t, conn: dialConn(t, at[1], creds), url: "://" + at[2]}
}

func extAuthzCommand(t *testing.T, flags ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(program(t, "watchword-ext-authz", buildExtAuthz), append([]string{"serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"}, flags...)...)
	cmd.Env = environment()
	return cmd
}

// ask asks about a call of gRPC with a token, through a route with this context. ask returns the
// name of the caller that the service would see, and the error that the client would see.
func (e *envoy) ask(token string, route map[string]string) (username string, err error) {
	e.t.Helper()
	headers := map[string]string{":path": "/notes.v1.NotesService/ListNotes?user=root", ":method": "POST", "content-type": "application/grpc", "x-watchword-username": "root"}
	if token != "" {
		headers["authorization"] = "Bearer " + token
	}
	answer, err := authv3.NewAuthorizationClient(e.conn).Check(callCtx(e.t), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Request:           &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Path: headers[":path"], Method: "POST", Headers: headers}},
		ContextExtensions: route,
	}})
	if err != nil {
		e.t.Fatal(err)
	}
	if answer.GetStatus().GetCode() == 0 {
		for _, h := range answer.GetOkResponse().GetHeaders() {
			if h.GetHeader().GetKey() == "x-watchword-username" {
				username = h.GetHeader().GetValue()
			}
		}
		return username, nil
	}
	for _, h := range answer.GetDeniedResponse().GetHeaders() {
		if h.GetHeader().GetKey() != "grpc-status-details-bin" {
			continue
		}
		details, err := base64.RawStdEncoding.DecodeString(h.GetHeader().GetValue())
		st := new(statuspb.Status)
		if err != nil || proto.Unmarshal(details, st) != nil {
			e.t.Fatalf("%q: %v", h, err)
		}
		return "", status.FromProto(st).Err()
	}
	e.t.Fatalf("a denied call without a status: %v", answer)
	return "", nil
}

// wants checks the caller or the reason of a refusal.
func (e *envoy) wants(token string, route map[string]string, want string) {
	e.t.Helper()
	username, err := e.ask(token, route)
	if got := username + strings.TrimPrefix(errs.Outcome(err), "OK"); got != want {
		e.t.Errorf("%v: %q (%v), want %q", route, got, err, want)
	}
	if err != nil && errs.Method(err) != "/notes.v1.NotesService/ListNotes" {
		e.t.Errorf("%v: the error names the method %q", route, errs.Method(err))
	}
}

// page returns the status and the text of a page of the HTTP address.
func (e *envoy) page(scheme, path string) (int, string) {
	e.t.Helper()
	resp, err := e.client.Get(scheme + e.url + path)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// wantsHealth checks readiness, over gRPC and over HTTP.
func (e *envoy) wantsHealth(scheme string, want healthv1.HealthCheckResponse_ServingStatus) error {
	resp, err := healthv1.NewHealthClient(e.conn).Check(callCtx(e.t), new(healthv1.HealthCheckRequest))
	code, text := e.page(scheme, "/readyz")
	if err != nil || resp.GetStatus() != want || (code == http.StatusOK) != (want == healthv1.HealthCheckResponse_SERVING) {
		return fmt.Errorf("health %v (%v), /readyz %d %q, want %v", resp.GetStatus(), err, code, text, want)
	}
	return nil
}

// Envoy asks the program over TLS about calls, and a logout and a new login count at once. The
// program gets its keys from a server that asks for client certificates.
func TestExtAuthz(t *testing.T) {
	dir := t.TempDir()
	ca := newAuthority(t, dir, "ca")
	_, certFile, keyFile := ca.issue(t, "server", x509.ExtKeyUsageServerAuth)
	_, clientCert, clientKey := ca.issue(t, "ext-authz", x509.ExtKeyUsageClientAuth)
	envoysCert, _, _ := ca.issue(t, "envoy", x509.ExtKeyUsageClientAuth)
	s := serve(t, t.TempDir(), "--tls-cert", certFile, "--tls-key", keyFile, "--client-ca", ca.file)
	c := dialWith(t, s.grpcAddr, credentials.NewTLS(ca.trusting()))
	toServer := []string{"--addr", s.grpcAddr, "--ca-file", ca.file}

	if r := run(t, extAuthzCommand(t, toServer...)); r.code != 1 || !strings.Contains(r.stderr, "CLIENT_CERTIFICATE_REQUIRED") && !strings.Contains(r.stderr, "client certificate") {
		t.Errorf("without a client certificate: %v", r)
	}
	flags := append(toServer, "--cert-file", clientCert, "--key-file", clientKey, "--tls-cert", certFile, "--tls-key", keyFile, "--client-ca", ca.file)
	p, e := extAuthz(t, credentials.NewTLS(ca.trusting(envoysCert)), flags...)
	e.client.Transport = &http.Transport{TLSClientConfig: ca.trusting()}
	t.Cleanup(e.client.CloseIdleConnections)
	if line := p.awaitLog(t, readyLine)[0]; !strings.Contains(line, "tls=true") {
		t.Error(line)
	}
	if err := e.wantsHealth("https", healthv1.HealthCheckResponse_SERVING); err != nil {
		t.Error(err)
	}
	stranger := &envoy{t: t, conn: dialConn(t, e.conn.Target(), credentials.NewTLS(ca.trusting()))}
	if _, err := authv3.NewAuthorizationClient(stranger.conn).Check(callCtx(t), new(authv3.CheckRequest)); err == nil {
		t.Error("a client without a certificate was answered")
	}

	pair := c.login(t, "admin", s.admin)
	e.wants(pair.GetAccessToken(), nil, "admin")
	e.wants(pair.GetAccessToken(), map[string]string{"roles": "admin,writer"}, "admin")
	e.wants(pair.GetAccessToken(), map[string]string{"roles": "writer"}, "ROLE_REQUIRED")
	e.wants(pair.GetAccessToken(), map[string]string{"audience": "billing"}, "AUDIENCE_MISMATCH")
	e.wants("", nil, "TOKEN_MISSING")
	e.wants("", map[string]string{"public": "true"}, "")

	wantOK(t, "the logout", c.logout(callCtx(t), pair))
	allowed := 5 // five calls so far, and the two calls below
	eventually(t, startTimeout, "refusing the token after the logout", func() error {
		_, err := e.ask(pair.GetAccessToken(), nil)
		if err == nil {
			allowed++ // the revocation is on its way
		}
		if errs.Outcome(err) != "TOKEN_REVOKED" {
			return fmt.Errorf("the answer is %v", err)
		}
		return nil
	})
	e.wants(pair.GetAccessToken(), map[string]string{"public": "true"}, "")
	e.wants(c.login(t, "admin", s.admin).GetAccessToken(), nil, "admin")

	_, metrics := e.page("https", "/metrics")
	for _, line := range []string{fmt.Sprintf(`watchword_ext_authz_requests_total{answer="allowed"} %d`, allowed), `watchword_ext_authz_requests_total{answer="denied"} 4`, `watchword_verifier_tokens_refused_total{reason="TOKEN_MISSING"} 1`, "watchword_verifier_ready 1", "watchword_ext_authz_undecided_total 0", "# TYPE watchword_verifier_ready gauge", "watchword_verifier_clock_set_total 0",
		`watchword_places_limit{bound="questions"} 4096`, `watchword_places_taken{bound="http_connections"} 1`, `watchword_places_refused_total{bound="grpc_connections"} 0`} {
		if !strings.Contains(metrics, "\n"+line+"\n") {
			t.Errorf("/metrics lacks %s:\n%s", line, metrics)
		}
	}
}

// Before the trust bundle has come, calls of guarded routes are denied as UNAVAILABLE, and the
// program is not ready. A signal then ends the program in order.
func TestExtAuthzWithoutAServer(t *testing.T) {
	_, e := extAuthz(t, insecure.NewCredentials(), "--addr", "127.0.0.1:1", "--plaintext")
	e.wants("x", nil, "BUNDLE_STALE")
	e.wants("", nil, "BUNDLE_STALE")
	e.wants("", map[string]string{"public": "true"}, "")
	if err := e.wantsHealth("http", healthv1.HealthCheckResponse_NOT_SERVING); err != nil {
		t.Error(err)
	}
	for _, wrong := range [][]string{
		{"--grpc-addr", "0.0.0.0:0"}, {"--http-addr", "nowhere"}, {"--tls-cert", "x"}, {"--client-ca", "x"}, {"--key-file", "x"}, {"--plaintext", "--ca-file", "x"},
	} {
		if r := run(t, extAuthzCommand(t, wrong...)); r.code != 2 || !strings.Contains(r.stderr, wrong[0]) {
			t.Errorf("%q: %v", wrong, r)
		}
	}
	page := repositoryFile(t, "docs/ext-authz.md")
	flags := regexp.MustCompile(`(?m)^ +(--[a-z-]+)`).FindAllStringSubmatch(run(t, extAuthzCommand(t, "--help")).stdout, -1)
	if len(flags) < 15 {
		t.Errorf("--help lists %q", flags)
	}
	for _, flag := range flags {
		if name := flag[1]; name != "--config" && name != "--version" && !strings.Contains(page, "`"+name+"`") {
			t.Errorf("docs/ext-authz.md says nothing about %s", name)
		}
	}
}
