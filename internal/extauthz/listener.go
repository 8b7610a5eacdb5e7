package extauthz

import (
	"net"

	"github.com/watchword-auth/watchword/internal/share"
)

// listener bounds the number of connections open at a time, in all and of one network.
type listener struct {
	net.Listener
	places *share.Pool
}

// bounded returns a listener with at most as many open connections as the pool has places.
func bounded(l net.Listener, places *share.Pool) *listener { return &listener{l, places} }

// Accept returns the next connection for which a place is free, and closes every other connection.
func (l *listener) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if place := l.places.Take(networkOf(accepted.RemoteAddr()), share.Ordinary, nil); place != nil {
			return &conn{accepted, place}, nil
		}
		_ = accepted.Close()
	}
}

// conn holds a connection and the place (see [share.Place]) that counts the connection.
type conn struct {
	net.Conn
	place *share.Place
}

// Close closes the connection, and counts it no longer in the bound of connections.
func (c *conn) Close() error {
	c.place.Release()
	return c.Conn.Close()
}
