package gate

import (
	"context"
	"net"
	"testing"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
)

// direct returns a connection of a client without a proxy, and the guarded connection from
// which gRPC reads.
func direct(t testing.TB, network string) (client net.Conn, c *conn, guarded net.Conn) {
	t.Helper()
	client, server := net.Pipe()
	c = Listen(nil, nil, 200, 200, nil).takePlace(server).(*conn)
	c.network = network
	guarded, _, err := Guard(insecure.NewCredentials()).ServerHandshake(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); guarded.Close() })
	return client, c, guarded
}

// A connection knows after each read whether all open requests have been read to their end.
func TestAllRead(t *testing.T) {
	t.Parallel()
	headers, end := frame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, 20), http2.Flags(http2.FlagDataEndStream)
	data, last := frame(http2.FrameData, 0, 1, 300), frame(http2.FrameData, end, 1, 300)
	join := func(frames ...[]byte) []byte { return repeat(1, frames...) }
	for name, test := range map[string]struct {
		read []byte
		want bool
	}{
		"headers":                 {headers, false},
		"a part of the data":      {join(headers, data), false},
		"the last data":           {join(headers, data, last), true},
		"no data":                 {frame(http2.FrameHeaders, end, 1, 20), true},
		"a begun frame":           {join(headers, last)[:200], false},
		"a begun header":          {join(headers, last, headers[:4]), false},
		"a second stream":         {join(headers, last, frame(http2.FrameHeaders, 0, 3, 20)), false},
		"an end after the end":    {join(headers, last, last, frame(http2.FrameHeaders, 0, 3, 20)), false},
		"a stream that was reset": {join(headers, frame(http2.FrameRSTStream, 0, 1, 4)), true},
	} {
		client, c, guarded := direct(t, "192.0.2.1")
		go func() { _, _ = client.Write(append([]byte(http2.ClientPreface), test.read...)) }()
		if _, err := guarded.Read(make([]byte, 8<<10)); err != nil || c.allRead != test.want {
			t.Errorf("%s: %v, %v; want %v", name, c.allRead, err, test.want)
		}
	}
}

// The gate stops counting a stream that the server has ended.
func TestAllReadAfterAnAnswer(t *testing.T) {
	t.Parallel()
	_, c, _ := direct(t, "192.0.2.1")
	if err := c.heard([]head{{http2.FrameHeaders, 0, 1}}, true); err != nil || c.allRead {
		t.Error(c.allRead, err)
	}
	c.delivered(1)
	if err := c.heard([]head{{http2.FrameHeaders, http2.FlagHeadersEndStream, 3}}, true); err != nil || !c.allRead {
		t.Error(c.allRead, err)
	}
}

// tapped lets the tap see a whole request of a connection.
func tapped(t testing.TB, g *Gate, c *conn, stream uint32) context.Context {
	t.Helper()
	if err := c.heard([]head{{http2.FrameHeaders, http2.FlagHeadersEndStream, stream}}, true); err != nil {
		t.Fatal(err)
	}
	ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: c.RemoteAddr()})
	ctx, err := g.Tap(ctx, &tap.Info{FullMethodName: "/s/Unary", Header: metadata.MD{"user-agent": {"test"}}})
	if err != nil {
		t.Fatal(err)
	}
	return ctx
}

// unaryGate returns a gate with one unary method, and the handler of the method.
func unaryGate(requests int, next func()) (*Gate, grpc.MethodHandler) {
	g := New(nil, Limits{Requests: requests, RequestsPerPeer: requests, Streams: 1, StreamsPerPeer: 1}, func(context.Context, string, error) {})
	g.methods["/s/Unary"] = atHandler
	return g, g.unary("/s/Unary", func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		if err := decode(nil); err != nil {
			return nil, err
		}
		next()
		return nil, nil
	})
}

// A whole request that loses its place before its handler is refused there and counted, and
// the other calls of its connection go on.
func TestAWholeRequestThatLosesItsPlace(t *testing.T) {
	t.Parallel()
	ran := 0
	g, handler := unaryGate(2, func() { ran++ })
	refused := 0
	g.refused = func(context.Context, string, error) { refused++ }
	_, many, _ := direct(t, "192.0.2.1")
	_, one, _ := direct(t, "192.0.2.2")
	first, second := tapped(t, g, many, 1), tapped(t, g, many, 3)
	third := tapped(t, g, one, 1)
	decode := func(any) error { return nil }
	if _, err := handler(nil, second, decode, nil); status.Code(err) != codes.ResourceExhausted || ran != 0 {
		t.Errorf("the handler of a request without a place: %v, ran %d times", err, ran)
	}
	if refused != 1 {
		t.Errorf("%d refusals are counted", refused)
	}
	for _, ctx := range []context.Context{first, third} {
		if _, err := handler(nil, ctx, decode, nil); err != nil || ctx.Err() != nil {
			t.Error(err, ctx.Err())
		}
	}
	if many.closed || ran != 2 {
		t.Errorf("the connection is closed: %v; %d handlers ran", many.closed, ran)
	}
	for _, c := range []*conn{many, one} {
		c.delivered(1, 3)
	}
	if g.requests.Held() != 0 || len(g.arriving) != 0 {
		t.Errorf("%d places and the arrival of %v remain", g.requests.Held(), g.arriving)
	}
}

// BenchmarkCall measures what the gate adds to a unary call of a client without a proxy.
func BenchmarkCall(b *testing.B) {
	g, handler := unaryGate(2, func() {})
	_, c, _ := direct(b, "192.0.2.1")
	ctx := peer.NewContext(b.Context(), &peer.Peer{Addr: c.RemoteAddr()})
	info := &tap.Info{FullMethodName: "/s/Unary", Header: metadata.MD{"user-agent": {"test"}}}
	decode := func(any) error { return nil }
	heads := []head{{http2.FrameHeaders, http2.FlagHeadersEndStream, 1}}
	b.ReportAllocs()
	for b.Loop() {
		call, cancel := context.WithCancel(ctx) // gRPC also gives each call a context of its own
		if err := c.heard(heads, true); err != nil {
			b.Fatal(err)
		}
		call, err := g.Tap(call, info)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := handler(nil, call, decode, nil); err != nil {
			b.Fatal(err)
		}
		c.delivered(1)
		cancel()
	}
}
