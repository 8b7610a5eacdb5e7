package gate

import (
	"net"
	"sync"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/share"
)

// Listener bounds the connections of a listener, in all and per peer. When the server stops,
// [Listener.CloseSilent] closes the connections from which no byte has come.
//
// Before gRPC and HTTP servers stop, the servers wait for the first bytes of every open
// connection. A silent connection, such as the probe of a load balancer, would delay the
// stop.
type Listener struct {
	net.Listener
	proxies caller.Proxies
	places  *share.Pool
	proxied *share.Pool // the places for connections of trusted proxies

	mu     sync.Mutex         // guards the fields below
	silent map[*conn]struct{} // connections from which no byte has come
	closed bool
}

// Listen returns a listener that bounds the connections open at a time. The parameter `all` bounds
// the connections of clients, of which one network has at most half, and `proxied` bounds the
// connections of trusted proxies.
//
// A connection without a running call is idle. When all places are taken, a new connection
// closes a connection of the network that holds most: the newest idle connection, or else the
// newest connection. If the network of a new connection already has as many connections as
// allowed, the new connection closes the oldest idle connection of that network. When all
// networks have equally many connections, the networks in known keep their connections; see
// [share.Known].
//
// A proxy carries the calls of many clients, so a connection of a trusted proxy keeps its
// place. Some proxies make a connection for each call. So `proxied` must be above the number of
// calls that the gate admits: otherwise few clients could fill all connections of the proxy,
// and the calls of other clients would not reach the gate, which divides the places for calls.
func Listen(l net.Listener, proxies caller.Proxies, all, proxied int, known *share.Known) *Listener {
	return &Listener{
		Listener: l, proxies: proxies, silent: map[*conn]struct{}{},
		places:  share.NewPool(share.Limits{Places: all, PerPeer: all / 2, Known: known}),
		proxied: share.NewPool(share.Limits{Places: proxied, PerPeer: proxied, KeepOrdinary: true}),
	}
}

// Accept returns the next connection that fits within the bound on connections. Accept closes
// each connection for which the bound has no place.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := l.takePlace(accepted); c != nil {
			return c, nil
		}
		_ = accepted.Close()
	}
}

// takePlace takes a place for an accepted connection, and returns the connection as a [conn].
// takePlace returns nil if no place is free for the connection, or if the server stops.
func (l *Listener) takePlace(accepted net.Conn) net.Conn {
	c := &conn{Conn: accepted, listener: l, source: l.proxies.Source(accepted.RemoteAddr(), nil)}
	c.network = c.source.Network()
	if l.proxies.TrustPeer(accepted.RemoteAddr()) {
		c.proxied = l.proxied.Take(c.network, share.Ordinary, nil) // no function evicted, since the pool takes no ordinary place away
	} else {
		c.place = l.places.Take(c.network, share.Renewing, func() { _ = accepted.Close() })
	}
	if c.place == nil && c.proxied == nil {
		return nil
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

// CloseSilent closes every silent connection, and every connection that is accepted later.
func (l *Listener) CloseSilent() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for c := range l.silent {
		_ = c.Conn.Close()
	}
}

// Stats returns the numbers of the connections of clients, and of the connections of trusted
// proxies, for metrics.
func (l *Listener) Stats() (clients, proxied share.Stats) { return l.places.Stats(), l.proxied.Stats() }
