package tokensource_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/watchword-auth/watchword/authn/tokensource"
)

// severed is a connection that drops the bytes written while gone is set, as with a pulled
// cable.
type severed struct {
	net.Conn
	gone *atomic.Bool
}

func (s severed) Write(b []byte) (int, error) {
	if s.gone.Load() {
		return len(b), nil
	}
	return s.Conn.Write(b)
}

// dialSevered dials a service by tokensource.Dial with opts. sever and repair cut and mend the
// connections; made counts the connections.
func dialSevered(t *testing.T, service *guardedService, opts ...grpc.DialOption) (conn *grpc.ClientConn, sever, repair func(), made *atomic.Int32) {
	t.Helper()
	var gone atomic.Bool
	made = new(atomic.Int32)
	conn, err := tokensource.Dial("passthrough:///memory", append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			made.Add(1)
			c, err := service.listener.DialContext(ctx)
			return severed{c, &gone}, err
		}),
	}, opts...)...)
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn, func() { gone.Store(true) }, func() { gone.Store(false) }, made
}

// watchwordPolicy is Watchword's limit on a client's pings.
var watchwordPolicy = grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true})

func startWatched(t *testing.T) *guardedService {
	t.Helper()
	s := new(guardedService)
	s.reachable = serve(t, func(*grpc.Server) {}, watchwordPolicy, grpc.UnknownServiceHandler(s.handle))
	return s
}

// A dead connection is noticed within 15 s, also without calls.
func TestDialNoticesADeadConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, sever, repair, made := dialSevered(t, startWatched(t))
		_, err := call(t.Context(), conn, unaryMethod, false)
		check(t, err)
		sever()
		time.Sleep(16 * time.Second)
		synctest.Wait()
		if state := conn.GetState(); state == connectivity.Ready {
			t.Errorf("after 16 s the connection is %v", state)
		}
		repair()
		if _, err := call(t.Context(), conn, unaryMethod, false); err != nil || made.Load() != 2 {
			t.Errorf("%v, with %d connections, want 2", err, made.Load())
		}
	})
}

// Watchword accepts the keepalive pings of Dial, and the connection lasts from one renewal of
// the token to the next.
func TestDialKeepsItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, _, _, made := dialSevered(t, startWatched(t))
		for range 5 {
			_, err := call(t.Context(), conn, unaryMethod, false)
			check(t, err)
			time.Sleep(4 * time.Minute)
		}
		if made.Load() != 1 {
			t.Errorf("%d connections were made", made.Load())
		}
	})
}

// The caller's options override Dial's: here, a ping every hour.
func TestOptionsOverrideDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, sever, _, _ := dialSevered(t, startWatched(t), grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: time.Hour}))
		_, err := call(t.Context(), conn, unaryMethod, false)
		check(t, err)
		sever()
		time.Sleep(time.Minute)
		if state := conn.GetState(); state != connectivity.Ready {
			t.Errorf("after a minute the connection is %v", state)
		}
	})
}

func TestDialNeedsTransportCredentials(t *testing.T) {
	if conn, err := tokensource.Dial("auth:50051"); err == nil || conn != nil {
		t.Errorf("%v, %v", conn, err)
	}
}
