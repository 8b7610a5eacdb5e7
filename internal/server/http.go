package server

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/telemetry"
	"github.com/watchword-auth/watchword/internal/token"
)

const keySetPath = "/.well-known/jwks.json"

// metadataPaths lists the paths of the metadata document: the path of RFC 8414, and the path of
// OpenID Connect Discovery 1.0, since many clients ask for the latter alone (RFC 8414, section
// 5).
var metadataPaths = []string{"/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"}

// httpServer serves the key set and metadata for verifiers in other languages, health
// for orchestrators, and metrics for Prometheus. All answers are public and all requests
// only read, so the HTTP server needs no authentication.
func (s *Server) httpServer(issuer string) *http.Server {
	mux := http.NewServeMux()
	for path, handler := range s.published(issuer) {
		mux.HandleFunc("GET "+path, handler)
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.readiness.serveReady)
	mux.Handle("GET /metrics", boundScrapes(telemetry.Handler(s.parts())))
	// HTTP/1.1 alone: with HTTP/2 each connection could hold hundreds of requests.
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	var tlsConfig *tls.Config
	if s.tls != nil {
		tlsConfig = s.tls.config("http/1.1")
	}
	return &http.Server{
		Handler: mux, TLSConfig: tlsConfig, Protocols: protocols,
		// The time bounds keep a slow client from holding a connection.
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: maxHeaders,
		// ErrorLog logs at level debug, since any client can cause errors of the HTTP server,
		// such as by a broken TLS handshake.
		ErrorLog: slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
}

// published returns the handlers of the key set and of the metadata, by path.
//
// In front of the path of the issuer stands the text /.well-known/… by RFC 8414, section 3.1, and
// behind the path by OpenID Connect Discovery 1.0, section 4. Clients look for either name of
// the document in either place. The jwks_uri of the metadata is below the path of the issuer. A
// proxy in front of the server may remove the path, so the server answers with and without the
// path.
func (s *Server) published(issuer string) map[string]http.HandlerFunc {
	var path string
	if u, err := url.Parse(issuer); err == nil {
		path = strings.TrimSuffix(u.EscapedPath(), "/")
	}
	metadata := s.metadata(issuer)
	handlers := map[string]http.HandlerFunc{keySetPath: s.serveJWKS, path + keySetPath: s.serveJWKS}
	for _, name := range metadataPaths {
		for _, place := range []string{name, name + path, path + name} {
			handlers[place] = metadata
		}
	}
	return handlers
}

// boundScrapes serves at most maxScrapes requests for /metrics at a time; other requests wait.
// The handler writes to memory, so a client that reads slowly leaves its turn to the next
// client.
func boundScrapes(handler http.Handler) http.Handler {
	const maxScrapes = 2 // a request for /metrics takes a few milliseconds of a processor core
	turns := make(chan struct{}, maxScrapes)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page := buffered{header: w.Header(), code: http.StatusOK}
		select {
		case turns <- struct{}{}:
			func() {
				defer func() { <-turns }()
				handler.ServeHTTP(&page, r)
			}()
		case <-r.Context().Done():
			return
		}
		w.WriteHeader(page.code)
		_, _ = w.Write(page.body.Bytes()) // fails only if the client has left
	})
}

// buffered is a ResponseWriter that keeps the response in memory.
type buffered struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (b *buffered) Header() http.Header         { return b.header }
func (b *buffered) WriteHeader(code int)        { b.code = code }
func (b *buffered) Write(p []byte) (int, error) { return b.body.Write(p) }

// serveHTTP serves until the HTTP server is shut down. ServeTLS gets no file names, since
// TLSConfig gives the certificate.
func (s *Server) serveHTTP() error {
	serve := s.http.Serve
	if s.http.TLSConfig != nil {
		serve = func(l net.Listener) error { return s.http.ServeTLS(l, "", "") }
	}
	if err := serve(s.httpLis); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serveJWKS serves the key set (RFC 7517). The header Cache-Control has max-age =
// --jwks-max-age: a new key signs only after the key has been published for --jwks-max-age.
func (s *Server) serveJWKS(w http.ResponseWriter, _ *http.Request) {
	keys := []*watchwordv1.JsonWebKey{} // the JSON names are those of RFC 7517
	for _, key := range s.feed.Hub().TrustState().GetKeys() {
		keys = append(keys, key.GetKey())
	}
	w.Header().Set("Cache-Control", fmt.Sprintf("public, max-age=%d", int(s.cfg.JWKSMaxAge.Seconds())))
	writeJSON(w, "application/jwk-set+json", map[string]any{"keys": keys})
}

// metadata serves the authorization server metadata of RFC 8414. Watchword has no OAuth
// clients, so the document lists the key set as the only endpoint, and grants as an empty
// list. The document has two members of OpenID Connect Discovery 1.0 for the sake of clients:
// go-oidc and oauth2-proxy accept RS256 alone without the list of algorithms, and Authlib
// demands RS256 in the list. The list of algorithms has every algorithm that `key rotate --alg`
// may choose, so the list stays right for a client that reads the metadata once.
func (s *Server) metadata(issuer string) http.HandlerFunc {
	document := map[string]any{
		"issuer":                   issuer,
		"jwks_uri":                 strings.TrimSuffix(issuer, "/") + keySetPath,
		"response_types_supported": []string{},
		"grant_types_supported":    []string{},

		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []token.Algorithm{token.EdDSA, token.ES256, token.RS256},
	}
	return func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, "application/json", document) }
}

// writeJSON answers with v as JSON.
func writeJSON(w http.ResponseWriter, contentType string, v any) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_ = json.NewEncoder(w).Encode(v) // fails only if the client has left
}
