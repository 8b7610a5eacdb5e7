package e2e

import (
	"encoding/pem"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn/authntest"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// A service signs in with a token of an issuer that the server discovers over TLS, with the CA
// of the issuer. The exchanges go on while the issuer is away. What an operator changes at the
// command line, on the database, counts from the next call on, and takes the tokens back.
func TestExchangeWithADiscoveredIssuer(t *testing.T) {
	const issuer = "https://auth.test"
	var platform *authntest.ForeignIssuer
	web := httptest.NewTLSServer(nil)
	defer web.Close()
	platform = authntest.NewForeignIssuer(web.URL)
	web.Config.Handler = platform

	dir := t.TempDir()
	ca := filepath.Join(dir, "issuer-ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serve(t, dir, "--issuer", issuer, "--client-id", "web")
	operator := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(watchword(t), append(args, "--datastore-uri", database(dir))...)
		cmd.Env = environment()
		r := run(t, cmd)
		wantExit(t, 0, r)
		return r.stdout
	}
	client := dial(t, s.grpcAddr)
	exchange := func() (*watchwordv1.TokenPair, error) {
		assertion := noteSecret(platform.Assertion("job", issuer, nil))
		resp, err := client.ExchangeToken(callCtx(t), &watchwordv1.ExchangeTokenRequest{SubjectToken: assertion})
		return noteTokens(&watchwordv1.TokenPair{AccessToken: resp.GetAccessToken()}), err
	}

	_, err := exchange()
	wantRefusal(t, "before the issuer is trusted", err, "ASSERTION_INVALID")
	operator("issuer", "add", "hidden", "--issuer", web.URL, "--jwks-uri", strings.Replace(web.URL, "127.0.0.1", "localhost", 1), "--issuer-ca-file", ca)
	_, err = exchange()
	wantRefusal(t, "keys at a name of a loopback address, without --allow-private", err, "ISSUER_UNAVAILABLE")
	operator("issuer", "remove", "hidden")
	operator("issuer", "add", "ci", "--issuer", web.URL, "--discovery", "--issuer-ca-file", ca, "--allow-private")
	_, err = exchange()
	wantRefusal(t, "before the binding", err, "ASSERTION_UNBOUND")
	operator("service", "create", "job", "--role", "writer")
	operator("service", "bind", "job", "--issuer", "ci", "--subject", "job")
	pair, err := exchange()
	wantOK(t, "bound", err)
	p, err := client.verify(callCtx(t), pair)
	wantOK(t, "verify", err)
	if p.GetUsername() != "job" || p.GetKind() != watchwordv1.UserKind_USER_KIND_SERVICE || p.GetSessionId() != "" || strings.Join(p.GetRoles(), " ") != "writer" {
		t.Errorf("the principal is %v", p)
	}

	if got := clientOf(t, pair.GetAccessToken()); got != p.GetSubject() {
		t.Errorf("client_id is %v, and the service account is %s", got, p.GetSubject())
	}

	web.Close()
	_, err = exchange()
	wantOK(t, "while the issuer is away", err)
	known := platform
	platform = authntest.NewForeignIssuer(web.URL) // the issuer has rotated, and is away
	_, err = exchange()
	wantRefusal(t, "a key that cannot be fetched", err, "ISSUER_UNAVAILABLE")
	wait := time.Duration(0)
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			wait = info.GetRetryDelay().AsDuration()
		}
	}
	if wait <= 0 || wait > 11*time.Second {
		t.Errorf("the client is told to wait for %v", wait)
	}
	platform = known
	operator("issuer", "remove", "ci")
	_, err = exchange()
	wantRefusal(t, "after the issuer was removed", err, "ASSERTION_INVALID")
	eventually(t, propagation, "the token of the removed issuer is revoked", func() error {
		_, err := client.verify(callCtx(t), pair)
		return checkRefusal(err, "TOKEN_REVOKED")
	})
	if record := operator("audit", "--type", "token.exchanged"); !strings.Contains(record, "issuer ci, subject job") {
		t.Errorf("the record has\n%s", record)
	}
}
