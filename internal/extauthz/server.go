package extauthz

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/internal/meter"
	"github.com/watchword-auth/watchword/internal/reload"
	"github.com/watchword-auth/watchword/internal/share"
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
	page      *meter.Page
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
	page := new(meter.Page)
	options := []authn.Option{
		authn.WithAudience(c.Audience...), authn.WithoutWaiting(), authn.WithLogger(logger), authn.WithMeterProvider(page),
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
	s := &server{logger: logger, verifier: verifier, questions: newQuestions(), checker: newChecker(verifier, logger), page: page}
	s.grpc, s.http = s.grpcServer(forGRPC), s.httpServer(forHTTP)
	connections, httpConnections := places(maxConnections), places(maxHTTP)
	if err := s.report(map[string]*share.Pool{"grpc_connections": connections, "http_connections": httpConnections, "questions": s.questions.places}); err != nil {
		return errors.Join(err, grpcListener.Close(), httpListener.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go files.Run(ctx) // serve does not wait for Run's end: Run holds nothing that has to be closed
	return s.run(ctx, bounded(grpcListener, connections), bounded(httpListener, httpConnections))
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
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}), // allows the pings of Envoy's setting connection_keepalive
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
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		text, err := s.page.Text(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		_, _ = w.Write(text)
	})
	return &http.Server{
		Handler: mux, TLSConfig: config,
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug), // the level is low, since any client can cause errors
	}
}
