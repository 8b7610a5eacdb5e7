package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/internal/strangertest"
)

// A hundred hostile addresses send floods of every kind at the same time. The server stays under
// 256 MiB of memory, apart from the memory for password hashes, honest clients from elsewhere
// are not refused, and afterwards everything is as before.
func TestAHundredStrangers(t *testing.T) {
	const strangers, limit = 100, 256
	const hashes = 64 // MiB
	s := serve(t, t.TempDir(), "--hash-memory", "64MiB")
	honest := dial(t, s.grpcAddr)
	pair := honest.login(t, "admin", s.admin)
	stream := watchBundle(t, honest)
	calm := s.metric(t, "go_goroutines")

	ctx, stop := context.WithCancel(t.Context())
	var tasks sync.WaitGroup
	var calls [3]atomic.Int64
	again := func(i int, name string, call func() error) {
		tasks.Go(func() {
			for ctx.Err() == nil {
				if err := call(); err != nil {
					t.Errorf("%s by an honest client: %v", name, err)
					return
				}
				calls[i].Add(1)
			}
		})
	}
	again(0, "Verify", func() error { _, err := honest.verify(callCtx(t), pair); return err })
	mine := dialFrom(t, "127.0.0.2", s.grpcAddr)
	refreshed := mine.login(t, "admin", s.admin)
	again(1, "Refresh", func() (err error) { refreshed, err = mine.tryRefresh(callCtx(t), refreshed); return err })
	again(2, "Login", func() error { return dialOnce(t, "127.0.0.3", s) })

	ends := make([]func(), strangers)
	var siege sync.WaitGroup
	turns := make(chan struct{}, 2*runtime.GOMAXPROCS(0))
	for i := range strangers {
		siege.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			ends[i] = strangertest.Besiege(fmt.Sprint("127.0.2.", i+1), s.grpcAddr, s.httpAddr)
		})
	}
	siege.Wait()
	var before [3]int64
	for i := range calls {
		before[i] = calls[i].Load()
	}
	for i := range calls { // every kind of call goes on while all strangers are there
		eventually(t, runTimeout, "an honest call during the siege", func() error {
			if calls[i].Load() <= before[i]+2 {
				return errors.New("none yet")
			}
			return nil
		})
	}
	most := s.memory(t, "VmHWM")
	t.Logf("at most %d MiB with %d strangers; honest calls: %d, %d, %d", most, strangers, calls[0].Load(), calls[1].Load(), calls[2].Load())
	if most > limit+hashes {
		t.Errorf("the server took %d MiB, more than %d beside %d for hashes", most, limit, hashes)
	}
	stop()
	tasks.Wait()
	for _, end := range ends {
		end()
	}
	if err := stream.recv(); err != nil {
		t.Errorf("the stream of an honest verifier: %v", err)
	}
	s.calmsDown(t, calm)
}

// dialOnce logs in over a connection of its own, as a program does that starts.
func dialOnce(t *testing.T, ip string, s *server) error {
	conn, err := tryDialAs(ip, s.grpcAddr, insecure.NewCredentials())
	if err != nil {
		return err
	}
	defer conn.Close()
	return newClient(conn).tryLogin(callCtx(t), "admin", s.admin)
}

// calmsDown waits until the server has about as many goroutines as before.
func (s *server) calmsDown(t *testing.T, calm int) {
	t.Helper()
	eventually(t, runTimeout, "the server calms down", func() error {
		if now := s.metric(t, "go_goroutines"); now > calm+20 {
			return fmt.Errorf("%d goroutines, %d before", now, calm)
		}
		return nil
	})
}

// Five hundred logins at once beside five thousand idle connections: every login is
// answered OK or refused with a documented reason, and afterwards everything is as before.
func TestFiveHundredLoginsAndFiveThousandIdleConnections(t *testing.T) {
	const logins, idle, addresses = 500, 5000, 50
	s := serve(t, t.TempDir())
	honest := dial(t, s.grpcAddr)
	honest.login(t, "admin", s.admin)
	calm, files := s.metric(t, "go_goroutines"), s.files(t)

	var conns []net.Conn
	for i := range idle {
		c, err := strangertest.From(fmt.Sprint("127.0.3.", 1+i%addresses)).Dial("tcp", s.grpcAddr)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	var tasks sync.WaitGroup
	var ok, refused atomic.Int64
	for i := range logins {
		tasks.Go(func() {
			conn, err := tryDialAs(fmt.Sprint("127.0.4.", 1+i%addresses), s.grpcAddr, insecure.NewCredentials())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			err = newClient(conn).tryLogin(callCtx(t), "admin", s.admin)
			switch {
			case err == nil:
				ok.Add(1)
			case status.Code(err) == codes.ResourceExhausted && authn.Reason(err) == overloaded:
				refused.Add(1)
			default:
				t.Errorf("a login: %v", err)
			}
		})
	}
	tasks.Wait()
	t.Logf("%d logins OK, %d refused as OVERLOADED", ok.Load(), refused.Load())
	if ok.Load() == 0 {
		t.Error("no login was answered")
	}
	for _, c := range conns {
		c.Close()
	}
	s.calmsDown(t, calm)
	eventually(t, runTimeout, "the server closes its files", func() error {
		if now := s.files(t); now > files+20 {
			return fmt.Errorf("%d files, %d before", now, files)
		}
		return nil
	})
	began := time.Now()
	honest.login(t, "admin", s.admin)
	t.Logf("a login afterwards took %v", time.Since(began))
}
