package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/store"
)

const wellKnown = "/.well-known/oauth-authorization-server"

// httpServer serves what verifiers in other languages, orchestrators and
// Prometheus ask for. Nothing of it is secret, and nothing changes anything.
func (s *Server) httpServer(issuer string, m *metrics, tlsConfig *tls.Config) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/jwks.json", s.serveJWKS)
	metadata := s.metadata(issuer)
	mux.HandleFunc("GET "+wellKnown, metadata)
	if u, err := url.Parse(issuer); err == nil && u.Path != "" && u.Path != "/" {
		// Between host and path of the issuer (RFC 8414, section 3.1).
		mux.HandleFunc("GET "+wellKnown+u.EscapedPath(), metadata)
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.serveReady)
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	return &http.Server{
		Handler: mux, TLSConfig: tlsConfig,
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: maxHeaders,
		ErrorLog: slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
}

func (s *Server) serveHTTP() error {
	err := error(nil)
	if s.http.TLSConfig != nil {
		err = s.http.ServeTLS(s.httpLis, "", "")
	} else {
		err = s.http.Serve(s.httpLis)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (s *Server) serveJWKS(w http.ResponseWriter, _ *http.Request) {
	keys := []*watchwordv1.JsonWebKey{} // whose JSON names are those of RFC 7517
	for _, key := range s.feed.Hub().TrustState().GetKeys() {
		keys = append(keys, key.GetKey())
	}
	w.Header().Set("Cache-Control", fmt.Sprintf("public, max-age=%d", int(s.cfg.JWKSMaxAge.Seconds())))
	writeJSON(w, "application/jwk-set+json", map[string]any{"keys": keys})
}

// metadata serves what RFC 8414 asks for. There are no OAuth clients, and so no
// grant and no endpoint but the keys.
func (s *Server) metadata(issuer string) http.HandlerFunc {
	document := map[string]any{
		"issuer":                   issuer,
		"jwks_uri":                 strings.TrimSuffix(issuer, "/") + "/.well-known/jwks.json",
		"response_types_supported": []string{},
		"grant_types_supported":    []string{},
	}
	return func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, "application/json", document) }
}

// serveReady says whether calls can be answered: not while draining, and not
// without the database.
func (s *Server) serveReady(w http.ResponseWriter, r *http.Request) {
	if s.drain.draining() {
		http.Error(w, "stopping", http.StatusServiceUnavailable)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	defer cancel()
	err := s.store.Read(ctx, func(tx *store.Tx) error {
		_, err := tx.Head()
		return err
	})
	if err != nil {
		http.Error(w, "database unavailable", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

func writeJSON(w http.ResponseWriter, contentType string, v any) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_ = json.NewEncoder(w).Encode(v) // fails only where the client has gone
}
