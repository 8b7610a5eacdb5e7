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
	"slices"
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
	watching bool // the timer of sweep runs
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

// New returns a gate that lets the calls of no method through until [Gate.Registrar]. The
// gate calls refused for each call that a bound refuses; the context has the source of the
// call.
func New(proxies caller.Proxies, limits Limits, refused func(ctx context.Context, method string, err error)) *Gate {
	return &Gate{
		proxies: proxies, refused: refused, methods: map[string]arrival{},
		requests: share.NewPool(share.Limits{Places: limits.Requests, PerPeer: limits.RequestsPerPeer, KeepOrdinary: true, Known: limits.Known}),
		streams:  share.NewPool(share.Limits{Places: limits.Streams, PerPeer: limits.StreamsPerPeer, Known: limits.Known}),
	}
}

// Registrar registers services at a server behind a gate.
type Registrar struct {
	*grpc.Server
	gate *Gate
}

// Registrar returns a registrar for a server. The gate lets through the calls of those
// methods that the registrar has registered before the server serves.
func (g *Gate) Registrar(server *grpc.Server) Registrar { return Registrar{server, g} }

// RegisterService registers a service. The gate stands around each handler of the service.
func (r Registrar) RegisterService(desc *grpc.ServiceDesc, impl any) {
	guarded := *desc
	guarded.Methods = slices.Clone(desc.Methods)
	for i, m := range desc.Methods {
		name := "/" + desc.ServiceName + "/" + m.MethodName
		r.gate.methods[name] = atHandler
		guarded.Methods[i].Handler = r.gate.unary(name, m.Handler)
	}
	for _, s := range desc.Streams {
		name, at := "/"+desc.ServiceName+"/"+s.StreamName, atMessage
		switch {
		case name == watchwordv1.TrustService_WatchBundle_FullMethodName:
			at = atBundle
		case s.ClientStreams:
			at = atEnd
		}
		r.gate.methods[name] = at
	}
	r.Server.RegisterService(&guarded, impl)
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
	if r.conn != nil && r.conn.place != nil {
		r.Source, r.peer = r.conn.source, r.conn.network
	} else {
		r.Source = g.proxies.Source(addr, info.Header["x-forwarded-for"])
		r.peer = r.Source.Network()
	}
	if err := g.admit(ctx, r); err != nil {
		if err != errStopping {
			g.refused(r, info.FullMethodName, err)
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

// unary returns the handler of a unary method, with the gate around next. gRPC calls the
// handler also for a request that does not arrive whole.
func (g *Gate) unary(method string, next grpc.MethodHandler) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, inside grpc.UnaryServerInterceptor) (any, error) {
		r, err := begin(ctx)
		if err != nil {
			return nil, err
		}
		defer r.end()
		lost := false
		resp, err := next(srv, ctx, func(req any) error {
			err := decode(req)
			if keeps := r.arrived(); err == nil && !keeps {
				lost, err = true, crowded()
			}
			return err
		}, inside)
		if err != nil && (lost || r.pushedOut()) {
			err = crowded()
			g.refused(ctx, method, err)
			return nil, err
		}
		return resp, err
	}
}

// Stream intercepts streams. A stream counts as a request until its request has arrived,
// and takes a place among the streams.
func (g *Gate) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	r, err := begin(ss.Context())
	if err != nil {
		return err
	}
	defer r.end()
	if r.at != atBundle {
		place := g.streams.Take(r.peer, share.Ordinary, r.pushOut)
		if place == nil {
			err := crowded()
			g.refused(ss.Context(), info.FullMethod, err)
			return err
		}
		defer place.Release()
	}
	err = handler(srv, &receiving{ss, r})
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
		r.stop()
	}
}
