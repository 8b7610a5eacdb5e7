package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"sync/atomic"

	"github.com/watchword-auth/watchword/internal/pgtest"
)

// counter stands between a server and PostgreSQL and counts what the server says
// (the protocol's chapter "Message Formats").
type counter struct {
	listener   net.Listener
	statements atomic.Int64 // the number of messages Execute and simple Query
	trips      atomic.Int64 // Sync and simple Query: the server waits for the answer
}

func newCounter(upstream string) (*counter, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &counter{listener: listener}
	go func() {
		for {
			server, err := listener.Accept()
			if err != nil {
				return
			}
			go c.relay(server, upstream)
		}
	}()
	return c, nil
}

func (c *counter) relay(server net.Conn, upstream string) {
	defer server.Close()
	database, err := net.Dial("tcp", upstream)
	if err != nil {
		return
	}
	defer database.Close()
	go func() { _, _ = io.Copy(server, database) }()
	head := make([]byte, 5)
	for first := true; ; first = false {
		h := head
		if first {
			h = head[1:] // the first message has no type
		}
		if _, err := io.ReadFull(server, h); err != nil {
			return
		}
		if !first {
			c.count(head[0])
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(server, body); err != nil {
			return
		}
		if _, err := database.Write(append(h[:len(h):len(h)], body...)); err != nil {
			return
		}
	}
}

func (c *counter) count(message byte) {
	switch message {
	case 'E':
		c.statements.Add(1)
	case 'S':
		c.trips.Add(1)
	case 'Q':
		c.statements.Add(1)
		c.trips.Add(1)
	}
}

// postgresTrips counts the statements and round trips of single calls. The server also polls the
// database during the counting, so the least count is that of the call. For a logout, the count
// includes a reading by the server's own feed.
func postgresTrips(b *bench) error {
	postgres, err := pgtest.StartDurable(settings...)
	if err != nil {
		return err
	}
	defer postgres.Close()
	superuser, err := url.Parse(postgres.Superuser())
	if err != nil {
		return err
	}
	count, err := newCounter(superuser.Host)
	if err != nil {
		return err
	}
	defer count.listener.Close()
	c, err := gather(postgres, func(uri *url.URL) { uri.Host = count.listener.Addr().String() }, 1, 200)
	if err != nil {
		return err
	}
	defer c.disperse()
	refresh, logout := c.refreshing(1, upTo(1, 0)), c.logouts(1)
	for _, call := range []struct {
		name string
		call func(worker, i int) error
		most limit // the largest number of round trips of the call
	}{
		{"login", c.logins, limit{}},
		{"refresh", refresh.call, atMost(1)},
		{"logout", logout, limit{}},
	} {
		var statements, trips []float64
		for i := range 51 {
			s, t := count.statements.Load(), count.trips.Load()
			if err := call.call(0, i); err != nil {
				return fmt.Errorf("%s: %w", call.name, err)
			}
			statements = append(statements, float64(count.statements.Load()-s))
			trips = append(trips, float64(count.trips.Load()-t))
		}
		b.report("postgres-trips/"+call.name+"/statements", slices.Min(statements), "statements", call.most)
		b.report("postgres-trips/"+call.name, slices.Min(trips), "round-trips", call.most)
	}
	return nil
}
