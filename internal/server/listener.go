package server

import (
	"net"
	"sync"
)

// listener knows the connections that have not sent a byte yet. A stop waits for
// calls in flight, and a connection that never began one, such as a probe of a
// load balancer, would hold it: both gRPC and HTTP wait for it to say hello.
type listener struct {
	net.Listener
	mu     sync.Mutex
	silent map[*conn]struct{}
	closed bool
}

func newListener(l net.Listener) *listener {
	return &listener{Listener: l, silent: map[*conn]struct{}{}}
}

// Accept waits for a connection.
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

// closeSilent closes the connections that have sent nothing, and those to come.
func (l *listener) closeSilent() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for c := range l.silent {
		_ = c.Conn.Close()
	}
}

type conn struct {
	net.Conn
	listener *listener
	heard    sync.Once
}

// Read reads from the connection.
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

func (c *conn) forget() {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	delete(c.listener.silent, c)
}
