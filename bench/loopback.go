package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testv1 "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
)

const (
	callers     = 64
	connections = 4 // shared by all callers
)

// echoServer returns the request. The service comes with grpc-go and has generated code
// like any other. It has no access rule, so any valid token is enough.
type echoServer struct {
	testv1.UnimplementedTestServiceServer
}

func (echoServer) UnaryCall(_ context.Context, req *testv1.SimpleRequest) (*testv1.SimpleResponse, error) {
	return &testv1.SimpleResponse{Payload: req.GetPayload()}, nil
}

// endpoint is a server on loopback and connections to it.
type endpoint struct {
	conns  []*grpc.ClientConn
	server *grpc.Server
}

// serve runs a server.
func serve(register func(*grpc.Server), opts ...grpc.ServerOption) (*endpoint, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	e := &endpoint{server: grpc.NewServer(opts...)}
	register(e.server)
	go func() { _ = e.server.Serve(listener) }()
	e.conns, err = dial(listener.Addr().String(), connections)
	return e, err
}

func serveEcho(opts ...grpc.ServerOption) (*endpoint, error) {
	return serve(func(s *grpc.Server) { testv1.RegisterTestServiceServer(s, echoServer{}) }, opts...)
}

func (e *endpoint) close() {
	for _, c := range e.conns {
		c.Close()
	}
	e.server.Stop()
}

func dial(addr string, n int, opts ...grpc.DialOption) ([]*grpc.ClientConn, error) {
	conns := make([]*grpc.ClientConn, n)
	for i := range conns {
		var err error
		conns[i], err = grpc.NewClient(addr, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
		if err != nil {
			return nil, err
		}
	}
	return conns, nil
}

var question = &testv1.SimpleRequest{Payload: &testv1.Payload{Body: bytes.Repeat([]byte{'x'}, 100)}}

// echoes makes calls, by one of the callers. Each connection carries one token, like
// the connection of a service that calls another. The server without a guard gets the
// token, too.
func (e *endpoint) echoes(tokens []string) func(worker, i int) error {
	bearers := make([]context.Context, connections)
	for k := range bearers {
		bearers[k] = metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+tokens[k])
	}
	return func(worker, _ int) error {
		k := worker % connections
		return e.conns[k].Invoke(bearers[k], guarded.FullMethod, question, new(testv1.SimpleResponse))
	}
}

// echo compares a server with a guard with the same server without one.
func echo(b *bench) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	issuer, err := newIssuer()
	if err != nil {
		return err
	}
	defer issuer.close()
	others, err := peers(ctx, issuer)
	if err != nil {
		return err
	}
	tokens, err := issuer.mint(connections)
	if err != nil {
		return err
	}
	verifier, err := issuer.verifier(0)
	if err != nil {
		return err
	}
	defer verifier.Close()
	servers := []echoSide{{"bare", nil}, {"ours", verifier.ServerOptions()}, {"bare again", nil}}
	for _, other := range others {
		servers = append(servers, echoSide{other.name, []grpc.ServerOption{grpc.ChainUnaryInterceptor(other.unary)}})
	}
	sides, err := echoSides(ctx, servers, tokens)
	if err != nil {
		return err
	}
	// Many short turns: another program on the machine moves a single turn by more than
	// the limit allows. The control compares two equal servers: its distance from one
	// is the error of this run. A ratio that misses its limit by less proves nothing.
	r := race{turns: b.of(24, 200), stint: 120 * time.Millisecond, workers: callers, batch: 1}
	all, err := r.run(sides[:3]...)
	if err != nil {
		return err
	}
	b.report("echo/64-callers/of-unguarded", all[1].over(all[0]), "of-it", atLeast(0.97))
	b.report("echo/64-callers/control", all[2].over(all[0]), "of-it", limit{})
	b.report("echo/64-callers/unguarded", median(all[0]), "calls/s", limit{})
	r.turns = b.of(3, 21)
	if all, err = r.run(append(sides[:1:1], sides[3:]...)...); err != nil {
		return err
	}
	for i, other := range others {
		b.report("echo/64-callers/"+other.name+"/of-unguarded", all[1+i].over(all[0]), "of-it", limit{})
	}
	return nil
}

// echoSide is an echo server to start: a name, and the options that guard it.
type echoSide struct {
	name    string
	options []grpc.ServerOption
}

// echoSides starts the servers, which run until ctx ends, and returns a side for each.
func echoSides(ctx context.Context, servers []echoSide, tokens []string) (sides []side, err error) {
	for _, s := range servers {
		e, err := serveEcho(s.options...)
		if err != nil {
			return nil, err
		}
		context.AfterFunc(ctx, e.close)
		sides = append(sides, side{s.name, e.echoes(tokens)})
	}
	return sides, nil
}

// wire counts the bytes that a client sends for its token in a call on a warm
// connection, where HPACK (RFC 7541) has put it into its table.
func wire(b *bench) error {
	issuer, err := newIssuer()
	if err != nil {
		return err
	}
	defer issuer.close()
	e, err := serveEcho()
	if err != nil {
		return err
	}
	defer e.close()
	tokens, err := issuer.mint(16)
	if err != nil {
		return err
	}
	without, err := sent(e, nil)
	if err != nil {
		return err
	}
	b.report("wire/token-length", float64(len(tokens[0])), "bytes", limit{})
	for _, n := range []int{1, len(tokens)} {
		with, err := sent(e, tokens[:n])
		if err != nil {
			return err
		}
		b.report(fmt.Sprintf("wire/%d-tokens-in-turn/bytes-per-call", n), with-without, "bytes", limit{})
	}
	return nil
}

// sent returns how many bytes a call sends, on a connection that the callers of these
// tokens use in turn.
func sent(e *endpoint, tokens []string) (float64, error) {
	const warm, calls = 200, 2000
	var written atomic.Int64
	conns, err := dial(e.conns[0].Target(), 1, grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		return countingConn{c, &written}, err
	}))
	if err != nil {
		return 0, err
	}
	defer conns[0].Close()
	before := int64(0)
	for i := range warm + calls {
		if i == warm {
			before = written.Load()
		}
		ctx := context.Background()
		if len(tokens) > 0 {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+tokens[i%len(tokens)])
		}
		if err := conns[0].Invoke(ctx, guarded.FullMethod, question, new(testv1.SimpleResponse)); err != nil {
			return 0, err
		}
	}
	return float64(written.Load()-before) / calls, nil
}

// countingConn counts the bytes written.
type countingConn struct {
	net.Conn
	written *atomic.Int64
}

func (c countingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}
