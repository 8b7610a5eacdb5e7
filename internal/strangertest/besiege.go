package strangertest

import (
	"fmt"
	"io"
	"math/rand/v2"
	"strings"

	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// Besiege opens many connections from one address to the gRPC address and the HTTP address
// of a server. On the connections, Besiege does the worst that a client can do. The
// connections stay open until end is called.
func Besiege(ip, grpcAddr, httpAddr string) (end func()) {
	s := &siege{ip: ip, grpcAddr: grpcAddr, httpAddr: httpAddr}
	for _, attack := range []struct {
		times int
		do    func(*siege)
	}{
		{30, (*siege).silence}, {5, (*siege).endlessHeaders}, {3, (*siege).unfinishedRequests}, {3, (*siege).deafWatchers},
		{1, (*siege).reflection}, {3, (*siege).unreadAnswers}, {1, (*siege).guesses},
	} {
		for range attack.times {
			attack.do(s)
		}
	}
	return s.end
}

// siege holds the hostile connections that [Besiege] has opened from one address.
type siege struct {
	ip, grpcAddr, httpAddr string
	conns                  []io.Closer
}

func (s *siege) end() {
	for _, c := range s.conns {
		c.Close()
	}
}

// streams makes a connection, and calls do with n stream ids of the client. streams stops
// after an error: the server has then closed the connection.
func (s *siege) streams(n uint32, do func(c *Conn, stream uint32) error) {
	c, err := Connect(s.ip, s.grpcAddr)
	if err != nil {
		return
	}
	s.onEach(c, n, do)
}

func (s *siege) onEach(c *Conn, n uint32, do func(c *Conn, stream uint32) error) {
	s.conns = append(s.conns, c)
	for stream := uint32(1); stream < 2*n; stream += 2 {
		if do(c, stream) != nil {
			return
		}
	}
}

// silence opens a connection to the server, and sends nothing.
func (s *siege) silence() {
	if c, err := From(s.ip).Dial("tcp", s.grpcAddr); err == nil {
		s.conns = append(s.conns, c)
	}
}

// endlessHeaders begins a request to the HTTP address, and never ends the headers of the
// request.
func (s *siege) endlessHeaders() {
	if c, err := From(s.ip).Dial("tcp", s.httpAddr); err == nil {
		_, _ = io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: watchword\r\nX-Long: "+strings.Repeat("x", 8<<10))
		s.conns = append(s.conns, c)
	}
}

// unfinishedRequests begins requests with long metadata, and fills the window of each
// stream, and sends a part of the data in tiny pieces.
func (s *siege) unfinishedRequests() {
	part := append([]byte{0, 0, 0, 0xff, 0xf0}, make([]byte, 15_995)...)
	s.streams(100, func(c *Conn, stream uint32) error {
		err := c.Headers(stream, watchwordv1.AuthService_Login_FullMethodName, false, "x-long", strings.Repeat("x", 15_000))
		for i := 0; err == nil && i < 3; i++ {
			err = c.Data(stream, false, part)
		}
		if err != nil {
			return err
		}
		return c.Crumbs(stream, 1000)
	})
}

// empty is the encoding of a gRPC message without fields.
var empty = []byte{0, 0, 0, 0, 0}

// call sends a whole gRPC request on a stream.
func call(c *Conn, stream uint32, method string, message []byte, more ...string) error {
	if err := c.Headers(stream, method, false, more...); err != nil {
		return err
	}
	return c.Data(stream, true, message)
}

// deafWatchers opens streams of WatchBundle, and reads no more of each stream than the first
// window of HTTP/2.
func (s *siege) deafWatchers() {
	s.streams(100, func(c *Conn, stream uint32) error {
		return call(c, stream, watchwordv1.TrustService_WatchBundle_FullMethodName, empty)
	})
}

// reflection asks the reflection service for files, and leaves the answers unread.
func (s *siege) reflection() {
	ask := Message(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{
		FileContainingSymbol: "watchword.v1.AuthService"}})
	s.streams(20, func(c *Conn, stream uint32) error {
		err := c.Headers(stream, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", false)
		for i := 0; err == nil && i < 20; i++ {
			err = c.Data(stream, false, ask)
		}
		return err
	})
}

// unreadAnswers sends whole requests with long metadata, and leaves the answers unread.
func (s *siege) unreadAnswers() {
	c, err := ConnectDeaf(s.ip, s.grpcAddr)
	if err != nil {
		return
	}
	s.onEach(c, 100, func(c *Conn, stream uint32) error {
		return call(c, stream, "/grpc.health.v1.Health/Check", empty, "x-long", strings.Repeat("x", 15_000))
	})
}

// guesses sends logins with many usernames, since the server soon refuses guesses at one
// username without a hash.
func (s *siege) guesses() {
	s.streams(100, func(c *Conn, stream uint32) error {
		return call(c, stream, watchwordv1.AuthService_Login_FullMethodName,
			Message(&watchwordv1.LoginRequest{Username: fmt.Sprint("guessed-", rand.Uint32()), Password: "a guess of a stranger"}))
	})
}
