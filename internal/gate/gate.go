// Package gate lets each call into the server, or refuses the call before a handler runs. The
// gate finds the source of every call, and bounds what clients can cause outside of a handler:
// connections, unfinished requests, the time until a request has arrived whole, the size of
// metadata, messages in tiny pieces, and answers that a client leaves unread.
//
// Package share divides each bound among client networks, so that networks which come late get
// a part too. A connection belongs to the network of the TCP peer. A call belongs to the
// network of the call's source ([caller.Source]).
package gate

import (
	"context"
	"maps"
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
	// Requests bounds the unfinished requests. A unary call counts from the headers until the
	// answer is written. A stream counts from the headers until the request has arrived.
	// RequestsPerPeer bounds the unfinished requests of one network.
	Requests, RequestsPerPeer int
	// Streams bounds the open streams, such as Health/Watch and reflection. WatchBundle
	// has bounds of its own, in package hub.
	Streams, StreamsPerPeer int
	// Reports bounds the open streams of ReportWatcher.
	Reports, ReportsPerPeer int
	// Known holds the networks that have proved something, such as a right password. When all
	// networks hold equally many places, a network in Known keeps its places; see [share.Known].
	// A nil Known holds no network.
	Known *share.Known
}

// Gate bounds the calls of one server. A Gate is safe for concurrent use.
type Gate struct {
	proxies  caller.Proxies
	requests *share.Pool
	streams  *share.Pool
	reports  *share.Pool
	methods  map[string]arrival
	refused  func(ctx context.Context, method string, err error)
	timers   timers

	mu       sync.Mutex            // guards the fields below
	arriving map[*request]struct{} // requests that have not arrived whole
	watching bool                  // a timer runs that will call sweep
	stopping bool
}

// arrival says when the request of a method has arrived whole, and what bounds the call
// from then on.
type arrival int

const (
	atHandler arrival = iota + 1 // a unary call: gRPC reads the whole request before the handler runs
	atMessage                    // a server stream: the request is one message
	atEnd                        // a client stream: the request arrives until the client closes its side
	atBundle                     // WatchBundle: one message; package hub bounds the streams
	atReport                     // ReportWatcher: the request is the first message; further messages follow while the stream is open
)

// New returns a gate that lets through only the calls of methods that were registered by
// [Gate.Registrar]. The gate calls the function refused for each call that a bound refuses; the
// context given to refused has the source of the call.
func New(proxies caller.Proxies, limits Limits, refused func(ctx context.Context, method string, err error)) *Gate {
	return &Gate{
		proxies: proxies, refused: refused, methods: map[string]arrival{}, arriving: map[*request]struct{}{},
		requests: share.NewPool(share.Limits{Places: limits.Requests, PerPeer: limits.RequestsPerPeer, KeepOrdinary: true, Known: limits.Known}),
		streams:  share.NewPool(share.Limits{Places: limits.Streams, PerPeer: limits.StreamsPerPeer, Known: limits.Known}),
		reports:  share.NewPool(share.Limits{Places: limits.Reports, PerPeer: limits.ReportsPerPeer, Known: limits.Known}),
	}
}

// Registrar registers services at a server behind a gate.
type Registrar struct {
	*grpc.Server
	gate *Gate
}

// Registrar returns a registrar for a server. Register every service before the server
// serves.
func (g *Gate) Registrar(server *grpc.Server) Registrar { return Registrar{server, g} }

// RegisterService registers a service. Each call of the service goes through the gate.
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
		case name == watchwordv1.TrustService_ReportWatcher_FullMethodName:
			at = atReport
		case s.ClientStreams:
			at = atEnd
		}
		r.gate.methods[name] = at
	}
	r.Server.RegisterService(&guarded, impl)
}

// A call that the gate refuses gets one of these errors. Each error is made once, since any client
// can cause a flood of refused calls; errsCrowded makes its errors when the first call gets no
// place.
var (
	errMethod   = status.Error(codes.Unimplemented, "no service of this server has this method")
	errMetadata = refusal.Status(codes.InvalidArgument, watchwordv1.ErrorReason_ERROR_REASON_INVALID_REQUEST, "",
		"metadata: longer than 16 KiB", refusal.BadField("metadata", "longer than 16 KiB")).Err()
	errStopping = status.Error(codes.Unavailable, "the server is stopping")
	// errsCrowded returns errors that differ in the delay (RetryInfo) after which the client
	// should call again.
	errsCrowded = sync.OnceValue(func() []error {
		errs := make([]error, 32)
		for i := range errs {
			delay := retryDelay + retrySpread*time.Duration(i)/time.Duration(len(errs))
			errs[i] = refusal.Status(codes.ResourceExhausted, watchwordv1.ErrorReason_ERROR_REASON_OVERLOADED, "",
				"too many unfinished calls at the server, or from this network", &errdetails.RetryInfo{RetryDelay: durationpb.New(delay)}).Err()
		}
		return errs
	})
)

// crowded returns the error of a call that gets no place, with a random delay before the next
// try.
func crowded() error {
	errs := errsCrowded()
	return errs[rand.IntN(len(errs))]
}

// Tap lets a call in, or refuses the call, by the headers. gRPC calls Tap before a goroutine
// starts for the call ([grpc.InTapHandle]). Tap puts the source of the call into the context.
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
	} else {
		r.conn = &conn{}
	}
	if r.conn.ofProxy() {
		r.Source = g.proxies.Source(addr, info.Header["x-forwarded-for"])
		r.network = r.Source.Network()
	} else {
		r.Source, r.network = r.conn.source, r.conn.network
	}
	if err := g.takePlace(ctx, r); err != nil {
		if err != errStopping {
			g.refused(r, info.FullMethodName, err)
		}
		return g.refuse(ctx, err)
	}
	return r, nil
}

// tooLong reports whether the metadata of a call is longer than maxMetadata.
func tooLong(header map[string][]string) bool {
	size := 0
	for name, values := range header {
		for _, value := range values {
			size += len(name) + len(value) + fieldOverhead
		}
	}
	return size > maxMetadata
}

// unary returns a handler that calls next, the handler of a unary method, and keeps the place
// of the call until next returns. gRPC calls the handler also for a request that does not
// arrive whole.
func (g *Gate) unary(method string, next grpc.MethodHandler) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, inside grpc.UnaryServerInterceptor) (any, error) {
		r, err := begin(ctx)
		if err != nil {
			return nil, err
		}
		defer r.end()
		resp, err := next(srv, ctx, func(req any) error {
			err := decode(req)
			if keeps := r.arrived(); err == nil && !keeps {
				return crowded()
			}
			return err
		}, inside)
		return resp, g.result(ctx, method, r, err)
	}
}

// Stream intercepts streams. A stream takes a place in g.streams or g.reports (WatchBundle: in
// package hub), and keeps its place among the unfinished requests until the request of the
// stream has arrived.
func (g *Gate) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	r, err := begin(ss.Context())
	if err != nil {
		return err
	}
	defer r.end()
	if r.at != atBundle {
		pool := g.streams
		if r.at == atReport {
			pool = g.reports
		}
		place := pool.Take(r.network, share.Ordinary, r.pushOut)
		if place == nil {
			err := crowded()
			g.refused(ss.Context(), info.FullMethod, err)
			return err
		}
		defer place.Release()
	}
	return g.result(ss.Context(), info.FullMethod, r, handler(srv, &receiving{ss, r}))
}

// result returns the error of a call for the client. If the call has lost its place to another
// client, the handler fails because of the loss, and the client gets the error of [crowded].
func (g *Gate) result(ctx context.Context, method string, r *request, err error) error {
	if err != nil && r.pushed.Load() {
		err = crowded()
		g.refused(ctx, method, err)
	}
	if err != nil {
		noteFailed(ctx, err)
	}
	return err
}

// Stop ends every request that has not arrived whole, and refuses new requests. Otherwise a
// client that never sends the rest of a request would delay the stop up to the drain
// timeout.
func (g *Gate) Stop() {
	g.mu.Lock()
	g.stopping = true
	unfinished := slices.Collect(maps.Keys(g.arriving))
	g.mu.Unlock()
	for _, r := range unfinished {
		r.stop()
	}
}

// Stats returns the numbers of the unfinished requests, of the open streams, and of the open
// streams of ReportWatcher, for metrics.
func (g *Gate) Stats() (requests, streams, reports share.Stats) {
	return g.requests.Stats(), g.streams.Stats(), g.reports.Stats()
}
