package server

import (
	"context"
	"crypto/tls"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/selector"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/internal/rpc"
)

const (
	maxMessage = 64 << 10 // bytes; the largest honest request, a user with 32 roles, has 4 KiB
	maxHeaders = 16 << 10 // bytes; an access token has at most 8 KiB
	maxStreams = 1000     // at a time on one connection
)

type metrics struct {
	registry *prometheus.Registry
	grpc     *grpcprom.ServerMetrics
}

func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry(), grpc: grpcprom.NewServerMetrics(
		grpcprom.WithServerHandlingTimeHistogram())}
	m.registry.MustRegister(m.grpc, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// grpcOptions are the bounds and the interceptors, outermost first: metrics and
// logs see every refusal, a panic anywhere below them is one of ours, the
// verifier lets callers in, and errors get their status next to the handler.
func (s *Server) grpcOptions(m *metrics, tlsConfig *tls.Config) []grpc.ServerOption {
	logs := logging.LoggerFunc(func(ctx context.Context, level logging.Level, msg string, fields ...any) {
		s.logger.Log(ctx, slog.Level(level), msg, fields...)
	})
	logged := selector.MatchFunc(func(_ context.Context, c interceptors.CallMeta) bool {
		return !strings.HasPrefix(c.Service, "grpc.") // probes of health would drown the rest
	})
	finish := []logging.Option{logging.WithLogOnEvents(logging.FinishCall), logging.WithLevels(logLevel),
		logging.WithErrorFields(func(err error) logging.Fields {
			return logging.Fields{"reason", strings.TrimPrefix(authn.Reason(err).String(), "ERROR_REASON_")}
		})}
	panics := recovery.WithRecoveryHandlerContext(s.recovered)
	errs := rpc.Errors{Logger: s.logger, RetryAfter: s.passwords.RetryAfter}
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(
			m.grpc.UnaryServerInterceptor(),
			selector.UnaryServerInterceptor(logging.UnaryServerInterceptor(logs, finish...), logged),
			recovery.UnaryServerInterceptor(panics)),
		grpc.ChainStreamInterceptor(
			m.grpc.StreamServerInterceptor(),
			selector.StreamServerInterceptor(logging.StreamServerInterceptor(logs, finish...), logged),
			recovery.StreamServerInterceptor(panics), s.drain.stream),
	}
	opts = append(opts, s.verifier.ServerOptions()...)
	opts = append(opts, grpc.ChainUnaryInterceptor(errs.Unary), grpc.ChainStreamInterceptor(errs.Stream))
	if tlsConfig != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(tlsConfig)))
	}
	return opts
}

// logLevel makes a line of every call; a refusal is the caller's fault, the
// rest may be ours.
func logLevel(code codes.Code) logging.Level {
	switch code {
	case codes.Internal, codes.Unknown, codes.DataLoss:
		return logging.LevelError
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
		return logging.LevelWarn
	}
	return logging.LevelInfo
}

func (s *Server) recovered(ctx context.Context, p any) error {
	s.logger.ErrorContext(ctx, "panic in a handler", "panic", p, "stack", string(debug.Stack()))
	return status.Error(codes.Internal, "internal error")
}

// drain sends streams away when the server stops. An idle stream, of a watcher,
// of health or of reflection, would hold GracefulStop for good.
type drain struct{ begun chan struct{} }

func newDrain() *drain { return &drain{begun: make(chan struct{})} }

func (d *drain) begin() { close(d.begun) }

func (d *drain) draining() bool {
	select {
	case <-d.begun:
		return true
	default:
		return false
	}
}

// stream runs the handler in a goroutine of its own, since one that waits in
// Recv cannot be told. When the interceptor has returned, the stream's context
// ends, and so does the handler. Its panic is raised again here.
func (d *drain) stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	done := make(chan error, 1)
	panicked := make(chan any, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				panicked <- p
			}
		}()
		done <- handler(srv, ss)
	}()
	select {
	case err := <-done:
		return err
	case p := <-panicked:
		panic(p)
	case <-d.begun:
		return status.Error(codes.Unavailable, "the server is stopping")
	}
}
