package gate

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/share"
)

const (
	// maxMetadata bounds the metadata of a call, in bytes, counted as in RFC 9113, section
	// 6.5.2. An access token has at most 8 KiB.
	maxMetadata = 16 << 10
	// fieldOverhead is the number of bytes that HTTP/2 adds for each field to the length of
	// name and value.
	fieldOverhead = 32
	// arrivalTime bounds the time from the headers of a request until the whole request
	// has arrived. The largest request has 64 KiB.
	arrivalTime = 10 * time.Second
	// sweepTime is the time between two runs of [Gate.sweep]. A call that gRPC has ended
	// without a handler keeps its place for at most sweepTime.
	sweepTime = arrivalTime / 100
	// A client that a bound has refused should wait for at least retryDelay, and up to
	// retrySpread longer: the refused clients then come back at different times.
	retryDelay  = time.Second
	retrySpread = time.Second
)

// request is a call with an answer that is still to come. The request is also the context of the
// call: so the handler and the interceptors find the request.
type request struct {
	caller.Context
	gate    *Gate
	conn    *conn  // the zero conn if no [Listener] has accepted the connection
	network string // [caller.Source.Network] of the source
	at      arrival
	place   *share.Place
	cancel  context.CancelFunc // nil if the whole request was read before the tap
	sweeps  int                // how many sweeps have found the request in gate.arriving; gate.mu guards sweeps
	idOnce  sync.Once
	id      string // see [RequestID]; set by idOnce

	taken  atomic.Bool // a handler has begun, or a sweep has ended a call that has no handler
	whole  atomic.Bool // the whole request has arrived, or the call has ended
	late   atomic.Bool // the request has not arrived within arrivalTime
	pushed atomic.Bool // another client has taken the place
	done   atomic.Bool // the handler has returned
}

type requestKey struct{}

// Value implements [context.Context]. For requestKey, Value returns the request.
func (r *request) Value(key any) any {
	if key == (requestKey{}) {
		return r
	}
	return r.Context.Value(key)
}

// Err implements [context.Context]. If the request has missed arrivalTime, Err returns
// context.DeadlineExceeded, which gRPC answers as DEADLINE_EXCEEDED.
func (r *request) Err() error {
	err := r.Context.Err()
	if err != nil && r.late.Load() {
		return context.DeadlineExceeded
	}
	return err
}

// takePlace takes one of the gate's places for a request, and starts the time limit within
// which the whole request must arrive. After takePlace, r serves as the context of the call,
// derived from ctx.
//
// Errors: those of [crowded] if the request gets no place; errStopping if the server stops.
func (g *Gate) takePlace(ctx context.Context, r *request) error {
	// A unary request that was read whole needs no cancel. If the request loses its place,
	// the handler refuses the call; if the handler is late, [Gate.sweep] closes the
	// connection. A trusted proxy's connection must stay open, so its calls have a cancel.
	if r.at != atHandler || r.conn.ofProxy() || !r.conn.allRead {
		ctx, r.cancel = context.WithCancel(ctx)
	}
	r.Context.Context = ctx
	if r.place = g.requests.Take(r.network, share.Stranger, r.pushOut); r.place == nil {
		r.stop()
		return crowded()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopping {
		r.stop()
		r.place.Release()
		return errStopping
	}
	g.arriving[r] = struct{}{}
	if !g.watching {
		g.watching = true
		time.AfterFunc(sweepTime, g.sweep)
	}
	r.conn.callStarts()
	return nil
}

// begin returns the request of a handler. The caller must call [request.end] after the
// handler.
//
// Errors: the error of the tap if the tap has refused the call; the error of the context if
// a sweep has ended the call.
func begin(ctx context.Context) (*request, error) {
	switch r := ctx.Value(requestKey{}).(type) {
	case *request:
		if r.taken.Swap(true) {
			return nil, status.FromContextError(ctx.Err()).Err()
		}
		return r, nil
	case *doomed:
		return nil, r.err
	}
	return nil, errMethod
}

// stop ends the context of the call, if r.cancel is set.
func (r *request) stop() {
	if r.cancel != nil {
		r.cancel()
	}
}

// arrived ends the wait for the rest of the request. arrived returns false if another client
// has taken the place of the request. Only the first call of arrived has an effect.
func (r *request) arrived() bool {
	if r.whole.Swap(true) {
		return true
	}
	keeps := r.place.SetStranger(false)
	if !keeps {
		r.pushed.Store(true) // the pool calls pushOut too, perhaps only later
	}
	if r.keepsConn() {
		r.conn.arrived()
	}
	r.gate.mu.Lock()
	defer r.gate.mu.Unlock()
	delete(r.gate.arriving, r)
	return keeps
}

// sweep ends the requests that have missed arrivalTime. sweep also gives back the places of
// calls that gRPC has ended without a handler, because the deadline had passed or the server
// lacks the compression of the request. One timer serves all requests.
func (g *Gate) sweep() {
	var over, late []*request
	g.mu.Lock()
	for r := range g.arriving {
		r.sweeps++
		switch {
		case r.Context.Err() != nil:
			over = append(over, r)
		case r.sweeps > int(arrivalTime/sweepTime):
			late = append(late, r)
		}
	}
	if g.watching = len(g.arriving) > 0; g.watching {
		time.AfterFunc(sweepTime, g.sweep)
	}
	g.mu.Unlock()
	for _, r := range over {
		if !r.taken.Swap(true) {
			r.end()
		}
	}
	for _, r := range late {
		if r.late.Store(true); r.cancel == nil { // gRPC has read the request, and waits for a client that does not read
			_ = r.conn.Close()
		}
		r.stop()
	}
}

// leave releases the place among the unfinished requests, when the request of a stream has
// arrived. Only the first call of leave has an effect.
func (r *request) leave() {
	r.arrived()
	r.place.Release()
}

// end lets the connection take over the place of a call that has ended. end runs once for
// each call: r.taken decides whether the handler or a sweep calls end.
func (r *request) end() {
	r.arrived()
	r.done.Store(true)
	r.conn.callEnds(r.place, r.keepsConn())
}

// keepsConn reports whether the call makes its connection busy, so that the connection keeps
// its place while the call runs. A stream of reports keeps no connection busy: a watcher's
// connection has a stream of WatchBundle, too, and package hub bounds the streams of WatchBundle.
func (r *request) keepsConn() bool { return r.at != atReport }

// pushOut ends a call that has lost its place: a request that has not arrived whole, an open
// stream, or a call with an answer that the client does not read. A unary call with a running
// handler keeps its place, since the handler may have changed the database.
//
// If the client does not read an answer, pushOut closes the connection, except that of a
// trusted proxy, which carries the calls of many clients.
func (r *request) pushOut() {
	r.pushed.Store(true)
	r.stop()
	if r.done.Load() && !r.conn.ofProxy() {
		_ = r.conn.Close()
	}
}

// receiving wraps the stream of a call, and calls [request.leave] when the request of the
// stream has arrived.
type receiving struct {
	grpc.ServerStream
	request *request
}

// RecvMsg receives a message. When the request of the stream has arrived, RecvMsg gives back
// the place among the unfinished requests.
func (s *receiving) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if r := s.request; err == nil && r.at != atEnd || errors.Is(err, io.EOF) {
		r.leave()
	}
	return err
}
