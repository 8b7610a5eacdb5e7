package gate

import (
	"net"
	"net/netip"
	"sync"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/share"
)

// Listener bounds the connections of a listener, in all and per peer, and closes the
// connections that a client leaves silent when the server stops.
//
// gRPC and HTTP servers wait for the first bytes of every open connection before they stop.
// A silent connection, such as the probe of a load balancer, would delay the stop.
type Listener struct {
	net.Listener
	proxies caller.Proxies
	places  *share.Pool

	mu     sync.Mutex         // guards the fields below
	silent map[*conn]struct{} // connections without a byte from the client
	closed bool
}

// Listen returns a listener with bounds: at most all connections at a time, and at most
// perPeer of one network. Idle connections, without a call, give way first: to connections
// of other networks, and to newer ones of the same network. Connections of trusted proxies
// count for neither bound, since a proxy carries the calls of many clients.
func Listen(l net.Listener, proxies caller.Proxies, all, perPeer int) *Listener {
	return &Listener{Listener: l, proxies: proxies, places: share.NewPool(all, perPeer), silent: map[*conn]struct{}{}}
}

// Accept waits for the next connection that gets a place, and closes the others.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := l.admit(accepted); c != nil {
			return c, nil
		}
		_ = accepted.Close()
	}
}

// admit takes a place for a connection. admit returns nil if there is none, or if the
// server stops.
func (l *Listener) admit(accepted net.Conn) net.Conn {
	c := &conn{Conn: accepted, listener: l}
	if !l.trusted(accepted.RemoteAddr()) {
		peer := l.proxies.Source(accepted.RemoteAddr(), nil).Network()
		if c.place = l.places.TakeRenewing(peer, func() { _ = accepted.Close() }); c.place == nil {
			return nil
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		c.leave()
		return nil
	}
	l.silent[c] = struct{}{}
	return c
}

// trusted reports whether a connection comes from a trusted proxy.
func (l *Listener) trusted(addr net.Addr) bool {
	at, err := netip.ParseAddrPort(addr.String())
	return err == nil && l.proxies.Trust(at.Addr())
}

// CloseSilent closes every silent connection, and every connection accepted later.
func (l *Listener) CloseSilent() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for c := range l.silent {
		_ = c.Conn.Close()
	}
}

// conn is an accepted connection.
type conn struct {
	net.Conn
	listener *Listener
	place    *share.Place // nil for a trusted proxy
	heard    sync.Once    // runs at the first byte, or at Close

	mu    sync.Mutex // held while place is told
	calls int        // that run
}

// address is the address of a connection's peer, by which a call finds its connection.
type address struct {
	net.Addr
	conn *conn
}

// RemoteAddr returns the address of the peer.
func (c *conn) RemoteAddr() net.Addr { return address{c.Conn.RemoteAddr(), c} }

// called counts a call that begins (1) or ends (-1). A connection with a call is not idle.
func (c *conn) called(change int) {
	if c.place == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.calls
	c.calls += change
	if was == 0 || c.calls == 0 {
		c.place.SetStranger(c.calls == 0)
	}
}

// Read reads from the connection. With the first byte the connection stops being silent.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heard.Do(c.spoke)
	}
	return n, err
}

// Close closes the connection, and gives the place back.
func (c *conn) Close() error {
	c.heard.Do(c.spoke)
	c.leave()
	return c.Conn.Close()
}

// spoke removes the connection from the silent ones.
func (c *conn) spoke() {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	delete(c.listener.silent, c)
}

// leave gives the place back.
func (c *conn) leave() {
	if c.place != nil {
		c.place.Release()
	}
}
