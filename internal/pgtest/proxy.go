package pgtest

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Proxy stands before a database, sees what is asked of it, and fails in the ways
// in which networks do. It is safe for concurrent use.
type Proxy struct {
	uri      string
	target   string
	listener net.Listener
	tasks    sync.WaitGroup

	mu     sync.Mutex
	flows  chan struct{} // closed unless the proxy is frozen
	links  map[*link]bool
	judge  func(Trip) Fate
	trips  []Trip
	dials  int
	closed chan struct{}
}

// Trip is what a client sends at once, before it waits for the answers.
type Trip struct {
	Statements []Statement // that are run; none where they are only prepared
	Bytes      int
}

// Statement is what is run, and with what: arguments that are sent as text, such
// as with default_query_exec_mode=exec, can be read.
type Statement struct {
	SQL  string
	Args [][]byte
}

// Fate is what becomes of a trip.
type Fate int

const (
	// Pass lets it through.
	Pass Fate = iota
	// CutBefore cuts the connection, and the server never hears of it.
	CutBefore
	// CutAfter cuts the connection when the server has done it, and the client
	// never hears of that.
	CutAfter
	// Hold sends all of it but the last message to the server, and then nothing
	// more, as a client does that freezes while it sends.
	Hold
)

// NewProxy returns a proxy before the database of a URI, which has no TLS.
func NewProxy(t testing.TB, uri string) *Proxy {
	t.Helper()
	database, err := url.Parse(uri)
	if err != nil {
		t.Fatal("the URI of the database cannot be read")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{target: database.Host, listener: listener, flows: make(chan struct{}), links: map[*link]bool{}, closed: make(chan struct{})}
	close(p.flows)
	database.Host = listener.Addr().String()
	p.uri = database.String()
	p.tasks.Go(p.serve)
	t.Cleanup(p.close)
	return p
}

// URI is that of the database, through the proxy.
func (p *Proxy) URI() string { return p.uri }

// Judge decides from now on what becomes of each trip; nil: all pass.
func (p *Proxy) Judge(judge func(Trip) Fate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.judge = judge
}

// Trips returns what was sent since it was asked last.
func (p *Proxy) Trips() []Trip {
	p.mu.Lock()
	defer p.mu.Unlock()
	trips := p.trips
	p.trips = nil
	return trips
}

// Dials counts the connections that were tried since it was asked last.
func (p *Proxy) Dials() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.dials
	p.dials = 0
	return n
}

// Cut cuts all connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.cut()
	}
}

// Lead leads new connections to another server.
func (p *Proxy) Lead(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = addr
}

// Freeze lets connections begin, and nothing through, until Thaw.
func (p *Proxy) Freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flows = make(chan struct{})
}

// Thaw ends Freeze.
func (p *Proxy) Thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.flows:
	default:
		close(p.flows)
	}
}

func (p *Proxy) close() {
	p.listener.Close()
	p.Thaw()
	p.mu.Lock()
	close(p.closed)
	p.mu.Unlock()
	p.Cut()
	p.tasks.Wait()
}

func (p *Proxy) serve() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.dials++
		p.mu.Unlock()
		p.tasks.Go(func() { p.connect(client) })
	}
}

func (p *Proxy) connect(client net.Conn) {
	defer client.Close()
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	l := &link{proxy: p, client: client, server: server, prepared: map[string]string{}}
	defer l.cut()
	p.mu.Lock()
	p.links[l] = true
	p.mu.Unlock()
	select {
	case <-p.closed: // and nobody would cut it
		return
	default:
	}
	p.tasks.Go(l.answers)
	l.questions()
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

// pass waits while the proxy is frozen.
func (p *Proxy) pass() {
	p.mu.Lock()
	flows := p.flows
	p.mu.Unlock()
	<-flows
}

func (p *Proxy) fate(trip Trip) Fate {
	p.mu.Lock()
	p.trips = append(p.trips, trip)
	judge := p.judge
	p.mu.Unlock()
	if judge == nil {
		return Pass
	}
	return judge(trip)
}

// link is a client's connection and the one made for it.
type link struct {
	proxy          *Proxy
	client, server net.Conn
	prepared       map[string]string // SQL by name
	bound          Statement         // the unnamed portal's

	mu   sync.Mutex
	deaf bool // the client is told nothing more, and cut when the server has answered
}

func (l *link) cut() {
	l.client.Close()
	l.server.Close()
}

// questions takes what the client says to the server, trip by trip.
func (l *link) questions() {
	defer l.cut()
	from := bufio.NewReader(l.client)
	if err := l.begin(from); err != nil {
		return
	}
	for {
		trip, bytes, last, err := l.next(from)
		if err != nil {
			return
		}
		l.proxy.pass()
		switch fate := l.proxy.fate(trip); fate {
		case CutBefore:
			return
		case CutAfter:
			l.mu.Lock()
			l.deaf = true
			l.mu.Unlock()
		case Hold:
			l.server.Write(bytes[:len(bytes)-last])
			<-l.proxy.closed // the server does not learn that the client goes
			return
		}
		if _, err := l.server.Write(bytes); err != nil {
			return
		}
	}
}

// begin passes on the first message, which alone has no type.
func (l *link) begin(from *bufio.Reader) error {
	size, err := from.Peek(4)
	if err != nil {
		return err
	}
	message := make([]byte, binary.BigEndian.Uint32(size))
	if _, err := io.ReadFull(from, message); err != nil {
		return err
	}
	l.proxy.pass()
	_, err = l.server.Write(message)
	return err
}

// next reads all that is sent before the client waits, and says how long the last
// message is.
func (l *link) next(from *bufio.Reader) (trip Trip, bytes []byte, last int, err error) {
	for {
		kind, message, err := receive(from)
		if err != nil {
			return trip, nil, 0, err
		}
		bytes, last = append(bytes, message...), len(message)
		trip.Bytes = len(bytes)
		body := message[5:]
		switch kind {
		case 'P':
			var m pgproto3.Parse
			if err := m.Decode(body); err != nil {
				return trip, nil, 0, err
			}
			l.prepared[m.Name] = m.Query
		case 'B':
			var m pgproto3.Bind
			if err := m.Decode(body); err != nil {
				return trip, nil, 0, err
			}
			l.bound = Statement{SQL: l.prepared[m.PreparedStatement]}
			for _, arg := range m.Parameters {
				if arg != nil {
					arg = append([]byte{}, arg...)
				}
				l.bound.Args = append(l.bound.Args, arg)
			}
		case 'E':
			trip.Statements = append(trip.Statements, l.bound)
		case 'Q':
			var m pgproto3.Query
			if err := m.Decode(body); err != nil {
				return trip, nil, 0, err
			}
			trip.Statements = append(trip.Statements, Statement{SQL: m.String})
			return trip, bytes, last, nil
		case 'S', 'H', 'X', 'p':
			return trip, bytes, last, nil
		}
	}
}

// receive reads one message.
func receive(from *bufio.Reader) (kind byte, message []byte, err error) {
	head, err := from.Peek(5)
	if err != nil {
		return 0, nil, err
	}
	message = make([]byte, 1+binary.BigEndian.Uint32(head[1:]))
	_, err = io.ReadFull(from, message)
	if err == nil && len(message) < 5 {
		err = fmt.Errorf("a message of %d bytes", len(message))
	}
	return message[0], message, err
}

// answers takes what the server says to the client.
func (l *link) answers() {
	defer l.cut()
	from := bufio.NewReader(l.server)
	for {
		kind, message, err := receive(from)
		if err != nil {
			return
		}
		l.proxy.pass()
		l.mu.Lock()
		deaf := l.deaf
		l.mu.Unlock()
		if deaf && kind == 'Z' {
			return
		}
		if deaf {
			continue
		}
		if _, err := l.client.Write(message); err != nil {
			return
		}
	}
}
