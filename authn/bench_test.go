package authn_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
)

// BenchmarkLeast measures the least that an interceptor can do for a token that it has seen:
// look up the metadata, find the token in a map, and make a context with a value.
func BenchmarkLeast(b *testing.B) {
	issuer := authntest.New()
	raw := "Bearer " + issuer.Token(authntest.User{Name: "alice", Roles: []string{"reader"}})
	call := metadata.NewIncomingContext(context.Background(), metadata.Pairs(
		":authority", "notes", "content-type", "application/grpc", "user-agent", "grpc-go", "authorization", raw))
	seen := map[string]*int{strings.Clone(raw): new(int)}
	type key struct{}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			p, ok := seen[metadata.ValueFromIncomingContext(call, "authorization")[0]]
			if ctx := context.WithValue(call, key{}, p); !ok || ctx == nil {
				b.Error("not found")
			}
		}
	})
}

// BenchmarkInterceptor measures a guarded call of an empty handler, with cached tokens: without
// metrics, and counted for a meter provider.
func BenchmarkInterceptor(b *testing.B) {
	issuer := authntest.New()
	intercept := issuer.NewVerifier(b, authn.WithAudience("test")).UnaryServerInterceptor()
	counting := issuer.NewVerifier(b, authn.WithAudience("test"), authn.WithMeterProvider(noop.NewMeterProvider())).UnaryServerInterceptor()
	info := &grpc.UnaryServerInfo{FullMethod: notes + "Mine"}
	handler := func(context.Context, any) (any, error) { return nil, nil }
	for _, n := range []int{1, 10_000} {
		calls := make([]context.Context, n)
		for i := range calls {
			raw := issuer.Token(authntest.User{Name: "alice", Roles: []string{"reader"}})
			calls[i] = metadata.NewIncomingContext(context.Background(), metadata.Pairs(
				":authority", "notes", "content-type", "application/grpc", "user-agent", "grpc-go", "authorization", "Bearer "+raw))
			for _, intercept := range []grpc.UnaryServerInterceptor{intercept, counting} {
				if _, err := intercept(calls[i], nil, info, handler); err != nil {
					b.Fatal(err)
				}
			}
		}
		for name, intercept := range map[string]grpc.UnaryServerInterceptor{"seen": intercept, "counted": counting} {
			b.Run(fmt.Sprintf("%s/tokens=%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					for i := 0; pb.Next(); i++ {
						if _, err := intercept(calls[i%n], nil, info, handler); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		}
	}
}

// idleStream has the methods of a stream that the interceptor and an idle handler use.
type idleStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *idleStream) Context() context.Context { return s.ctx }

// BenchmarkStream measures the beginning and the end of a guarded stream, with a cached token and
// a handler that reads the caller.
func BenchmarkStream(b *testing.B) {
	issuer := authntest.New()
	intercept := issuer.NewVerifier(b, authn.WithAudience("test")).StreamServerInterceptor()
	info := &grpc.StreamServerInfo{FullMethod: notes + "Mine"}
	connection, cancel := context.WithCancel(context.Background())
	defer cancel()
	call := metadata.NewIncomingContext(connection, metadata.Pairs(
		":authority", "notes", "content-type", "application/grpc", "user-agent", "grpc-go",
		"authorization", "Bearer "+issuer.Token(authntest.User{Name: "alice", Roles: []string{"reader"}})))
	handler := func(_ any, s grpc.ServerStream) error {
		if _, guarded := authn.FromContext(s.Context()); !guarded {
			b.Error("no caller")
		}
		return nil
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := intercept(nil, &idleStream{ctx: call}, info, handler); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
