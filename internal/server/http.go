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
)

const (
	wellKnown  = "/.well-known/oauth-authorization-server"
	keySetPath = "/.well-known/jwks.json"
)

// httpServer serves the key set and metadata for verifiers in other languages, health
// for orchestrators, and metrics for Prometheus. All answers are public and all requests
// only read, so the HTTP server needs no authentication.
func (s *Server) httpServer(issuer string) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+keySetPath, s.serveJWKS)
	metadata := s.metadata(issuer)
	mux.HandleFunc("GET "+wellKnown, metadata)
	if u, err := url.Parse(issuer); err == nil && u.Path != "" && u.Path != "/" {
		// By RFC 8414, section 3.1, the text /.well-known/… stands between the host and the
		// path of the issuer. The jwks_uri of the metadata is below the path of the issuer. A
		// proxy in front of the server may remove the path, so the server answers with and
		// without the path.
		mux.HandleFunc("GET "+wellKnown+u.EscapedPath(), metadata)
		mux.HandleFunc("GET "+u.EscapedPath()+keySetPath, s.serveJWKS)
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

// boundScrapes serves at most maxScrapes requests for /metrics at a time; other requests wait.
// The handler writes to memory, so a client that reads slowly leaves its turn to the next
// client.
func boundScrapes(handler http.Handler) http.Handler {
	const maxScrapes = 2 // a request takes a few milliseconds of a core
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
// list.
func (s *Server) metadata(issuer string) http.HandlerFunc {
	document := map[string]any{
		"issuer":                   issuer,
		"jwks_uri":                 strings.TrimSuffix(issuer, "/") + keySetPath,
		"response_types_supported": []string{},
		"grant_types_supported":    []string{},
	}
	return func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, "application/json", document) }
}

// writeJSON answers with v as JSON.
func writeJSON(w http.ResponseWriter, contentType string, v any) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_ = json.NewEncoder(w).Encode(v) // fails only if the client has left
}
