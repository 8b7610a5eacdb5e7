package gate

import (
	"net"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/retry"
)

// from is a connection from an address.
type from struct {
	net.Conn
	ip string
}

func (f from) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(f.ip), Port: 1} }
func (from) Close() error           { return nil }

// Connections of trusted proxies have a bound of their own: they take no places of other
// clients, and give none of theirs away.
func TestConnectionsOfProxiesAreBounded(t *testing.T) {
	t.Parallel()
	proxies, err := caller.ParseProxies([]string{"192.0.2.1", "192.0.2.2"})
	if err != nil {
		t.Fatal(err)
	}
	l := Listen(nil, proxies, 8, 4, nil)
	var first net.Conn
	for i := range 4 {
		c := l.takePlace(from{ip: "192.0.2.1"})
		if c == nil {
			t.Fatalf("connection %d of a proxy got no place", i+1)
		}
		first = c
	}
	if l.takePlace(from{ip: "192.0.2.2"}) != nil {
		t.Error("a fifth connection of a proxy got a place")
	}
	for range 2 {
		if l.takePlace(from{ip: "198.51.100.1"}) == nil {
			t.Error("another client got no place beside the proxies")
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if l.takePlace(from{ip: "192.0.2.2"}) == nil {
		t.Error("the place of a closed connection of a proxy stays taken")
	}
}

// Clients that a bound has refused come back at different times.
func TestRefusedClientsComeBackAtDifferentTimes(t *testing.T) {
	t.Parallel()
	seen := map[time.Duration]bool{}
	for range 200 {
		delay := retry.Asked(crowded(), time.Minute)
		if delay < retryDelay || delay >= retryDelay+retrySpread {
			t.Fatalf("a delay of %v", delay)
		}
		seen[delay] = true
	}
	if len(seen) < 10 {
		t.Errorf("%d different delays", len(seen))
	}
}
