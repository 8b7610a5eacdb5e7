package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/strangertest"
)

// attacker returns the address of an attacker: each address of 127.0.0.0/8 is a network of
// its own.
func attacker(i int) string { return fmt.Sprintf("127.1.%d.%d", i/250, 1+i%250) }

// Networks log in without end, more networks than the queue for password hashes has places.
// Logins of other networks still get a place, and a network that has logged in keeps its place
// from then on.
func TestMoreNetworksThanPlacesInTheHashQueue(t *testing.T) {
	const places, attackers = 56, 70
	s := serveOn(t, 2, unthrottled...) // one hash at a time
	ctx, stop := context.WithCancel(t.Context())
	full := make(chan struct{})
	fullOnce := sync.OnceFunc(func() { close(full) })
	var calls sync.WaitGroup
	defer calls.Wait()
	defer stop()
	for i := range 2 * attackers {
		c := dialFrom(t, attacker(i/2), s.grpcAddr)
		calls.Go(func() {
			for ctx.Err() == nil {
				err := c.tryLogin(ctx, fmt.Sprint("guessed-", i), "guessed by a stranger")
				switch {
				case ctx.Err() != nil || checkRefusal(err, "INVALID_CREDENTIALS") == nil:
				case checkOverloaded(err) == nil:
					fullOnce()
					time.Sleep(30 * time.Millisecond) // the clients share the cores with the server
				default:
					t.Errorf("a login of an attacker: %v", err)
				}
			}
		})
	}
	<-full
	var honest sync.WaitGroup
	for i := range 4 {
		c := dialFrom(t, fmt.Sprint("127.0.0.", 77+i), s.grpcAddr)
		honest.Go(func() {
			began := time.Now()
			err := errors.New("no login yet")
			for err != nil && time.Since(began) < 4*runTimeout { // on a busy machine, a turn in the queue takes long
				err = c.tryLogin(callCtx(t), "admin", s.admin)
			}
			t.Logf("the first login took %v beside %d networks at %d places: %v", time.Since(began), attackers, places, err)
			if err == nil {
				err = c.tryLogin(callCtx(t), "admin", s.admin)
			}
			if err != nil {
				t.Errorf("a login beside the attackers: %v", err)
			}
		})
	}
	honest.Wait()
}

// Unknown networks hold one connection each, as many as the server allows. A login of another
// network gets a connection, and a network known from an earlier login loses none.
func TestMoreNetworksThanConnections(t *testing.T) {
	t.Parallel()
	const places = 64
	s := serve(t, t.TempDir(), "--max-connections", fmt.Sprint(places))
	known := strange(t, "127.0.0.66", s.grpcAddr)
	if err := errors.Join(known.Headers(1, login, false),
		known.Data(1, true, strangertest.Message(&watchwordv1.LoginRequest{Username: "admin", Password: s.admin}))); err != nil {
		t.Fatal(err)
	}
	if a, err := known.AnswerTo(callCtx(t), 1); err != nil || a.Status.Code() != codes.OK {
		t.Fatalf("the login of the known network: %+v, %v", a, err)
	}
	for i := range 3 * places {
		if c, err := strangertest.Connect(attacker(i), s.grpcAddr); err == nil { // an error means that the server has closed the connection at once
			t.Cleanup(func() { c.Close() })
		}
	}
	eventually(t, runTimeout, "a login beside the attackers", func() error { return dialOnce(t, "127.0.0.77", s) })
	if !alive(known, 3) {
		t.Error("a known network has lost its connection to strangers")
	}
}

// Unknown networks leave one unfinished request each, as many as the server allows. A request of
// another network gets a place before an unfinished request has timed out.
func TestMoreNetworksThanUnfinishedRequests(t *testing.T) {
	t.Parallel()
	const connections = 256
	s := serve(t, t.TempDir(), "--max-connections", fmt.Sprint(connections))
	var unfinished []*strangertest.Conn
	for i := range connections / 4 {
		c := strange(t, attacker(i), s.grpcAddr)
		if err := c.Headers(1, login, false); err != nil || !alive(c, 3) { // the answer to the second request shows that the server has read the first one
			t.Fatalf("the request of an attacker: %v", err)
		}
		unfinished = append(unfinished, c)
	}
	served := 0
	for i := range 5 { // each is unlucky once in 65 times
		conn := dialFrom(t, fmt.Sprint("127.0.0.", 77+i), s.grpcAddr)
		if _, err := conn.Verify(callCtx(t), &watchwordv1.VerifyRequest{AccessToken: "x"}); checkRefusal(err, "TOKEN_INVALID") == nil {
			served++
		} else if checkOverloaded(err) != nil {
			t.Errorf("refused with %v", err)
		}
	}
	if served == 0 {
		t.Error("no request of another network was served")
	}
	late, pushed := 0, 0
	for _, c := range unfinished {
		a, err := c.AnswerTo(callCtx(t), 1)
		switch {
		case err != nil:
			t.Fatal(err)
		case a.Status.Code() == codes.DeadlineExceeded:
			late++
		default:
			pushed++
		}
	}
	if pushed == 0 || late == 0 {
		t.Errorf("%d unfinished requests gave way, and %d ended by themselves", pushed, late)
	}
}

// Unknown networks hold one busy HTTP connection each, as many as the server allows. A scrape of
// the metrics from another network is served.
func TestMoreNetworksThanHTTPConnections(t *testing.T) {
	t.Parallel()
	const places = 128
	s := serve(t, t.TempDir())
	for i := range places + 20 {
		c, err := strangertest.From(attacker(i)).Dial("tcp", s.httpAddr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		// An answered request: from then on the connection may stay idle for two minutes.
		_, _ = io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: watchword\r\n\r\n")
		_ = c.SetReadDeadline(time.Now().Add(runTimeout))
		if n, err := c.Read(make([]byte, 512)); i < places && (n == 0 || err != nil) {
			t.Fatalf("connection %d of an attacker: %v", i, err)
		}
	}
	scraper := &http.Client{Timeout: runTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return strangertest.From("127.0.0.77").DialContext(ctx, network, addr)
		},
	}}
	eventually(t, runTimeout, "a scrape beside the attackers", func() error {
		resp, err := scraper.Get("http://" + s.httpAddr + "/metrics")
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return err
	})
}
