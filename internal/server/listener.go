package server

import (
	"net"
	"sync"
)

// listener tracks the silent connections: connections on which the client has not sent
// a byte. When the server stops, gRPC and HTTP wait for the first bytes of every open
// connection. A silent connection, such as a load balancer's probe, would delay the
// stop.
type listener struct {
	net.Listener
	mu     sync.Mutex
	silent map[*conn]struct{} // connections without a byte from the client
	closed bool
}

func newListener(l net.Listener) *listener {
	return &listener{Listener: l, silent: map[*conn]struct{}{}}
}

// Accept waits for the next connection.
func (l *listener) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: accepted, listener: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = accepted.Close()
	} else {
		l.silent[c] = struct{}{}
	}
	return c, nil
}

// closeSilent closes every silent connection, and every connection accepted later.
func (l *listener) closeSilent() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for c := range l.silent {
		_ = c.Conn.Close()
	}
}

// conn is an accepted connection. heard runs once: at the first byte, or at Close.
type conn struct {
	net.Conn
	listener *listener
	heard    sync.Once
}

// Read reads from the connection. With the first byte the connection stops being
// silent.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heard.Do(c.forget)
	}
	return n, err
}

// Close closes the connection.
func (c *conn) Close() error {
	c.heard.Do(c.forget)
	return c.Conn.Close()
}

// forget removes the connection from the silent ones.
func (c *conn) forget() {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	delete(c.listener.silent, c)
}
