package extauthz

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/reload"
	"github.com/watchword-auth/watchword/internal/version"
)

const (
	// maxMessage is the longest question, in bytes. Envoy sends 60 KiB of headers by default, and the
	// body of a request only with the setting with_request_body.
	maxMessage = 256 << 10
	// maxStreams is the number of questions at a time on one connection. Further questions wait in
	// Envoy.
	maxStreams = 1000
	// maxConnections bounds the connections to the gRPC address, and maxHTTP the connections to the
	// HTTP address. Without a bound, one client could take all open files of the process.
	maxConnections, maxHTTP = 1024, 128
	// stopTime bounds the wait for questions in flight. A question takes microseconds.
	stopTime = 5 * time.Second
)

// server answers Envoy's questions, and tells by its health service whether it is ready to answer.
type server struct {
	healthv1.UnimplementedHealthServer
	logger    *slog.Logger
	verifier  *authn.Verifier
	checker   *checker
	grpc      *grpc.Server
	questions *questions
	http      *http.Server
	stopping  atomic.Bool
}

// serve runs until ctx ends, or until the Watchword server refuses the trust bundle for a reason
// that an operator has to mend.
func serve(ctx context.Context, c Config, logger *slog.Logger) error {
	files := reload.NewSet(logger)
	forGRPC, forHTTP, err := c.tls(files)
	if err != nil {
		return err
	}
	conn, release, err := c.dial(logger)
	if err != nil {
		return err
	}
	defer release()
	defer conn.Close()
	options := []authn.Option{
		authn.WithAudience(c.Audience...), authn.WithoutWaiting(), authn.WithLogger(logger),
		authn.WithName(name), authn.WithVersion(version.String()),
	}
	if c.SnapshotFile != "" {
		options = append(options, authn.WithSnapshotFile(c.SnapshotFile))
	}
	verifier, err := authn.NewVerifier(ctx, conn, options...)
	if err != nil {
		return err
	}
	defer verifier.Close()
	grpcListener, httpListener, err := c.listen(ctx)
	if err != nil {
		return err
	}
	s := &server{logger: logger, verifier: verifier, questions: newQuestions(), checker: newChecker(verifier, logger)}
	s.grpc, s.http = s.grpcServer(forGRPC), s.httpServer(forHTTP)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go files.Run(ctx) // serve does not wait for Run's end: Run holds nothing that has to be closed
	return s.run(ctx, bounded(grpcListener, places(maxConnections)), bounded(httpListener, places(maxHTTP)))
}

// run serves on both addresses until ctx ends, and stops in order.
func (s *server) run(ctx context.Context, forGRPC, forHTTP net.Listener) error {
	secure := s.http.TLSConfig != nil
	failed := make(chan error, 3) // has room for one error of each goroutine below
	go func() { failed <- s.grpc.Serve(forGRPC) }()
	go func() {
		if secure {
			failed <- s.http.ServeTLS(forHTTP, "", "")
		} else {
			failed <- s.http.Serve(forHTTP)
		}
	}()
	addresses := []any{"grpc", forGRPC.Addr().String(), "http", forHTTP.Addr().String()}
	s.logger.InfoContext(ctx, "listening; requests for guarded routes are denied until the trust bundle has come", addresses...)
	go func() {
		if err := s.verifier.Ready(ctx); err != nil {
			failed <- err
			return
		}
		s.logger.InfoContext(ctx, "ready", append(addresses, "version", version.String(), "tls", secure)...)
	}()
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	s.stopping.Store(true)
	late := time.AfterFunc(stopTime, s.grpc.Stop)
	defer late.Stop()
	s.grpc.GracefulStop()
	if ctx.Err() != nil {
		err = nil // Ready has ended with ctx
	}
	return errors.Join(err, s.http.Close())
}

// grpcServer returns the gRPC server that answers Envoy's questions.
func (s *server) grpcServer(config *tls.Config) *grpc.Server {
	options := []grpc.ServerOption{
		grpc.InTapHandle(s.questions.tap), grpc.MaxRecvMsgSize(maxMessage), grpc.MaxConcurrentStreams(maxStreams), grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 5 * time.Minute, Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}), // for Envoy's connection_keepalive
	}
	if config != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(config)))
	}
	server := grpc.NewServer(options...)
	authv3.RegisterAuthorizationServer(server, s.checker)
	healthv1.RegisterHealthServer(server, s)
	return server
}

// ready reports whether requests with a valid token are allowed.
func (s *server) ready() bool { return !s.stopping.Load() && s.verifier.Status().Ready }

// Check answers the gRPC health service.
func (s *server) Check(context.Context, *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	if s.ready() {
		return &healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_SERVING}, nil
	}
	return &healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_NOT_SERVING}, nil
}

// httpServer returns the server of /healthz, /readyz and /metrics.
func (s *server) httpServer(config *tls.Config) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready() {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		s.writeMetrics(w)
	})
	return &http.Server{
		Handler: mux, TLSConfig: config,
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug), // the level is low, since any client can cause errors
	}
}

// writeMetrics writes the numbers in the text form of Prometheus. The numbers of the verifier have
// the names of docs/monitoring.md. No label comes from a client, so the labels need no escaping.
func (s *server) writeMetrics(w io.Writer) {
	write := func(name, kind, help string, values map[string]float64) {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %[1]s %s\n", name, help, kind)
		for _, labels := range slices.Sorted(maps.Keys(values)) {
			fmt.Fprintf(w, "%s%s %g\n", name, labels, values[labels])
		}
	}
	v := s.verifier.Status()
	write("watchword_ext_authz_requests_total", "counter", "Requests that Envoy has asked about, by the answer.", map[string]float64{
		`{answer="allowed"}`: float64(s.checker.allowed.Load()), `{answer="denied"}`: float64(s.checker.denied.Load()),
	})
	write("watchword_ext_authz_undecided_total", "counter", "Denied requests of routes with a rule that cannot be used.", map[string]float64{"": float64(s.checker.undecided.Load())})
	refused := map[string]float64{}
	for reason, n := range v.Refused {
		refused[fmt.Sprintf("{reason=%q}", refusal.Name(reason))] = float64(n)
	}
	write("watchword_verifier_tokens_refused_total", "counter", "Access tokens refused, and calls without a token, by the reason.", refused)
	truth := map[bool]float64{true: 1}
	write("watchword_verifier_ready", "gauge", "1 if requests can be allowed, and 0 if every request for a guarded route is denied.", map[string]float64{"": truth[v.Ready]})
	write("watchword_verifier_stale", "gauge", "1 if the trust bundle is older than a minute.", map[string]float64{"": truth[v.Stale]})
	write("watchword_verifier_bundle_age_seconds", "gauge", "Age of the trust bundle.", map[string]float64{"": v.Staleness.Seconds()})
	write("watchword_verifier_streams_opened_total", "counter", "Streams of the trust bundle opened, the first included.", map[string]float64{"": float64(v.Streams)})
}
