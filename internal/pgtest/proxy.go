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

// Proxy forwards connections to a database, records the statements, and fails as networks
// do. A Proxy is safe for concurrent use.
type Proxy struct {
	uri      string
	target   string
	listener net.Listener
	tasks    sync.WaitGroup

	mu     sync.Mutex
	flows  chan struct{} // closed while traffic flows, and open while the proxy is frozen
	links  map[*link]bool
	judge  func(Trip) Fate
	trips  []Trip
	dials  int
	closed chan struct{}
}

// Trip holds the messages that a client sends together, before the client waits for the
// answers.
type Trip struct {
	Conn       int         // the number of the connection, from 1
	Statements []Statement // the executed statements; empty if the trip only prepares statements
	Bytes      int
}

// Statement holds an executed statement with its arguments. Arguments in text form can be
// read; default_query_exec_mode=exec makes pgx send text.
type Statement struct {
	SQL  string
	Args [][]byte
}

// Fate tells a Proxy what to do with a [Trip].
type Fate int

const (
	// Pass sends the messages of the trip to the server.
	Pass Fate = iota
	// CutBefore cuts the connection without sending the messages of the trip.
	CutBefore
	// CutAfter sends the messages of the trip, waits until the server has answered, drops the
	// answer, and cuts the connection.
	CutAfter
	// Hold sends all messages but the last, and then sends nothing more. The
	// connection stays open, as if the client had frozen while sending.
	Hold
)

// NewProxy starts a proxy before the database in uri. The connections must not use TLS.
// The proxy ends with the test.
func NewProxy(t testing.TB, uri string) *Proxy {
	t.Helper()
	database, err := url.Parse(uri)
	if err != nil {
		t.Fatal("the database's URI is malformed") // url.Parse's error would show the password
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

// URI returns the database's URI through the proxy.
func (p *Proxy) URI() string { return p.uri }

// Judge sets the function that decides each trip's [Fate]. With nil, every trip passes.
func (p *Proxy) Judge(judge func(Trip) Fate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.judge = judge
}

// Trips returns the trips since the last call of Trips.
func (p *Proxy) Trips() []Trip {
	p.mu.Lock()
	defer p.mu.Unlock()
	trips := p.trips
	p.trips = nil
	return trips
}

// Dials returns the number of connections that clients have made to the proxy since the last
// call of Dials, failed connections included.
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

// Lead sets the address of the server to which the proxy forwards new connections.
func (p *Proxy) Lead(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = addr
}

// Freeze stops all traffic until [Proxy.Thaw]. The proxy still accepts connections.
func (p *Proxy) Freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flows = make(chan struct{})
}

// Thaw lets the traffic that [Proxy.Freeze] has stopped flow again.
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
	for number := 0; ; {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.dials++
		p.mu.Unlock()
		number++
		p.tasks.Go(func() { p.connect(client, number) })
	}
}

func (p *Proxy) connect(client net.Conn, number int) {
	defer client.Close()
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	l := &link{proxy: p, number: number, client: client, server: server, prepared: map[string]string{}}
	defer l.cut()
	p.mu.Lock()
	p.links[l] = true
	p.mu.Unlock()
	select {
	case <-p.closed: // close has cut the links already, without this link
		return
	default:
	}
	p.tasks.Go(l.forwardAnswers)
	l.forwardTrips()
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

// waitWhileFrozen returns when the proxy is not frozen.
func (p *Proxy) waitWhileFrozen() {
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

// link joins a client's connection with the proxy's connection to the server.
type link struct {
	proxy          *Proxy
	number         int
	client, server net.Conn
	prepared       map[string]string // the SQL of each prepared statement, by name
	bound          Statement         // the statement in the unnamed portal (bound to arguments, and to be executed next)

	mu          sync.Mutex // guards dropAnswers
	dropAnswers bool       // drops the answers, and cuts the link at the end of the answer
}

func (l *link) cut() {
	l.client.Close()
	l.server.Close()
}

// forwardTrips forwards the client's messages to the server, trip by trip.
func (l *link) forwardTrips() {
	defer l.cut()
	from := bufio.NewReader(l.client)
	if err := l.forwardStartup(from); err != nil {
		return
	}
	for {
		trip, bytes, last, err := l.next(from)
		if err != nil {
			return
		}
		l.proxy.waitWhileFrozen()
		switch fate := l.proxy.fate(trip); fate {
		case CutBefore:
			return
		case CutAfter:
			l.mu.Lock()
			l.dropAnswers = true
			l.mu.Unlock()
		case Hold:
			l.server.Write(bytes[:len(bytes)-last])
			<-l.proxy.closed // keeps the server's connection open if the client leaves
			return
		}
		if _, err := l.server.Write(bytes); err != nil {
			return
		}
	}
}

// forwardStartup forwards the startup message, the only message without a type byte.
func (l *link) forwardStartup(from *bufio.Reader) error {
	size, err := from.Peek(4)
	if err != nil {
		return err
	}
	message := make([]byte, binary.BigEndian.Uint32(size))
	if _, err := io.ReadFull(from, message); err != nil {
		return err
	}
	l.proxy.waitWhileFrozen()
	_, err = l.server.Write(message)
	return err
}

// next reads the messages of a trip from the client. last is the length of the last message, in
// bytes.
func (l *link) next(from *bufio.Reader) (trip Trip, bytes []byte, last int, err error) {
	for {
		kind, message, err := receive(from)
		if err != nil {
			return trip, nil, 0, err
		}
		bytes, last = append(bytes, message...), len(message)
		trip.Conn, trip.Bytes = l.number, len(bytes)
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

// receive reads one message of PostgreSQL's protocol.
func receive(from *bufio.Reader) (kind byte, message []byte, err error) {
	head, err := from.Peek(5)
	if err != nil {
		return 0, nil, err
	}
	message = make([]byte, 1+binary.BigEndian.Uint32(head[1:]))
	_, err = io.ReadFull(from, message)
	if err == nil && len(message) < 5 {
		err = fmt.Errorf("message has %d bytes, want at least 5", len(message))
	}
	return message[0], message, err
}

// forwardAnswers forwards the server's messages to the client.
func (l *link) forwardAnswers() {
	defer l.cut()
	from := bufio.NewReader(l.server)
	for {
		kind, message, err := receive(from)
		if err != nil {
			return
		}
		l.proxy.waitWhileFrozen()
		l.mu.Lock()
		drop := l.dropAnswers
		l.mu.Unlock()
		if drop && kind == 'Z' { // ReadyForQuery ends the answer
			return
		}
		if drop {
			continue
		}
		if _, err := l.client.Write(message); err != nil {
			return
		}
	}
}
