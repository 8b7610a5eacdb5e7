package e2e

import (
	"bytes"
	"crypto/x509"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"google.golang.org/grpc/credentials"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// names returns the names that a pattern with one group finds in a text.
func names(text, pattern string) []string {
	found := map[string]bool{}
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		found[m[1]] = true
	}
	return slices.Sorted(maps.Keys(found))
}

// TestEveryMetricIsDocumented scrapes the real server. docs/monitoring.md has a row for each
// series of the server, and no other. Prometheus' own linter finds nothing to complain about.
func TestEveryMetricIsDocumented(t *testing.T) {
	dir := t.TempDir()
	ca := newAuthority(t, dir, "ca")
	cert, certFile, keyFile := ca.issue(t, "server", x509.ExtKeyUsageServerAuth)
	s := serve(t, t.TempDir(), "--tls-cert", certFile, "--tls-key", keyFile)
	c := dialWith(t, s.grpcAddr, credentials.NewTLS(ca.trusting()))
	if _, err := c.ListUsers(callCtx(t), &watchwordv1.ListUsersRequest{}); err == nil { // makes a call whose token is refused
		t.Error("ListUsers without a token succeeded")
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: ca.trusting(), DisableKeepAlives: true}, Timeout: runTimeout}
	resp, err := client.Get("https://" + s.httpAddr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	document := repositoryFile(t, "docs/monitoring.md")
	scraped, documented := names(string(page), `(?m)^# TYPE (watchword_\w+) `), names(document, "(?m)^\\| `(watchword_\\w+)` \\|")
	if !slices.Equal(scraped, documented) {
		t.Errorf("scraped:\n%v\nin docs/monitoring.md:\n%v", scraped, documented)
	}
	for _, name := range names(document, `(watchword_\w+)`) {
		if !slices.Contains(documented, name) {
			t.Errorf("docs/monitoring.md uses %s, and has no row for it", name)
		}
	}
	problems, err := promlint.New(bytes.NewReader(page)).Lint()
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if err != nil {
		t.Error(err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if expiry := s.metric(t, "watchword_certificate_expiry_timestamp_seconds"); int64(expiry) != leaf.NotAfter.Unix() {
		t.Errorf("the certificate expires at %v, and the metric says %d", leaf.NotAfter, expiry)
	}
	if lines := strings.Count(string(page), "\n"); lines > 550 { // each method of the API has three series
		t.Errorf("the page has %d lines", lines)
	} else {
		t.Logf("the page has %d lines", lines)
	}
}
