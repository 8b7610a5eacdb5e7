package gate

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/share"
)

const (
	// MaxMetadata bounds the metadata of a call, in bytes as HTTP/2 counts them (RFC 9113,
	// section 6.5.2). An access token has at most 8 KiB.
	MaxMetadata = 16 << 10
	// fieldOverhead is what HTTP/2 counts for a field, beside its name and value.
	fieldOverhead = 32
	// arrivalTime bounds the time from the headers of a request until the whole request
	// has arrived. The largest request has 64 KiB.
	arrivalTime = 10 * time.Second
	// sweepTime is the time between two looks at the requests that have not arrived, and
	// bounds how long a call that gRPC has ended without a handler keeps its place.
	sweepTime = arrivalTime / 100
	// retryDelay is how long a client should wait at least that a bound has refused, and
	// retrySpread is how much longer at most: so that not all clients come back at once.
	retryDelay  = time.Second
	retrySpread = time.Second
)

// request is an unfinished request. The context of the call is the request itself, so that
// the interceptors find the request.
type request struct {
	caller.Context
	gate         *Gate
	conn         *conn  // nil if the connection is not of a [Listener]
	peer         string // the network of the source
	at           arrival
	place        *share.Place
	cancel       context.CancelFunc // nil if the whole request was read before the tap
	before, next *request           // in the list of requests that have not arrived whole; gate.mu guards both
	sweeps       int                // that have found the request in the list; gate.mu guards sweeps

	taken  atomic.Bool // by a handler, or by a sweep after the end of a call without a handler
	whole  atomic.Bool // the request has arrived, or has ended
	late   atomic.Bool // the request has not arrived in time
	pushed atomic.Bool // the place was taken away for another peer
	done   atomic.Bool // the handler has returned
}

type requestKey struct{}

// Value returns the request for requestKey.
func (r *request) Value(key any) any {
	if key == (requestKey{}) {
		return r
	}
	return r.Context.Value(key)
}

// Err is as of every context. For a request that has not arrived in time, Err returns
// context.DeadlineExceeded, which gRPC answers as DEADLINE_EXCEEDED.
func (r *request) Err() error {
	err := r.Context.Err()
	if err != nil && r.late.Load() {
		return context.DeadlineExceeded
	}
	return err
}

// admit takes one of the gate's places for a request, and starts the time limit within
// which the whole request must arrive. From then on r serves as the context of the call,
// derived from ctx.
//
// Errors: those of [crowded] if the request gets no place; errStopping if the server stops.
func (g *Gate) admit(ctx context.Context, r *request) error {
	// Most unary requests have been read whole by now, and the end of their connection, if
	// need be, ends them. A trusted proxy's connection has to go on.
	if r.at != atHandler || r.conn == nil || r.conn.place == nil || !r.conn.allRead {
		ctx, r.cancel = context.WithCancel(ctx)
	}
	r.Context.Context = ctx
	if r.place = g.requests.Take(r.peer, share.Stranger, r.pushOut); r.place == nil {
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
	if r.before = g.last; r.before == nil {
		g.first = r
	} else {
		r.before.next = r
	}
	g.last = r
	if !g.watching {
		g.watching = true
		time.AfterFunc(sweepTime, g.sweep)
	}
	if r.conn != nil {
		r.conn.began()
	}
	return nil
}

// begin returns the request behind the context of a handler. The caller must call end after
// the handler.
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

// stop ends the context of a request that was not read whole before the tap.
func (r *request) stop() {
	if r.cancel != nil {
		r.cancel()
	}
}

// arrived notes that the whole request has arrived, or that no more of it is awaited, and
// reports whether the request has its place still. Only the first call has an effect.
func (r *request) arrived() bool {
	if r.whole.Swap(true) {
		return true
	}
	keeps := r.place.SetStranger(false)
	if r.conn != nil {
		r.conn.arrived()
	}
	g := r.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.before == nil {
		g.first = r.next
	} else {
		r.before.next = r.next
	}
	if r.next == nil {
		g.last = r.before
	} else {
		r.next.before = r.before
	}
	r.before, r.next = nil, nil
	return keeps
}

// sweep ends the requests that have not arrived in time, and gives back the places of the
// calls that gRPC has ended without a handler: the deadline had passed before the handler,
// or the server lacks the compression of the request. One timer serves all requests.
func (g *Gate) sweep() {
	var over, late []*request
	g.mu.Lock()
	for r := g.first; r != nil; r = r.next {
		r.sweeps++
		switch {
		case r.Context.Err() != nil:
			over = append(over, r)
		case r.sweeps > int(arrivalTime/sweepTime):
			late = append(late, r)
		}
	}
	if g.watching = g.first != nil; g.watching {
		time.AfterFunc(sweepTime, g.sweep)
	}
	g.mu.Unlock()
	for _, r := range over {
		if !r.taken.Swap(true) {
			r.end()
		}
	}
	for _, r := range late {
		if r.late.Store(true); r.cancel == nil { // gRPC waits for a client that does not read
			_ = r.conn.Close()
		}
		r.stop()
	}
}

// leave gives the place of a request back. Only the first call has an effect.
func (r *request) leave() {
	r.arrived()
	r.place.Release()
}

// end notes the end of a call. The connection keeps the place until the answer is on its
// way. end runs once for each call: taken decides between the handler and a sweep.
func (r *request) end() {
	r.arrived()
	r.done.Store(true)
	if r.conn == nil {
		r.place.Release()
		return
	}
	r.conn.ended(r.place)
}

// pushOut ends a call that has lost its place to another peer: a call that has not arrived,
// or one with an answer that the client does not read. A call that runs keeps its place: it
// may have changed the database already. The connection of a client that does not read ends;
// the connection of a trusted proxy carries the calls of others, and goes on.
func (r *request) pushOut() {
	r.pushed.Store(true)
	r.stop()
	if r.done.Load() && r.conn != nil && r.conn.place != nil {
		_ = r.conn.Close()
	}
}

// pushedOut reports whether the call has lost its place to another peer.
func (r *request) pushedOut() bool { return r.pushed.Load() }

// receiving is a stream that notes the arrival of its request.
type receiving struct {
	grpc.ServerStream
	request *request
}

// RecvMsg receives a message. A request that has arrived gives back its place among the
// unfinished requests.
func (s *receiving) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if r := s.request; err == nil && r.at != atEnd || errors.Is(err, io.EOF) {
		r.leave()
	}
	return err
}
