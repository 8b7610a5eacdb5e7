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

// maxUndelivered bounds how long a client may leave every answer unread.
const maxUndelivered = 30 * time.Second

// errUndelivered ends the connection of a client that does not read.
var errUndelivered = errors.New("gate: the client leaves its answers unread")

// conn is an accepted connection. A conn is safe for concurrent use.
//
// The place of a call lasts until the answer is on its way to the client: gRPC keeps the
// request, its metadata and the answer until then, also after the handler has returned. A
// client that sends calls and reads no answer would hold them without a place. So a call
// that ends gives its place to the connection, which releases one place for each stream that
// ends on the wire.
type conn struct {
	net.Conn
	listener *Listener
	place    *share.Place  // nil for a trusted proxy
	proxied  *share.Place  // the place of a trusted proxy; else nil
	source   caller.Source // of the calls, unless a trusted proxy forwards them
	network  string        // of source
	heardAny sync.Once     // runs at the first byte, or at Close

	// allRead says that the last read has brought every open request to its end. Only the
	// goroutine of gRPC that reads from the connection uses allRead: the goroutine also runs
	// the tap, for the requests of the last read.
	allRead bool

	mu     sync.Mutex      // guards the fields below; held while place is told
	calls  int             // from the headers until the end of the handler
	whole  int             // of calls, those with a request that has arrived
	open   map[uint32]bool // streams that have not ended on the wire; true: the client has ended its side
	halves int             // streams in open that the client can still send data on
	held   []*share.Place  // of calls that have ended, and their answers not
	since  time.Time       // when a place was released last and others stayed, or the first one was held
	closed bool
}

// address is the address of a connection's peer, by which a call finds its connection.
type address struct {
	net.Addr
	conn *conn
}

// RemoteAddr returns the address of the peer.
func (c *conn) RemoteAddr() net.Addr { return address{c.Conn.RemoteAddr(), c} }

// Read reads from the connection. With the first byte the connection stops being silent.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heardAny.Do(c.spoke)
	}
	return n, err
}

// Close closes the connection, and gives all its places back.
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

// spoke removes the connection from the silent ones.
func (c *conn) spoke() {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	delete(c.listener.silent, c)
}

// leave gives the place of the connection back.
func (c *conn) leave() {
	for _, place := range []*share.Place{c.place, c.proxied} {
		if place != nil {
			place.Release()
		}
	}
}

// heard notes the frames of one read. whole says that the last frame has arrived to its end.
//
// Errors: errUndelivered if the client has left every answer unread for too long. A trusted
// proxy, which carries the calls of many clients, may leave the answers unread.
func (c *conn) heard(heads []head, whole bool) error {
	if c == nil {
		return nil
	}
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
	if c.place != nil && len(c.held) > 0 && time.Since(c.since) > maxUndelivered {
		return errUndelivered
	}
	return nil
}

// delivered notes that streams have ended on the wire.
func (c *conn) delivered(streams ...uint32) {
	if c == nil || len(streams) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, stream := range streams {
		c.closeLocked(stream)
	}
	c.settleLocked()
}

// closeLocked removes a stream that has ended on the wire. c.mu must be held.
func (c *conn) closeLocked(stream uint32) {
	if ended, known := c.open[stream]; known && !ended {
		c.halves--
	}
	delete(c.open, stream)
}

// began notes that a call begins.
func (c *conn) began() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
}

// arrived notes that the request of a call has arrived. From then on the connection is not
// idle: a client that leaves requests unfinished keeps no other client out.
func (c *conn) arrived() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.whole++; c.whole == 1 && c.place != nil {
		c.place.SetStranger(false)
	}
}

// ended notes that a call has ended, with a request that counts as arrived, and takes over
// the place of the call until the answer is on its way.
func (c *conn) ended(place *share.Place) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls--
	if c.whole--; c.whole == 0 && c.place != nil {
		c.place.SetStranger(true)
	}
	if c.closed {
		place.Release()
		return
	}
	if len(c.held) == 0 {
		c.since = time.Now()
	}
	place.SetStranger(true) // gives way first, and with it the connection
	c.held = append(c.held, place)
	c.settleLocked()
}

// settleLocked releases the places of calls that have ended on the wire. c.mu must be held.
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
