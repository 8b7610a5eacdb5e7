package gate

import (
	"errors"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/share"
)

// maxUndelivered bounds the time for which a client leaves all its answers unread.
const maxUndelivered = 30 * time.Second

// errUndelivered ends the connection of a client that does not read its answers.
var errUndelivered = errors.New("gate: the client leaves its answers unread")

// conn holds an accepted connection, and the places (see [share.Place]) that the connection has. A
// conn is safe for concurrent use.
//
// A call holds its place in [Gate].requests until the answer of the call is written to the
// connection: until the answer is written, gRPC keeps request and answer in memory. So when a
// call ends, the connection takes over the place of the call, and releases one place each time a
// stream ends on the wire.
//
// The zero conn stands for a connection that no [Listener] has accepted, as in tests.
type conn struct {
	net.Conn
	listener *Listener
	place    *share.Place  // the place of a client's connection; nil for a trusted proxy
	proxied  *share.Place  // the place of a trusted proxy's connection; nil for any other client
	source   caller.Source // the address of the peer; a trusted proxy names the source of each call
	network  string        // [caller.Source.Network] of source
	heardAny sync.Once     // runs at the first byte, or at Close

	// allRead is true if the last read has brought every open request to its end. One
	// goroutine of gRPC reads from the connection, and then runs the tap for the requests
	// that have come: only this goroutine uses allRead.
	allRead bool

	// mu guards the fields below, and is locked during calls of place.SetStranger.
	mu     sync.Mutex
	calls  int             // running calls, each from its headers until the end of its handler
	whole  int             // running calls with a request that has arrived whole
	open   map[uint32]bool // streams that are open on the wire; true: the client has ended its side
	halves int             // streams in open on which the client can still send data
	held   []*share.Place  // places of calls that have ended, with answers still to be written
	since  time.Time       // since when the client has read no answer: when held got its first place, or when places were last released and some stayed
	closed bool
}

// address holds the address of a connection's peer, and the conn: gRPC gives [Gate.Tap] the
// address, and so Tap finds the conn of a call.
type address struct {
	net.Addr
	conn *conn
}

// ofProxy reports whether the client is a trusted proxy, which carries the calls of many
// clients.
func (c *conn) ofProxy() bool { return c.place == nil }

// RemoteAddr returns the address of the peer.
func (c *conn) RemoteAddr() net.Addr { return address{c.Conn.RemoteAddr(), c} }

// Read reads from the connection. At the first byte, Read removes the connection from the
// silent connections of the listener; see [Listener.CloseSilent].
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heardAny.Do(c.spoke)
	}
	return n, err
}

// Close closes the connection, and gives back the places of the connection and its calls.
func (c *conn) Close() error {
	c.heardAny.Do(c.spoke)
	c.leave()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, place := range c.held {
		place.Release()
	}
	c.held = nil
	return c.Conn.Close()
}

// spoke removes the connection from the silent connections of the listener.
func (c *conn) spoke() {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	delete(c.listener.silent, c)
}

// leave gives the place of the connection back to the [Listener].
func (c *conn) leave() {
	for _, place := range []*share.Place{c.place, c.proxied} {
		if place != nil {
			place.Release()
		}
	}
}

// heard notes which streams the frames of one read have opened and ended. The parameter heads
// holds the frames that begin or end a stream. The parameter whole is true if the last frame of
// the read has arrived to its end.
//
// Errors: errUndelivered if the client has left every answer unread for maxUndelivered. A
// trusted proxy, which carries the calls of many clients, is allowed to leave answers unread.
func (c *conn) heard(heads []head, whole bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range heads {
		if f.kind == http2.FrameRSTStream {
			c.closeLocked(f.stream)
			c.settleLocked()
			continue
		}
		ended, known := c.open[f.stream]
		if !known && f.kind == http2.FrameHeaders {
			if c.open == nil {
				c.open = map[uint32]bool{}
			}
			c.open[f.stream], known = false, true
			c.halves++
		}
		if known && !ended && f.endsStream() {
			c.open[f.stream] = true
			c.halves--
		}
	}
	c.allRead = whole && c.halves == 0
	if !c.ofProxy() && len(c.held) > 0 && time.Since(c.since) > maxUndelivered {
		return errUndelivered
	}
	return nil
}

// delivered releases the places of calls that have ended, when the server has written the ends
// of the calls' streams to the connection.
func (c *conn) delivered(streams ...uint32) {
	if len(streams) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, stream := range streams {
		c.closeLocked(stream)
	}
	c.settleLocked()
}

// closeLocked removes a stream that has ended on the wire from c.open.
func (c *conn) closeLocked(stream uint32) {
	if ended, known := c.open[stream]; known && !ended {
		c.halves--
	}
	delete(c.open, stream)
}

// callStarts counts a call as running, when the headers of the call have arrived.
func (c *conn) callStarts() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
}

// arrived counts a call when the whole request of the call has arrived. From then on the
// connection is busy, and keeps its place among the connections. A connection that has only
// unfinished requests stays idle: otherwise such connections could keep other clients out.
func (c *conn) arrived() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.whole++; c.whole == 1 && !c.ofProxy() {
		c.place.SetStranger(false)
	}
}

// callEnds takes over the place of a call that has ended, until the answer is written to the
// connection. The parameter counted tells whether [conn.arrived] has counted the call.
func (c *conn) callEnds(place *share.Place, counted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls--
	if counted {
		if c.whole--; c.whole == 0 && !c.ofProxy() {
			c.place.SetStranger(true)
		}
	}
	if c.closed {
		place.Release()
		return
	}
	if len(c.held) == 0 {
		c.since = time.Now()
	}
	place.SetStranger(true) // a new call takes the place of a [share.Stranger] first, and [request.pushOut] then closes this connection
	c.held = append(c.held, place)
	c.settleLocked()
}

// settleLocked releases the places of calls that have ended on the wire. Of the streams in
// c.open, c.calls have a running call. Each of the other streams needs one place in c.held.
// settleLocked releases the places beyond that number.
func (c *conn) settleLocked() {
	over := min(len(c.held), len(c.held)-len(c.open)+c.calls)
	if over <= 0 {
		return
	}
	left := len(c.held) - over
	for _, place := range c.held[left:] {
		place.Release()
	}
	clear(c.held[left:])
	if c.held = c.held[:left]; left > 0 {
		c.since = time.Now()
	}
}
