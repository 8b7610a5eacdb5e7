package gate

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"pgregory.net/rapid"
)

// The tap refuses at most maxTimers calls whose deadline is still to come, and none whose
// deadline is far away; calls whose deadline has passed make room.
func TestTimersAgainstModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var c timers
		now := time.Unix(1_800_000_000, 0)
		var deadlines []time.Time
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 40_000).Draw(t, "milliseconds")) * time.Millisecond)
			if rapid.IntRange(0, 9).Draw(t, "pause") == 0 {
				now = now.Add(time.Hour)
			}
			left := time.Duration(rapid.IntRange(-1, 70).Draw(t, "left")) * time.Second
			for range rapid.SampledFrom([]int{1, 100, 5000}).Draw(t, "calls") {
				pending, surely := 0, 0
				for _, d := range deadlines {
					if d.Unix() >= now.Unix() {
						pending++
					}
					if d.After(now) {
						surely++
					}
				}
				ok := c.add(now, now.Add(left))
				if ok && (surely >= maxTimers || left > maxTimeLeft) {
					t.Fatalf("refused in the tap with %d timers, %v left", surely, left)
				}
				if !ok && pending < maxTimers && left <= maxTimeLeft {
					t.Fatalf("sent the longer way with %d timers, %v left", pending, left)
				}
				if !ok {
					break
				}
				deadlines = append(deadlines, now.Add(left))
				if len(deadlines) > 200 { // the model is slow: count the rest in one step
					c.left, deadlines = 0, nil
					clear(c.counts[:])
					break
				}
			}
		}
	})
}

// frame returns the header and payload of a frame of HTTP/2.
func frame(kind http2.FrameType, flags http2.Flags, stream byte, payload int) []byte {
	return append([]byte{byte(payload >> 16), byte(payload >> 8), byte(payload), byte(kind), byte(flags), 0, 0, 0, stream}, make([]byte, payload)...)
}

func repeat(n int, frames ...[]byte) (all []byte) {
	for range n {
		for _, f := range frames {
			all = append(all, f...)
		}
	}
	return all
}

// pass sends bytes through a guarded connection in writes of a size, and returns how the
// reading ended: io.EOF if every frame was allowed.
func pass(t *testing.T, data []byte, size int) error {
	t.Helper()
	client, server := net.Pipe()
	go func() {
		defer client.Close()
		for data := append([]byte(http2.ClientPreface), data...); len(data) > 0; {
			n, err := client.Write(data[:min(size, len(data))])
			if err != nil {
				return
			}
			data = data[n:]
		}
	}()
	guarded, _, err := Guard(insecure.NewCredentials()).ServerHandshake(server)
	if err != nil {
		t.Fatal(err)
	}
	defer guarded.Close()
	var got bytes.Buffer
	if _, err := io.Copy(&got, guarded); err != nil {
		return err
	}
	passed, ended := got.Bytes(), io.EOF
	if i := bytes.Index(passed, reset(1)); i >= 0 {
		ended, passed = errReset, passed[:i]
	}
	if whole := append([]byte(http2.ClientPreface), data...); !bytes.HasPrefix(whole, passed) || ended == io.EOF && len(passed) != len(whole) {
		t.Errorf("%d of %d bytes have passed, or others", len(passed), len(whole))
	}
	return ended
}

// errReset stands for a stream that was reset.
var errReset = errors.New("reset")

func TestSmallFrames(t *testing.T) {
	t.Parallel()
	crumb := func(stream byte) []byte { return frame(http2.FrameData, 0, stream, 1) }
	last := func(stream byte) []byte { return frame(http2.FrameData, http2.FlagDataEndStream, stream, 1) }
	var streams [][]byte
	for i := byte(3); i != 1; i += 2 {
		streams = append(streams, crumb(i))
	}
	for name, test := range map[string]struct {
		data []byte
		want error
	}{
		"as many as allowed":          {repeat(maxSmallFrames, crumb(1)), io.EOF},
		"one more":                    {repeat(maxSmallFrames+1, crumb(1)), errReset},
		"large ones":                  {repeat(2*maxSmallFrames, frame(http2.FrameData, 0, 1, smallFrame)), io.EOF},
		"padded":                      {repeat(maxSmallFrames+1, frame(http2.FrameData, http2.FlagDataPadded, 1, 257)), errReset},
		"empty":                       {repeat(maxSmallFrames+1, frame(http2.FrameData, 0, 1, 0)), errReset},
		"many requests of two frames": {repeat(5000, crumb(1), last(1)), io.EOF},
		"many requests in parallel":   {repeat(50, append(streams, crumb(1))...), io.EOF},
		"abandoned streams":           {repeat(5000, crumb(1), frame(http2.FrameRSTStream, 0, 1, 4)), io.EOF},
		"pings between":               {repeat(maxSmallFrames+1, crumb(1), frame(http2.FramePing, 0, 0, 8)), errReset},
	} {
		for _, size := range []int{1 << 20, 7} {
			if err := pass(t, test.data, size); !errors.Is(err, test.want) {
				t.Errorf("%s, in writes of %d: %v, want %v", name, size, err, test.want)
			}
		}
	}
}

// A client cannot lower the count of a stream by frames on other streams.
func TestNoStreamHidesItsCount(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := &framedConn{small: map[uint32]int{}}
		truth := map[uint32]int{}
		for range rapid.IntRange(1, 50).Draw(t, "steps") {
			first := rapid.Uint32Range(0, 600).Draw(t, "first")
			for stream := first; stream < first+rapid.Uint32Range(1, 400).Draw(t, "streams"); stream++ {
				truth[stream]++
				if got := p.count(stream); got < truth[stream] {
					t.Fatalf("stream %d counts %d of %d", stream, got, truth[stream])
				}
				if len(p.small) > maxCounted {
					t.Fatalf("%d streams are counted", len(p.small))
				}
			}
		}
	})
}

// guardedTLS returns guarded credentials with a certificate.
func guardedTLS(t *testing.T) credentials.TransportCredentials {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"watchword"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return Guard(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}))
}

// A TLS handshake that is longer than any honest one ends, and the server reads no more of it.
func TestALongHandshakeEnds(t *testing.T) {
	t.Parallel()
	client, server := net.Pipe()
	defer client.Close()
	sent := make(chan int, 1)
	go func() { _, _ = io.Copy(io.Discard, client) }() // reads the TLS alert of the server
	go func() {
		n := 0
		defer func() { sent <- n }()
		hello := append([]byte{1, 0, 0xf0, 0}, make([]byte, 0xf000)...) // a ClientHello of 60 KiB
		for len(hello) > 0 {
			part := hello[:min(len(hello), 1<<10)]
			hello = hello[len(part):]
			m, err := client.Write(append([]byte{22, 3, 1, byte(len(part) >> 8), byte(len(part))}, part...)) // a TLS record
			if n += m; err != nil {
				return
			}
		}
	}()
	_, _, err := guardedTLS(t).ServerHandshake(server)
	server.Close()
	if n := <-sent; !errors.Is(err, errHandshake) || n > maxHandshake {
		t.Errorf("the server has read %d bytes: %v", n, err)
	}
}

// The bound on frames holds for a connection with TLS too.
func TestGuardInsideTLS(t *testing.T) {
	t.Parallel()
	creds := guardedTLS(t).Clone()
	client, server := net.Pipe()
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer client.Close()
	tasks.Go(func() {
		c := tls.Client(client, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		defer client.Close()
		_, _ = c.Write(append([]byte(http2.ClientPreface), repeat(maxSmallFrames+1, frame(http2.FrameData, 0, 1, 1))...))
	})
	guarded, info, err := creds.ServerHandshake(server)
	if err != nil || info.AuthType() != "tls" {
		t.Fatal(info, err)
	}
	var got bytes.Buffer
	if _, err := io.Copy(&got, guarded); err != nil || !bytes.Contains(got.Bytes(), reset(1)) {
		t.Errorf("%d bytes have passed without a reset, %v", got.Len(), err)
	}
}

// A request takes a place from its headers until its answer, or until the end of its context if
// no handler runs.
func TestRequestsGiveTheirPlacesBack(t *testing.T) {
	t.Parallel()
	g := New(nil, Limits{Requests: 2, RequestsPerPeer: 2, Streams: 1, StreamsPerPeer: 1}, func(context.Context, string, error) {})
	g.methods = map[string]arrival{"/s/Unary": atHandler}
	call := func(ip string) (context.Context, context.CancelFunc, error) {
		ctx, cancel := context.WithCancel(peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.ParseIP(ip), Port: 1}}))
		ctx, err := g.Tap(ctx, &tap.Info{FullMethodName: "/s/Unary", Header: metadata.MD{}})
		return ctx, cancel, err
	}
	var ends []context.CancelFunc
	var calls []context.Context
	for range 2 {
		ctx, end, err := call("192.0.2.1")
		if err != nil {
			t.Fatal(err)
		}
		calls, ends = append(calls, ctx), append(ends, end)
	}
	if _, _, err := call("192.0.2.1"); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a third request: %v", err)
	}
	other, _, err := call("192.0.2.2")
	if err != nil {
		t.Fatalf("a request of another peer: %v", err)
	}
	<-calls[1].Done() // the second call has lost its place
	ends[0]()         // the client of the first call leaves
	<-calls[0].Done()
	for g.requests.Held() > 1 { // a sweep finds the calls that have ended without a handler
		time.Sleep(time.Millisecond)
	}
	handler := g.unary("/s/Unary", func(any, context.Context, func(any) error, grpc.UnaryServerInterceptor) (any, error) {
		return nil, nil
	})
	if _, err := handler(nil, other, nil, nil); err != nil {
		t.Error(err)
	}
	if _, err := handler(nil, calls[0], nil, nil); status.Code(err) != codes.Canceled {
		t.Errorf("a handler after the end of its call: %v", err)
	}
	if g.requests.Held() != 0 || len(g.arriving) != 0 || other.Err() != nil {
		t.Errorf("%d places and the arrival of %v remain; the context of the answer: %v", g.requests.Held(), g.arriving, other.Err())
	}
}
