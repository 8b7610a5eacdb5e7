package e2e

import (
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// weather is what a proxy does to the connections over it. The zero value does
// them no harm.
type weather struct {
	refuse  bool          // hangs up on new ones
	swallow bool          // takes what comes, and passes nothing on: such a connection is dead for good
	breaks  int           // each new one is cut after so many bytes at most; 0: never
	delay   time.Duration // each piece is late by this
	rate    int           // bytes a second; 0: as they come
}

// proxy is the way to a server, which fails as networks do.
type proxy struct {
	listener net.Listener
	running  sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	backend string
	weather weather
	tries   int // how often somebody has connected
	open    map[*link]bool
}

// link is one connection over a proxy, seen from both sides.
type link struct {
	proxy       *proxy
	front, back net.Conn

	mu   sync.Mutex
	left int  // bytes until it breaks; below zero: it does not
	dead bool // swallows for good
}

// newProxy makes a proxy that is closed when the test ends.
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

// lead leads new connections to another server.
func (p *proxy) lead(backend string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.backend = backend
}

// move leads to another server, and away from the one before.
func (p *proxy) move(backend string) {
	p.lead(backend)
	p.cut()
}

// set changes the weather.
func (p *proxy) set(w weather) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.weather = w
	for l := range p.open {
		l.admit(0, w.swallow)
	}
}

// cut closes all that is open.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.open {
		l.close()
	}
}

// cutHalf closes about half of what is open.
func (p *proxy) cutHalf() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.open {
		if rand.IntN(2) == 0 {
			l.close()
		}
	}
}

// tried is how often somebody has connected.
func (p *proxy) tried() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tries
}

func (p *proxy) now() weather {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.weather
}

func (p *proxy) accept() {
	for {
		front, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.join(front)
	}
}

// join connects somebody with the server, if the weather allows.
func (p *proxy) join(front net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tries++
	back, err := net.Dial("tcp", p.backend)
	if err != nil || p.weather.refuse || p.closed {
		front.Close()
		if err == nil {
			back.Close()
		}
		return
	}
	l := &link{proxy: p, front: front, back: back, left: -1}
	if p.weather.breaks > 0 {
		l.left = 1 + rand.N(p.weather.breaks)
	}
	p.open[l] = true
	p.running.Go(func() { l.carry(back, front) })
	p.running.Go(func() { l.carry(front, back) })
}

// carry carries bytes one way, until either side has gone or the link breaks.
func (l *link) carry(to, from net.Conn) {
	defer l.leave()
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		w := l.proxy.now()
		wait := w.delay
		if w.rate > 0 {
			wait += time.Duration(n) * time.Second / time.Duration(w.rate)
		}
		if wait > 0 {
			<-time.After(wait)
		}
		n, broken := l.admit(n, w.swallow)
		if _, err := to.Write(buf[:n]); err != nil || broken {
			return
		}
	}
}

// admit says how many of n bytes get through, and whether the link breaks then.
func (l *link) admit(n int, swallow bool) (_ int, broken bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = l.dead || swallow
	if l.dead {
		return 0, false
	}
	if l.left < 0 {
		return n, false
	}
	n = min(n, l.left)
	l.left -= n
	return n, l.left == 0
}

func (l *link) close() {
	l.front.Close()
	l.back.Close()
}

func (l *link) leave() {
	l.close()
	l.proxy.mu.Lock()
	defer l.proxy.mu.Unlock()
	delete(l.proxy.open, l)
}
