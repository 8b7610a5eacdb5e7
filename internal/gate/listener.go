package gate

import (
	"net"
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
	proxied *share.Pool // of trusted proxies

	mu     sync.Mutex         // guards the fields below
	silent map[*conn]struct{} // connections without a byte from the client
	closed bool
}

// Listen returns a listener with bounds: at most all connections at a time, of which one
// network has at most a half. Idle connections, without a call, give way first: to
// connections of other networks, and to newer ones of the same network. Connections of
// trusted proxies have a bound of their own, which is as large: a proxy carries the calls of
// many clients, so no connection of a proxy gives way. Known networks keep their connections
// at a tie; see package share.
func Listen(l net.Listener, proxies caller.Proxies, all int, known *share.Known) *Listener {
	return &Listener{
		Listener: l, proxies: proxies, silent: map[*conn]struct{}{},
		places:  share.NewPool(share.Limits{Places: all, PerPeer: all / 2, Known: known}),
		proxied: share.NewPool(share.Limits{Places: all, PerPeer: all, KeepOrdinary: true}),
	}
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
	c := &conn{Conn: accepted, listener: l, source: l.proxies.Source(accepted.RemoteAddr(), nil)}
	c.network = c.source.Network()
	if l.proxies.TrustPeer(accepted.RemoteAddr()) {
		c.proxied = l.proxied.Take(c.network, share.Ordinary, nil) // nothing takes the place away
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

// CloseSilent closes every silent connection, and every connection accepted later.
func (l *Listener) CloseSilent() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for c := range l.silent {
		_ = c.Conn.Close()
	}
}
