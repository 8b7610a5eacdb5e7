package authn_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/internal/token"
)

// BenchmarkInterceptor is a guarded call around a handler that does nothing, with
// tokens that were seen before.
func BenchmarkInterceptor(b *testing.B) {
	key, err := token.GenerateKey(token.EdDSA)
	if err != nil {
		b.Fatal(err)
	}
	v := complete(b, key)
	intercept := v.UnaryServerInterceptor()
	info := &grpc.UnaryServerInfo{FullMethod: notes + "Mine"}
	handler := func(context.Context, any) (any, error) { return nil, nil }
	for _, n := range []int{1, 10_000} {
		calls := make([]context.Context, n)
		for i := range calls {
			c := claims()
			c.ID = fmt.Sprint(i)
			c.ExpiresAt = time.Now().Add(maxLifetime)
			raw, err := token.Sign(key, c)
			if err != nil {
				b.Fatal(err)
			}
			calls[i] = metadata.NewIncomingContext(context.Background(), metadata.Pairs(
				":authority", "notes", "content-type", "application/grpc", "user-agent", "grpc-go", "authorization", "Bearer "+raw))
			if _, err := intercept(calls[i], nil, info, handler); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(fmt.Sprintf("seen/tokens=%d", n), func(b *testing.B) {
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

// complete is a verifier with a bundle that names a key.
func complete(b *testing.B, key *token.SigningKey) *authn.Verifier {
	b.Helper()
	v, err := authn.NewVerifier(b.Context(), told{snapshot(trustState(key)), heartbeat(time.Now())}, authn.WithAudience("internal"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { v.Close() })
	return v
}

// told is a connection on which a verifier hears these messages and no more.
type told []*message

func (told) Invoke(context.Context, string, any, any, ...grpc.CallOption) error { return nil }

func (t told) NewStream(ctx context.Context, _ *grpc.StreamDesc, _ string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	for _, opt := range opts {
		if p, ok := opt.(grpc.PeerCallOption); ok {
			p.PeerAddr.Addr = &net.UnixAddr{Net: "unix"}
		}
	}
	return &toldStream{ctx: ctx, left: t}, nil
}

type toldStream struct {
	grpc.ClientStream
	ctx  context.Context
	left []*message
}

func (s *toldStream) CloseSend() error         { return nil }
func (s *toldStream) Context() context.Context { return s.ctx }
func (s *toldStream) SendMsg(any) error        { return nil }

func (s *toldStream) RecvMsg(into any) error {
	if len(s.left) == 0 {
		<-s.ctx.Done()
		return s.ctx.Err()
	}
	proto.Merge(into.(*message), s.left[0])
	s.left = s.left[1:]
	return nil
}
