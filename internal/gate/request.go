package gate

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

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
	// retryDelay is how long a client should wait at least that a bound has refused, and
	// retrySpread is how much longer at most: so that not all clients come back at once.
	retryDelay  = time.Second
	retrySpread = time.Second
)

// request is an unfinished request. The context of the call is the request itself, so that
// the interceptors find the request.
type request struct {
	context.Context
	gate         *Gate
	conn         *conn  // nil if the connection is not of a [Listener]
	peer         string // the network of the source
	at           arrival
	place        *share.Place
	cancel       context.CancelFunc
	began        time.Time
	before, next *request    // in the list of requests that have not arrived whole; gate.mu guards both
	forget       func() bool // stops the call of end at the end of the context

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
	r.Context, r.cancel = context.WithCancel(ctx)
	if r.place = g.requests.TakeStranger(r.peer, r.pushOut); r.place == nil {
		r.cancel()
		return crowded()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopping {
		r.cancel()
		r.place.Release()
		return errStopping
	}
	r.began = time.Now()
	if r.before = g.last; r.before == nil {
		g.first = r
	} else {
		r.before.next = r
	}
	g.last = r
	if !g.watching {
		g.watching = true
		time.AfterFunc(arrivalTime, g.endLate)
	}
	if r.conn != nil {
		r.conn.began()
	}
	// gRPC ends the context of a call at the end of the call, also if no handler has run.
	r.forget = context.AfterFunc(r.Context, r.end)
	return nil
}

// arrived notes that the whole request has arrived, or that no more of it is awaited. Only
// the first call has an effect.
func (r *request) arrived() {
	if r.whole.Swap(true) {
		return
	}
	r.place.SetStranger(false)
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
}

// endLate ends the requests that have not arrived in time, and comes again as long as
// requests have not arrived: one timer for all of them.
func (g *Gate) endLate() {
	var late []*request
	g.mu.Lock()
	r := g.first
	for ; r != nil && time.Since(r.began) >= arrivalTime; r = r.next {
		late = append(late, r)
	}
	if g.watching = g.first != nil; g.watching {
		wait := time.Second / 10 // the late ones end soon
		if r != nil {
			wait = max(wait, arrivalTime-time.Since(r.began))
		}
		time.AfterFunc(wait, g.endLate)
	}
	g.mu.Unlock()
	for _, r := range late {
		r.late.Store(true)
		r.cancel()
	}
}

// leave gives the place of a request back. Only the first call has an effect.
func (r *request) leave() {
	r.arrived()
	r.place.Release()
}

// end notes the end of a call. The connection keeps the place until the answer is on its
// way. end runs once for each call.
func (r *request) end() {
	r.arrived()
	r.done.Store(true)
	if r.conn == nil {
		r.place.Release()
		return
	}
	r.conn.ended(r.place)
}

// answered notes the end of a call when the handler has returned.
func (r *request) answered() {
	if r.forget() { // otherwise the end of the context has called end
		r.end()
	}
}

// pushOut ends a call that has lost its place to another peer: a call that has not arrived,
// or one with an answer that the client does not read. A call that runs keeps its place: it
// may have changed the database already. The connection of a client that does not read ends;
// the connection of a trusted proxy carries the calls of others, and goes on.
func (r *request) pushOut() {
	r.pushed.Store(true)
	r.cancel()
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
