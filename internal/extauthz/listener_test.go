package extauthz

import (
	"io"
	"net"
	"testing"
	"time"
)

// A network holds a bounded number of connections. A connection above the bound is closed, and a
// closed connection gives its place back.
func TestConnectionsAreBounded(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := bounded(inner, places(4))
	defer l.Close()
	accepted := make(chan net.Conn, 8) // more than the connections of this test
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	dial()
	dial()
	first, second := <-accepted, <-accepted
	refused := dial()
	_ = refused.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := refused.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("the third connection: %v", err)
	}
	_ = first.Close()
	_ = first.Close() // a second Close of the connection frees no further place
	dial()
	third := <-accepted
	if n := l.places.Held(); n != 2 {
		t.Errorf("%d places are taken, want 2", n)
	}
	_, _ = second.Close(), third.Close()
	if n := l.places.Held(); n != 0 {
		t.Errorf("%d places are taken after the end", n)
	}
}
