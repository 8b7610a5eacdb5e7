package e2e

import (
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// lineFaults holds the faults of a proxy's connections. The zero value has no fault.
type lineFaults struct {
	refuse  bool          // closes new connections at once
	swallow bool          // reads and drops all bytes; a link stays so, even after the next set
	breaks  int           // after how many bytes, at most, each new connection is cut; 0 means never
	delay   time.Duration // delays each piece of data
	rate    int           // bytes a second; 0 means without a bound
}

// proxy forwards connections to a server and fails as networks do.
type proxy struct {
	listener net.Listener
	running  sync.WaitGroup

	mu       sync.Mutex // guards the fields below
	closed   bool
	backend  string // the address of the server
	faults   lineFaults
	attempts int // connections from clients, failed connections included
	open     map[*link]bool
}

// link joins a client's connection with the proxy's connection to the server.
type link struct {
	proxy       *proxy
	front, back net.Conn

	mu        sync.Mutex // guards the fields below
	bytesLeft int        // bytes until the link breaks; below zero means never
	swallows  bool       // drops all bytes
}

// newProxy makes a proxy that ends with the test.
func newProxy(t *testing.T, backend string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: listener, backend: backend, open: map[*link]bool{}}
	p.running.Go(p.accept)
	t.Cleanup(func() {
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		listener.Close()
		p.cut()
		p.running.Wait()
	})
	return p
}

func (p *proxy) addr() string { return p.listener.Addr().String() }

// setBackend sets the server for new connections.
func (p *proxy) setBackend(backend string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.backend = backend
}

// move sets the server for new connections, and cuts the open connections.
func (p *proxy) move(backend string) {
	p.setBackend(backend)
	p.cut()
}

// set changes the faults.
func (p *proxy) set(f lineFaults) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = f
	for l := range p.open {
		l.pass(0, f.swallow)
	}
}

// cut closes all open connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.open {
		l.close()
	}
}

// cutHalf closes about half of the open connections.
func (p *proxy) cutHalf() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.open {
		if rand.IntN(2) == 0 {
			l.close()
		}
	}
}

// connections returns the number of clients' connections so far, failed connections
// included.
func (p *proxy) connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.attempts
}

func (p *proxy) faultsNow() lineFaults {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.faults
}

func (p *proxy) accept() {
	for {
		front, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.connect(front)
	}
}

// connect connects a client with the server, unless the faults refuse new connections.
func (p *proxy) connect(front net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attempts++
	back, err := net.Dial("tcp", p.backend)
	if err != nil || p.faults.refuse || p.closed {
		front.Close()
		if err == nil {
			back.Close()
		}
		return
	}
	l := &link{proxy: p, front: front, back: back, bytesLeft: -1}
	if p.faults.breaks > 0 {
		l.bytesLeft = 1 + rand.N(p.faults.breaks)
	}
	p.open[l] = true
	p.running.Go(func() { l.forward(back, front) })
	p.running.Go(func() { l.forward(front, back) })
}

// forward copies bytes in one direction, until either side closes or the link breaks.
func (l *link) forward(to, from net.Conn) {
	defer l.remove()
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		f := l.proxy.faultsNow()
		wait := f.delay
		if f.rate > 0 {
			wait += time.Duration(n) * time.Second / time.Duration(f.rate)
		}
		if wait > 0 {
			<-time.After(wait)
		}
		n, broken := l.pass(n, f.swallow)
		if _, err := to.Write(buf[:n]); err != nil || broken {
			return
		}
	}
}

// pass returns the number of bytes to forward out of n. broken reports that the link breaks
// after these bytes. With swallow, the link drops all bytes from now on.
func (l *link) pass(n int, swallow bool) (_ int, broken bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.swallows = l.swallows || swallow
	if l.swallows {
		return 0, false
	}
	if l.bytesLeft < 0 {
		return n, false
	}
	n = min(n, l.bytesLeft)
	l.bytesLeft -= n
	return n, l.bytesLeft == 0
}

func (l *link) close() {
	l.front.Close()
	l.back.Close()
}

// remove closes the link and removes the link from the proxy.
func (l *link) remove() {
	l.close()
	l.proxy.mu.Lock()
	defer l.proxy.mu.Unlock()
	delete(l.proxy.open, l)
}
