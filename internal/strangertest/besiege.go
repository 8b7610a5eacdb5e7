package strangertest

import (
	"fmt"
	"io"
	"math/rand/v2"
	"strings"

	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// Besiege does the worst that one address can do to the gRPC address and the HTTP address of
// a server, and holds it until end is called.
func Besiege(ip, grpcAddr, httpAddr string) (end func()) {
	var conns []io.Closer
	connect := func() *Conn {
		c, err := Connect(ip, grpcAddr)
		if err != nil {
			return nil // the server has closed the connection
		}
		conns = append(conns, c)
		return c
	}
	for range 30 { // connections that say nothing
		if c, err := From(ip).Dial("tcp", grpcAddr); err == nil {
			conns = append(conns, c)
		}
	}
	for range 5 { // HTTP that never ends its headers
		if c, err := From(ip).Dial("tcp", httpAddr); err == nil {
			_, _ = io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: watchword\r\nX-Long: "+strings.Repeat("x", 8<<10))
			conns = append(conns, c)
		}
	}
	// Requests with long metadata and a full window, a part of it in tiny pieces.
	part := append([]byte{0, 0, 0, 0xff, 0xf0}, make([]byte, 16_000)...)
	for range 3 {
		c := connect()
		for stream := uint32(1); c != nil && stream < 200; stream += 2 {
			err := c.Headers(stream, watchwordv1.AuthService_Login_FullMethodName, false, "x-long", strings.Repeat("x", 15_000))
			for i := 0; err == nil && i < 3; i++ {
				err = c.Data(stream, false, part[:16_000])
			}
			if err != nil || c.Crumbs(stream, 1000) != nil {
				break
			}
		}
	}
	for range 3 { // watchers that read nothing beyond the first window
		c := connect()
		for stream := uint32(1); c != nil && stream < 200; stream += 2 {
			if c.Headers(stream, watchwordv1.TrustService_WatchBundle_FullMethodName, false) != nil ||
				c.Data(stream, true, []byte{0, 0, 0, 0, 0}) != nil {
				break
			}
		}
	}
	c := connect() // reflection that is asked and not read
	ask := Message(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{
		FileContainingSymbol: "watchword.v1.AuthService"}})
	for stream := uint32(1); c != nil && stream < 40; stream += 2 {
		err := c.Headers(stream, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", false)
		for i := 0; err == nil && i < 20; i++ {
			err = c.Data(stream, false, ask)
		}
		if err != nil {
			break
		}
	}
	for range 3 { // answers that are never read
		c, err := ConnectDeaf(ip, grpcAddr)
		if err != nil {
			break
		}
		conns = append(conns, c)
		for stream := uint32(1); stream < 200; stream += 2 {
			if c.Headers(stream, "/grpc.health.v1.Health/Check", false, "x-long", strings.Repeat("x", 15_000)) != nil ||
				c.Data(stream, true, []byte{0, 0, 0, 0, 0}) != nil {
				break
			}
		}
	}
	if c := connect(); c != nil { // guesses
		for stream := uint32(1); stream < 200; stream += 2 { // at many users: guesses at one are soon refused without a hash
			guess := Message(&watchwordv1.LoginRequest{Username: fmt.Sprint("guessed-", rand.Uint32()), Password: "a guess of a stranger"})
			if c.Headers(stream, watchwordv1.AuthService_Login_FullMethodName, false) != nil || c.Data(stream, true, guess) != nil {
				break
			}
		}
	}
	return func() {
		for _, c := range conns {
			c.Close()
		}
	}
}
