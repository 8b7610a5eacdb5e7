package gate

import (
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/share"
)

// serve returns the two ends of a guarded connection. With proxy, the client is a trusted
// proxy.
func serve(t *testing.T, proxy bool) (client net.Conn, c *conn, server net.Conn) {
	t.Helper()
	client, accepted := net.Pipe()
	l := Listen(nil, caller.Proxies{}, 2, 2, nil)
	c = &conn{Conn: accepted, listener: l, network: "192.0.2.1"}
	if !proxy {
		c.place = l.places.Take(c.network, share.Renewing, func() {})
	}
	preface := make(chan error, 1)
	go func() { _, err := io.WriteString(client, http2.ClientPreface); preface <- err }()
	server, _, err := Guard(insecure.NewCredentials()).ServerHandshake(c)
	if err == nil {
		_, err = io.ReadFull(server, make([]byte, len(http2.ClientPreface)))
	}
	if err := errors.Join(err, <-preface); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, c, server
}

// readAll reads frames until the connection ends, and sends the reason.
func readAll(server net.Conn) <-chan error {
	ended := make(chan error, 1)
	go func() {
		buffer := make([]byte, 4<<10)
		var err error
		for err == nil {
			_, err = server.Read(buffer)
		}
		ended <- err
	}()
	return ended
}

// A client that leaves every answer unread for maxUndelivered is closed at its next frame,
// and a client that has read one answer is not. A trusted proxy carries the calls of others,
// and is not closed.
func TestAClientThatReadsNoAnswer(t *testing.T) {
	for name, test := range map[string]struct {
		proxy, delivered bool
		want             error
	}{
		"no answer read":   {false, false, errUndelivered},
		"one answer read":  {false, true, nil},
		"a trusted proxy":  {true, false, nil},
		"a proxy that has": {true, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, c, server := serve(t, test.proxy)
				ended := readAll(server)
				places := share.NewPool(share.Limits{Places: 10, PerPeer: 10})
				for stream := byte(1); stream <= 3; stream += 2 {
					if _, err := client.Write(frame(http2.FrameHeaders, http2.FlagHeadersEndStream, stream, 10)); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					c.callStarts()
					c.arrived()
					c.callEnds(places.Take("192.0.2.1", share.Stranger, func() {}), true)
				}
				ping := func() {
					_, _ = client.Write(frame(http2.FramePing, http2.FlagPingAck, 0, 8))
					synctest.Wait()
				}
				time.Sleep(maxUndelivered - time.Second)
				ping()
				if test.delivered {
					go func() { _, _ = server.Write(frame(http2.FrameHeaders, http2.FlagHeadersEndStream, 1, 5)) }()
					_, _ = io.ReadFull(client, make([]byte, 14))
					synctest.Wait()
				}
				select {
				case err := <-ended:
					t.Fatalf("ended before the time: %v", err)
				default:
				}
				time.Sleep(2 * time.Second)
				ping()
				var err error
				select {
				case err = <-ended:
				default:
				}
				if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
					t.Errorf("ended with %v, want %v", err, test.want)
				}
			})
		})
	}
}

// A client that sends frames and reads nothing is closed, once more than maxUnread frames
// have come while a write is stuck. A client that reads slowly is not.
func TestAClientThatReadsNoReply(t *testing.T) {
	for name, test := range map[string]struct {
		frames int
		reads  bool
		want   error
	}{
		"many pings":               {2 * maxUnread, false, errUnread},
		"some pings":               {maxUnread / 2, false, nil},
		"many pings, and it reads": {2 * maxUnread, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, _, server := serve(t, false)
				ended := readAll(server)
				go func() { _, _ = server.Write(frame(http2.FramePing, http2.FlagPingAck, 0, 8)) }() // stuck: a pipe has no buffer
				synctest.Wait()
				for range test.frames {
					if _, err := client.Write(frame(http2.FrameSettings, 0, 0, 0)); err != nil {
						t.Fatal(err)
					}
				}
				if test.reads {
					_, _ = io.ReadFull(client, make([]byte, 17))
					synctest.Wait()
				}
				time.Sleep(stuck + time.Second)
				_, _ = client.Write(frame(http2.FrameSettings, 0, 0, 0))
				synctest.Wait()
				var err error
				select {
				case err = <-ended:
				default:
				}
				if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
					t.Errorf("ended with %v, want %v", err, test.want)
				}
			})
		})
	}
}
