// Package gate stands around the handlers of the gRPC server, and bounds what clients can
// cause outside of a handler: connections, unfinished requests, the time until a request
// has arrived whole, the size of metadata, messages in tiny pieces, and answers that a client
// does not read. The gate also finds the source of every call.
//
// Package share divides each bound among peers: the first peers to come cannot keep the
// others out. A connection belongs to the network of its TCP peer, and a call to the network
// of its source.
package gate

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/types/known/durationpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/share"
)

// Limits holds the bounds of a gate. Every number must be positive.
type Limits struct {
	// Requests bounds the unfinished requests: each counts from its headers until its
	// answer is on its way. A server stream counts until its request has arrived.
	Requests, RequestsPerPeer int
	// Streams bounds the open streams, such as Health/Watch and reflection. WatchBundle
	// has bounds of its own, in package hub.
	Streams, StreamsPerPeer int
	// Known holds the networks that keep their places at a tie; see package share. Nil
	// means none.
	Known *share.Known
}

// Gate bounds the calls of one server. A Gate is safe for concurrent use.
type Gate struct {
	proxies  caller.Proxies
	requests *share.Pool
	streams  *share.Pool
	methods  map[string]arrival
	refused  func(ctx context.Context, method string, err error)
	timers   timers

	mu       sync.Mutex // guards the fields below
	first    *request   // of the requests that have not arrived whole, in order of their headers
	last     *request
	watching bool // a timer looks after first
	stopping bool
}

// arrival says when the request of a method has arrived whole, and what bounds the call
// from then on.
type arrival int

const (
	atHandler arrival = iota + 1 // unary: gRPC reads the whole request before the handler
	atMessage                    // a server stream: the request is one message
	atEnd                        // a client sends messages until it closes its side
	atBundle                     // WatchBundle: as atMessage, but package hub bounds the streams
)

// New returns a gate that lets no call through until [Gate.Open]. The gate calls refused
// for each call that a bound refuses; the context has the source of the call.
func New(proxies caller.Proxies, limits Limits, refused func(ctx context.Context, method string, err error)) *Gate {
	return &Gate{
		proxies: proxies, refused: refused,
		requests: share.NewPool(limits.Requests, limits.RequestsPerPeer).OfStrangers().Knowing(limits.Known),
		streams:  share.NewPool(limits.Streams, limits.StreamsPerPeer).Knowing(limits.Known),
	}
}

// Open lets the calls of all registered services through. Open must return before the
// server serves.
func (g *Gate) Open(services map[string]grpc.ServiceInfo) {
	g.methods = map[string]arrival{}
	for service, info := range services {
		for _, m := range info.Methods {
			name, at := "/"+service+"/"+m.Name, atHandler
			switch {
			case name == watchwordv1.TrustService_WatchBundle_FullMethodName:
				at = atBundle
			case m.IsClientStream:
				at = atEnd
			case m.IsServerStream:
				at = atMessage
			}
			g.methods[name] = at
		}
	}
}

// The refusals of the gate: made once, since any client can cause them without bound.
var (
	errMethod   = status.Error(codes.Unimplemented, "no service of this server has this method")
	errMetadata = refusal.Status(codes.InvalidArgument, watchwordv1.ErrorReason_ERROR_REASON_INVALID_REQUEST, "",
		"metadata: longer than 16 KiB", refusal.BadField("metadata", "longer than 16 KiB")).Err()
	errStopping = status.Error(codes.Unavailable, "the server is stopping")
	// errsCrowded hold delays that are spread evenly.
	errsCrowded = func() (errs [32]error) {
		for i := range errs {
			delay := retryDelay + retrySpread*time.Duration(i)/time.Duration(len(errs))
			errs[i] = refusal.Status(codes.ResourceExhausted, watchwordv1.ErrorReason_ERROR_REASON_OVERLOADED, "",
				"too many calls at once", &errdetails.RetryInfo{RetryDelay: durationpb.New(delay)}).Err()
		}
		return errs
	}()
)

// crowded returns the refusal of a call that gets no place, with a random delay.
func crowded() error { return errsCrowded[rand.IntN(len(errsCrowded))] }

// Tap admits or refuses a call by its headers. gRPC calls Tap before a goroutine runs for
// the call (grpc.InTapHandle). Tap puts the source of the call into the context.
func (g *Gate) Tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	at, known := g.methods[info.FullMethodName]
	if !known {
		return g.refuse(ctx, errMethod)
	}
	if tooLong(info.Header) {
		return g.refuse(ctx, errMetadata)
	}
	var addr net.Addr
	if p, ok := peer.FromContext(ctx); ok {
		addr = p.Addr
	}
	r := &request{gate: g, at: at}
	if a, ok := addr.(address); ok {
		r.conn = a.conn
	}
	var source caller.Source
	if r.conn != nil && r.conn.place != nil {
		source, r.peer = r.conn.source, r.conn.network
	} else {
		source = g.proxies.Source(addr, info.Header["x-forwarded-for"])
		r.peer = source.Network()
	}
	ctx = caller.WithSource(ctx, source)
	if err := g.admit(ctx, r); err != nil {
		if err != errStopping {
			g.refused(ctx, info.FullMethodName, err)
		}
		return g.refuse(ctx, err)
	}
	return r, nil
}

// tooLong reports whether the metadata of a call is longer than MaxMetadata.
func tooLong(header map[string][]string) bool {
	size := 0
	for name, values := range header {
		for _, value := range values {
			size += len(name) + len(value) + fieldOverhead
		}
	}
	return size > MaxMetadata
}

// Unary intercepts unary calls. The request of a unary call has arrived whole.
func (g *Gate) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	r, ok := ctx.Value(requestKey{}).(*request)
	if !ok {
		return nil, crowded() // the tap has refused the call
	}
	r.arrived()
	defer r.answered()
	resp, err := handler(ctx, req)
	if err != nil && r.pushedOut() {
		err = crowded()
		g.refused(ctx, info.FullMethod, err)
		return nil, err
	}
	return resp, err
}

// Stream intercepts streams. A stream counts as a request until its request has arrived,
// and takes a place among the streams.
func (g *Gate) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	r, ok := ss.Context().Value(requestKey{}).(*request)
	if !ok {
		return crowded() // the tap has refused the call
	}
	defer r.answered()
	if r.at != atBundle {
		place := g.streams.Take(r.peer, r.pushOut)
		if place == nil {
			err := crowded()
			g.refused(ss.Context(), info.FullMethod, err)
			return err
		}
		defer place.Release()
	}
	err := handler(srv, &receiving{ss, r})
	if err != nil && r.pushedOut() {
		err = crowded()
		g.refused(ss.Context(), info.FullMethod, err)
		return err
	}
	return err
}

// Stop ends every request that has not arrived whole, and refuses new ones: a client that
// never sends the rest would hold the server for as long as a stop may take.
func (g *Gate) Stop() {
	g.mu.Lock()
	g.stopping = true
	var late []*request
	for r := g.first; r != nil; r = r.next {
		late = append(late, r)
	}
	g.mu.Unlock()
	for _, r := range late {
		r.cancel()
	}
}
