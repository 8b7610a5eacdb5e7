package server

import (
	"context"
	"io"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	protoenc "google.golang.org/grpc/encoding/proto"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/rpc"
	"github.com/watchword-auth/watchword/internal/seal"
)

// BenchmarkLayers measures what each interceptor adds to a call of a public method, by itself
// and with a handler that returns at once, and the server's codec beside grpc-go's. Package gate
// measures its own parts.
func BenchmarkLayers(b *testing.B) {
	cfg := DefaultConfig()
	cfg.GRPCAddr, cfg.HTTPAddr = "127.0.0.1:0", "127.0.0.1:0"
	folder := b.TempDir()
	cfg.DatastoreURI, cfg.MasterKeyFile = "sqlite:"+filepath.Join(folder, "watchword.db"), filepath.Join(folder, "master.key")
	if _, err := seal.Create(cfg.MasterKeyFile); err != nil {
		b.Fatal(err)
	}
	s, err := New(b.Context(), cfg, slog.New(slog.NewTextHandler(io.Discard, nil)), func(string) error { return nil })
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	log, _ := s.logCalls()
	info := &grpc.UnaryServerInfo{FullMethod: watchwordv1.AuthService_Verify_FullMethodName}
	handler := func(context.Context, any) (any, error) { return nil, nil }
	ctx := context.Background()
	for _, layer := range []struct {
		name      string
		intercept grpc.UnaryServerInterceptor
	}{
		{"metrics", s.calls.Unary},
		{"log", log},
		{"recovery", recovery.UnaryServerInterceptor(recovery.WithRecoveryHandlerContext(s.recovered))},
		{"edge", rpc.NewEdge(s.audit, s.passwords.RetryAfter, s.logger).Unary},
		{"verifier", s.verifier.UnaryServerInterceptor()},
		{"turns", rpc.InTurn(s.known)},
	} {
		b.Run(layer.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := layer.intercept(ctx, nil, info, handler); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	answer := &watchwordv1.VerifyResponse{}
	for _, codec := range []struct {
		name string
		encoding.CodecV2
	}{{"codec", rpc.Codec()}, {"codec-of-grpc", encoding.GetCodecV2(protoenc.Name)}} {
		b.Run(codec.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := codec.Marshal(answer); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
