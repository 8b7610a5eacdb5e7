package server_test

import (
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/server"
	"github.com/watchword-auth/watchword/internal/token"
)

func decode(t *testing.T, text string) (document map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &document); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return document
}

// The JWKS has the keys that GetKeySet returns, under the names of RFC 7517, and no private
// member.
func TestJWKS(t *testing.T) {
	members := map[string][]string{
		"EdDSA": {"alg", "crv", "kid", "kty", "use", "x"}, "ES256": {"alg", "crv", "kid", "kty", "use", "x", "y"},
		"RS256": {"alg", "e", "kid", "kty", "n", "use"},
	}
	for alg, want := range members {
		t.Run(alg, func(t *testing.T) {
			h := start(t, func(c *server.Config) { c.SigningAlg, c.JWKSMaxAge = alg, 90*time.Second })
			resp, body := h.get(t, http.MethodGet, "/.well-known/jwks.json")
			if resp.StatusCode != http.StatusOK || resp.Header.Get("Cache-Control") != "public, max-age=90" ||
				!strings.HasPrefix(resp.Header.Get("Content-Type"), "application/jwk-set+json") {
				t.Errorf("%s %v", resp.Status, resp.Header)
			}
			document := decode(t, body)
			keys, _ := document["keys"].([]any)
			set, err := h.trust.GetKeySet(t.Context(), &watchwordv1.GetKeySetRequest{})
			if err != nil || len(keys) != 2 || len(set.GetKeys()) != 2 || len(document) != 1 { // of the two keys, one signs now and the other signs next
				t.Fatalf("%v %v %v", document, set, err)
			}
			for i, key := range keys {
				k := key.(map[string]any)
				if got := slices.Sorted(maps.Keys(k)); !slices.Equal(got, want) {
					t.Errorf("members %q, want %q", got, want)
				}
				g := set.GetKeys()[i]
				rpcs := map[string]any{}
				for name, value := range map[string]string{
					"kty": g.GetKty(), "kid": g.GetKid(), "use": g.GetUse(), "alg": g.GetAlg(), "crv": g.GetCrv(),
					"x": g.GetX(), "y": g.GetY(), "n": g.GetN(), "e": g.GetE(),
				} {
					if value != "" {
						rpcs[name] = value
					}
				}
				if !maps.Equal(k, rpcs) {
					t.Errorf("the JWKS has %v, GetKeySet %v", k, rpcs)
				}
				public, err := token.FromJWK(g)
				if err != nil || public.KID() != k["kid"] || k["use"] != "sig" || k["alg"] != alg {
					t.Errorf("%v: %v", k, err)
				}
			}
			// The keys of the JWKS verify the tokens that the server mints.
			find := func(kid string) *token.PublicKey {
				for _, k := range set.GetKeys() {
					if k.GetKid() == kid {
						public, _ := token.FromJWK(k)
						return public
					}
				}
				return nil
			}
			claims, err := token.Parse(h.admin.GetAccessToken(), find)
			if err != nil || claims.Issuer != set.GetIssuer() || claims.Subject != h.admin.id {
				t.Errorf("%+v %v", claims, err)
			}
		})
	}
}

// The metadata is at the paths of RFC 8414 and of OpenID Connect Discovery, has exactly these
// members, and each URL in the metadata can be fetched.
func TestMetadata(t *testing.T) {
	for name, issuer := range map[string]string{
		"by default": "", "an issuer of its own": "https://auth.example.internal", "with a port": "https://auth.example.internal:8443",
		"with a path": "https://example.internal/auth", "with a long path": "https://example.internal/a%20b/{c}/d", "with a slash at the end": "https://auth.example.internal/",
		"with the path of the metadata": "https://example.internal/.well-known/openid-configuration",
	} {
		t.Run(name, func(t *testing.T) {
			h := start(t, func(c *server.Config) { c.Issuer = issuer })
			base := issuer
			if base == "" {
				base = "http://" + h.server.HTTPAddr()
			}
			path, origin := "", base
			if i := strings.Index(base[len("https://"):], "/"); i >= 0 {
				path, origin = base[len("https://")+i:], base[:len("https://")+i]
			}
			path = strings.TrimSuffix(path, "/")
			// No member names an endpoint that the server does not have: a client would call the
			// endpoint.
			want := map[string]any{
				"issuer": base, "jwks_uri": strings.TrimSuffix(base, "/") + "/.well-known/jwks.json",
				"response_types_supported": []any{}, "grant_types_supported": []any{}, "subject_types_supported": []any{"public"},
				"id_token_signing_alg_values_supported": []any{"EdDSA", "ES256", "RS256"},
			}
			var document map[string]any
			for _, name := range []string{"/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"} {
				for _, place := range []string{name + path, path + name, name} {
					resp, body := h.get(t, http.MethodGet, place)
					if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
						t.Fatalf("%s: %s %v", place, resp.Status, resp.Header)
					}
					if document = decode(t, body); !reflect.DeepEqual(document, want) {
						t.Errorf("%s: %v, want %v", place, document, want)
					}
				}
			}
			where, ok := strings.CutPrefix(document["jwks_uri"].(string), origin)
			if !ok || strings.HasPrefix(where, "//") {
				t.Errorf("jwks_uri is %v", document["jwks_uri"])
			}
			// A proxy in front may remove the path of the issuer.
			for _, where := range []string{where, strings.TrimPrefix(where, path)} {
				if resp, body := h.get(t, http.MethodGet, where); resp.StatusCode != http.StatusOK || !strings.Contains(body, `"keys"`) {
					t.Errorf("jwks_uri %v at %s: %s", document["jwks_uri"], where, resp.Status)
				}
			}
			wants(t, "an access token", h.verify(t, h.admin.GetAccessToken()), "ok")
		})
	}
}

// docs/verify.md explains every member of the metadata, and no other one.
func TestMetadataPage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "verify.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n## Metadata\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var explained []string
	for line := range strings.Lines(section) {
		if cells := strings.Split(line, " | "); strings.HasPrefix(line, "| `") {
			for name := range strings.SplitSeq(strings.TrimPrefix(cells[0], "| "), ", ") {
				explained = append(explained, strings.Trim(name, "`"))
			}
		}
	}
	_, body := shared(t).get(t, http.MethodGet, "/.well-known/openid-configuration")
	slices.Sort(explained)
	if members := slices.Sorted(maps.Keys(decode(t, body))); !slices.Equal(explained, members) {
		t.Errorf("the page explains %q, and the server publishes %q", explained, members)
	}
}

func TestHTTP(t *testing.T) {
	h := shared(t)
	wants(t, "a call for the counters", h.verify(t, "garbage"), "TOKEN_INVALID")
	known := []string{"/.well-known/jwks.json", "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration", "/healthz", "/readyz", "/metrics"}
	for _, path := range known {
		if resp, body := h.get(t, http.MethodGet, path); resp.StatusCode != http.StatusOK || body == "" {
			t.Errorf("%s: %s", path, resp.Status)
		}
		if resp, body := h.get(t, http.MethodHead, path); resp.StatusCode != http.StatusOK || body != "" {
			t.Errorf("HEAD %s: %s", path, resp.Status)
		}
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch, "NONSENSE"} {
			if resp, _ := h.get(t, method, path); resp.StatusCode != http.StatusMethodNotAllowed || !strings.Contains(resp.Header.Get("Allow"), "GET") {
				t.Errorf("%s %s: %s, allowed %q", method, path, resp.Status, resp.Header.Get("Allow"))
			}
		}
	}
	for _, path := range []string{
		"/", "/nothing", "/healthz/", "/metrics/x", "/.well-known", "/.well-known/openid-configuration/", "/jwks.json", "/debug/pprof/",
		"/debug/vars", "/watchword.v1.AuthService/Login",
	} {
		if resp, _ := h.get(t, http.MethodGet, path); resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	_, metrics := h.get(t, http.MethodGet, "/metrics")
	for _, want := range []string{
		`watchword_calls_total{method="Verify",outcome="TOKEN_INVALID",service="AuthService"}`,
		`watchword_call_duration_seconds_bucket{method="Verify",`, "go_goroutines", "process_open_fds",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	for _, complaint := range leaked(metrics) {
		t.Errorf("the metrics hold %s", complaint)
	}
	for path, want := range map[string]string{"/healthz": "", "/readyz": ""} {
		if resp, body := h.get(t, http.MethodGet, path); len(body) > 100 || resp.Header.Get("Set-Cookie") != want {
			t.Errorf("%s says %q", path, body)
		}
	}
}

// Health and reflection need no token.
func TestHealth(t *testing.T) {
	h := shared(t)
	for _, ctx := range []string{"", "garbage"} {
		resp, err := healthv1.NewHealthClient(h.conn).Check(bearing(t.Context(), ctx), &healthv1.HealthCheckRequest{})
		if err != nil || resp.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("%v %v", resp, err)
		}
	}
}

// A server that stops ends the streams of its watchers, and leaves no goroutine running.
func TestStopWithWatchers(t *testing.T) {
	const drain = time.Minute
	h, err := launch(t.TempDir(), func(c *server.Config) { c.DrainTimeout = drain })
	if err != nil {
		t.Fatal(err)
	}
	// The stop closes h.conn before anything else, so the watchers use a separate connection.
	var watchers []watchwordv1.TrustService_WatchBundleClient
	for range 20 {
		w, err := h.trust.WatchBundle(t.Context(), &watchwordv1.WatchBundleRequest{Resume: []byte("nonsense")})
		if err != nil {
			t.Fatal(err)
		}
		first, err := w.Recv()
		if err != nil || first.GetSnapshotChunk() == nil {
			t.Fatalf("%v %v", first, err)
		}
		watchers = append(watchers, w)
	}
	began := time.Now()
	if err := h.stopServing(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > drain/2 {
		t.Errorf("stopping took %v, which is the drain timeout at work", took)
	}
	for _, w := range watchers {
		for {
			if _, err := w.Recv(); err != nil {
				wants(t, "the end of a stream", outcome(err), "Unavailable")
				break
			}
		}
	}
	if err := h.stop(); err != nil {
		t.Error(err)
	}
}
