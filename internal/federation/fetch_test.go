package federation

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

// ES256 keys of an issuer in tests.
var testKeys = [3]*ecdsa.PrivateKey{}

// jwks returns a key set with the first n keys of the test, with the kids k0, k1 and so on.
func jwks(t *testing.T, n int) []byte { return jwksOf(t, 0, n) }

// jwksOf is like jwks, and leaves the keys before `from` out.
func jwksOf(t *testing.T, from, n int) []byte {
	t.Helper()
	var keys []members
	for i := from; i < n; i++ {
		if testKeys[i] == nil {
			testKeys[i] = ecKey(t, elliptic.P256())
		}
		keys = append(keys, jwkOf(t, &testKeys[i].PublicKey).with(members{"kid": fmt.Sprint("k", i), "alg": "ES256"}))
	}
	return setOf(t, keys...)
}

// web is an issuer at a real TLS server. The answer of the server for each path can be
// replaced.
type web struct {
	*httptest.Server
	asked atomic.Int64
	pages map[string]http.HandlerFunc
}

func newWeb(t *testing.T) *web {
	t.Helper()
	w := &web{pages: map[string]http.HandlerFunc{}}
	w.Server = httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.asked.Add(1)
		if page := w.pages[r.URL.Path]; page != nil {
			page(rw, r)
			return
		}
		http.NotFound(rw, r)
	}))
	w.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	t.Cleanup(w.Close)
	set := jwks(t, 2)
	w.page("/jwks", func() any { return json.RawMessage(set) })
	return w
}

func (w *web) page(path string, content func() any) {
	w.pages[path] = func(rw http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(rw).Encode(content()) }
}

// row returns a row for the issuer, with the CA of the server.
func (w *web) row(uri string) *store.Issuer {
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.Certificate().Raw}))
	return &store.Issuer{Name: "web", Issuer: w.URL, JwksURI: uri, Discovery: uri == "", CAPEM: ca, AllowPrivate: true, MaxLifetime: time.Hour}
}

func fetchBy(t *testing.T, row *store.Issuer) (*keySet, error) {
	t.Helper()
	f, err := newFetcher(row, dialer(row.AllowPrivate))
	if err != nil {
		return nil, err
	}
	return f.fetch(t.Context())
}

// Each source of keys gives the keys, over real TLS, and each answer that is wrong or hostile
// gives an error that says why.
func TestFetch(t *testing.T) {
	w := newWeb(t)
	other := newWeb(t)
	oidc, rfc8414 := "/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"
	metadata := func(issuer, uri string) func() any {
		return func() any { return map[string]string{"issuer": issuer, "jwks_uri": uri} }
	}
	w.page("/oidc"+oidc, metadata(w.URL+"/oidc", w.URL+"/jwks"))
	w.page("/slash"+oidc, metadata(w.URL+"/slash/", w.URL+"/jwks"))
	w.page(rfc8414+"/oauth", metadata(w.URL+"/oauth", w.URL+"/jwks"))
	w.page("/elsewhere"+oidc, metadata(w.URL+"/elsewhere", other.URL+"/jwks"))
	w.page("/liar"+oidc, metadata(w.URL+"/liar/", w.URL+"/jwks"))
	w.page("/case"+oidc, func() any { return map[string]string{"ISSUER": w.URL + "/case", "jwks_uri": w.URL + "/jwks"} })
	w.page("/plain"+oidc, metadata(w.URL+"/plain", "http://"+w.Listener.Addr().String()+"/jwks"))
	w.page("/none"+oidc, metadata(w.URL+"/none", ""))
	w.pages["/redirect"] = http.RedirectHandler(w.URL+"/jwks", http.StatusFound).ServeHTTP
	w.pages["/away"] = http.RedirectHandler(other.URL+"/jwks", http.StatusMovedPermanently).ServeHTTP
	var sent atomic.Int64
	w.pages["/huge"] = func(rw http.ResponseWriter, _ *http.Request) {
		for range 64 << 10 { // 64 MiB, of which the connection takes some MiB before the server notices
			n, err := fmt.Fprint(rw, strings.Repeat(" ", 1024))
			if sent.Add(int64(n)); err != nil {
				break
			}
		}
	}
	w.pages["/headers"] = func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("X-Long", strings.Repeat("x", maxHeader))
		_, _ = rw.Write(jwks(t, 1))
	}
	w.page("/secret", func() any {
		return map[string]any{"keys": []any{map[string]string{"kty": "oct", "k": "AAAA", "kid": "a"}}}
	})
	at := func(path string) *store.Issuer {
		row := w.row("")
		row.Issuer += path
		return row
	}
	edit := func(row *store.Issuer, change func(*store.Issuer)) *store.Issuer {
		change(row)
		return row
	}
	for _, c := range []struct {
		name string
		row  *store.Issuer
		want string // a part of the error; empty: Fetch returns the keys
	}{
		{"a URL", w.row(w.URL + "/jwks"), ""},
		{"OpenID Connect discovery", at("/oidc"), ""},
		{"an issuer with a slash at the end", at("/slash/"), ""},
		{"RFC 8414", at("/oauth"), ""},
		{"keys at another server", edit(at("/elsewhere"), func(r *store.Issuer) { r.CAPEM += other.row("").CAPEM }), ""},

		{"metadata of another issuer", at("/liar"), "name another issuer"},
		{"metadata with another name", at("/case"), "name another issuer"},
		{"keys without TLS", at("/plain"), "must be an https URL"},
		{"metadata without keys", at("/none"), "must be an https URL"},
		{"no metadata", at("/nothing"), "status 404"},
		{"an issuer that is no URL", edit(w.row(""), func(r *store.Issuer) { r.Issuer = "kubernetes/serviceaccount" }), "must be an https URL"},
		{"a redirect", w.row(w.URL + "/redirect"), "status 302"},
		{"a redirect to another host", w.row(w.URL + "/away"), "status 301"},
		{"a huge answer", w.row(w.URL + "/huge"), "longer than 65536 bytes"},
		{"huge headers", w.row(w.URL + "/headers"), "headers exceeded"},
		{"a shared secret", w.row(w.URL + "/secret"), "private or secret"},
		{"the CAs of the system", edit(w.row(w.URL+"/jwks"), func(r *store.Issuer) { r.CAPEM = "" }), "certificate"},
		{"the CA of another server", edit(w.row(w.URL+"/jwks"), func(r *store.Issuer) { r.CAPEM = "no PEM" }), "no certificate in PEM"},
		{"a loopback address", edit(w.row(w.URL+"/jwks"), func(r *store.Issuer) { r.AllowPrivate = false }), "allow_private"},
		{"a name of a loopback address", edit(w.row(strings.Replace(w.URL, "127.0.0.1", "localhost", 1)), func(r *store.Issuer) { r.AllowPrivate = false }), "allow_private"},
		{"a loopback address in metadata", edit(at("/oidc"), func(r *store.Issuer) { r.AllowPrivate = false }), "allow_private"},
	} {
		set, err := fetchBy(t, c.row)
		switch {
		case c.want == "" && (err != nil || strings.Join(set.kids(), " ") != "k0 k1"):
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if n := sent.Load(); n > 32<<20 {
		t.Errorf("%d bytes of the huge answer were taken", n)
	}
	if other.asked.Load() != 1 {
		t.Errorf("the other server was asked %d times: a redirect was followed", other.asked.Load())
	}
}

// A proxy of the environment is not used: the proxy would dial, and the check of the address
// would see the proxy alone.
func TestFetchUsesNoProxy(t *testing.T) {
	w := newWeb(t)
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	t.Setenv("https_proxy", "http://127.0.0.1:1")
	if _, err := fetchBy(t, w.row(w.URL+"/jwks")); err != nil {
		t.Error(err)
	}
	f, err := newFetcher(w.row(w.URL+"/jwks"), dialer(true))
	if err != nil || f.transport.Proxy != nil {
		t.Error("the transport has a proxy") // net/http never uses the environment's for loopback
	}
}

// An issuer that sends its answer byte by byte, or never, holds a fetch for the stated time
// alone. The test uses the fake clock of synctest, so the server is connected by pipes in
// memory.
func TestASlowIssuer(t *testing.T) {
	inBubble(t, func(t *testing.T, p *pipes) {
		p.handler.Store(func(rw http.ResponseWriter, r *http.Request) {
			for {
				if _, err := fmt.Fprint(rw, " "); err != nil {
					return
				}
				_ = http.NewResponseController(rw).Flush()
				select {
				case <-time.After(time.Second):
				case <-r.Context().Done():
					return
				}
			}
		})
		f, err := newFetcher(p.row(), p.dial)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := f.fetch(context.Background()); err == nil || time.Since(began) != fetchTime {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// Only addresses of the public Internet are dialled without allow_private.
func TestPublicAddresses(t *testing.T) {
	for _, text := range []string{"8.8.8.8", "192.0.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"} {
		if !isPublic(netip.MustParseAddr(text)) {
			t.Errorf("%s is refused", text)
		}
	}
	for _, text := range []string{
		"127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
		"169.254.169.254", "100.64.0.1", "100.127.255.255", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.19.255.255",
		"198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a00:1", "64:ff9b::7f00:1",
		"64:ff9b:1::808:808", "fc00::1", "fd12:3456::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1",
		"2001:db8::1", "2001::1", "2002:7f00:1::1", "2002:a00:1::", "3fff::1", "4000::1",
	} {
		if isPublic(netip.MustParseAddr(text)) {
			t.Errorf("%s counts as public", text)
		}
		// The dialer checks each address before it sends anything.
		addr := netip.MustParseAddr(text)
		if _, err := dialer(false)(t.Context(), "tcp", net.JoinHostPort(addr.WithZone("").String(), "443")); err == nil || !strings.Contains(err.Error(), "allow_private") {
			t.Errorf("dialling %s: %v", text, err)
		}
	}
}
