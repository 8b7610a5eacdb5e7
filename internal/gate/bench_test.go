package gate

import (
	"context"
	"net"
	"testing"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/tap"

	"github.com/watchword-auth/watchword/internal/share"
)

// BenchmarkUnary measures what the gate does for a unary call: the headers and the end of the
// stream as frames on the connection, the tap, and the handler around a handler that returns
// at once.
func BenchmarkUnary(b *testing.B) {
	const method = "/watchword.v1.AuthService/Verify"
	g := New(nil, Limits{Requests: 1000, RequestsPerPeer: 200, Streams: 10, StreamsPerPeer: 10, Reports: 1, ReportsPerPeer: 1},
		func(context.Context, string, error) {})
	g.methods[method] = atHandler
	connections := share.NewPool(share.Limits{Places: 10, PerPeer: 10})
	c := &conn{source: "127.0.0.1", network: "127.0.0.1", place: connections.Take("127.0.0.1", share.Stranger, func() {})}
	handler := g.unary(method, func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		return nil, decode(nil)
	})
	ctx := peer.NewContext(b.Context(), &peer.Peer{Addr: address{&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, c}})
	header := map[string][]string{":authority": {"127.0.0.1:50051"}, "content-type": {"application/grpc"}, "user-agent": {"grpc-go/1.85.0"}}
	b.ReportAllocs()
	for stream := uint32(1); b.Loop(); stream += 2 {
		heads := [...]head{{kind: http2.FrameHeaders, stream: stream}, {kind: http2.FrameData, flags: http2.FlagDataEndStream, stream: stream}}
		if err := c.heard(heads[:], true); err != nil {
			b.Fatal(err)
		}
		in, err := g.Tap(ctx, &tap.Info{FullMethodName: method, Header: header})
		if err == nil {
			_, err = handler(nil, in, func(any) error { return nil }, nil)
		}
		if err != nil {
			b.Fatal(err)
		}
		c.delivered(stream)
	}
	if held := g.requests.Held(); held != 0 {
		b.Errorf("%d places are still held", held)
	}
}
