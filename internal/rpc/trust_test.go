package rpc_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/gate"
	"github.com/watchword-auth/watchword/internal/hub"
	"github.com/watchword-auth/watchword/internal/roster"
	"github.com/watchword-auth/watchword/internal/rpc"
	"github.com/watchword-auth/watchword/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// window is the number of bytes that a client's stream takes without being read.
const window = 64 << 10

// sendTimeout is the time within which a watcher must read a message.
const sendTimeout = 30 * time.Second

// trust is a TrustService with a database. Its feed does not run, so heartbeats come only after
// snapshots.
type trust struct {
	feed  *feed.Feed
	conn  *grpc.ClientConn
	ended chan error // how each stream's handler has ended

	listener *bufconn.Listener
	from     *net.TCPAddr // what peers are said to come from, if anything
	stop     func()
}

// Accept accepts a connection, and says that it comes from another address.
func (tr *trust) Accept() (net.Conn, error) {
	conn, err := tr.listener.Accept()
	if err != nil || tr.from == nil {
		return conn, err
	}
	return elsewhere{conn, tr.from}, nil
}

func (tr *trust) Close() error   { return tr.listener.Close() }
func (tr *trust) Addr() net.Addr { return tr.listener.Addr() }

// elsewhere is a connection from another address.
type elsewhere struct {
	net.Conn
	from net.Addr
}

func (e elsewhere) RemoteAddr() net.Addr { return e.from }

// serveTrust serves a bundle with the given number of ended sessions, in a synctest bubble.
func serveTrust(t *testing.T, sessions int, inside ...grpc.StreamServerInterceptor) *trust {
	t.Helper()
	s, err := store.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "t.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	err = feed.Direct(s).Write(t.Context(), func(tx *feed.Tx) error {
		for i := range sessions {
			if err := tx.SessionEnded(fmt.Sprintf("%0300d", i)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return serveFeed(t, openFeed(t, s, nil), inside...)
}

func openFeed(t *testing.T, s *store.Store, keys feed.Keys) *feed.Feed {
	t.Helper()
	f, err := feed.Open(t.Context(), s, feed.Origin{Issuer: "https://auth.test", DatabaseID: "database", Keys: keys}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	f.Hub().SealResume([]byte("the key of all replicas"))
	return f
}

// serveFeed serves the bundle of a feed.
func serveFeed(t *testing.T, f *feed.Feed, inside ...grpc.StreamServerInterceptor) *trust {
	t.Helper()
	f.Hub().LimitWatchers(watchersAtMost, nil)
	tr := &trust{feed: f, ended: make(chan error, 100), listener: bufconn.Listen(1 << 20)}
	note := func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		err := handler(srv, stream)
		tr.ended <- err
		return err
	}
	internal := recovery.WithRecoveryHandler(func(any) error { return status.Error(codes.Internal, "recovered") })
	g := gate.New(nil, gate.Limits{Requests: 100, RequestsPerPeer: 100, Streams: 1, StreamsPerPeer: 1, Reports: 100, ReportsPerPeer: 100},
		func(_ context.Context, method string, err error) { t.Errorf("%s: %v", method, err) })
	server := grpc.NewServer(grpc.ForceServerCodecV2(rpc.Codec()), grpc.InTapHandle(g.Tap),
		grpc.ChainStreamInterceptor(g.Stream, note, recovery.StreamServerInterceptor(internal)), grpc.ChainStreamInterceptor(inside...))
	watchwordv1.RegisterTrustServiceServer(g.Registrar(server), &rpc.Trust{Hub: tr.feed.Hub(), Logger: slog.New(slog.DiscardHandler),
		Watchers: rpc.Watchers{Roster: roster.New(nil, tr.feed.Hub(), roster.Self{}, slog.New(slog.DiscardHandler))}})
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(tr) })
	tr.stop = func() { server.Stop(); serving.Wait() }
	t.Cleanup(tr.stop)
	tr.conn = dial(t, func() *bufconn.Listener { return tr.listener })
	return tr
}

// dial makes a connection to whatever listener there is at the time.
func dial(t *testing.T, to func() *bufconn.Listener) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///memory", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStaticStreamWindowSize(window), grpc.WithStaticConnWindowSize(64*window),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return to().DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

type bundle = grpc.ServerStreamingClient[watchwordv1.WatchBundleResponse]

func (tr *trust) watch(t *testing.T) bundle {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	t.Cleanup(cancel)
	stream, err := watchwordv1.NewTrustServiceClient(tr.conn).WatchBundle(ctx, &watchwordv1.WatchBundleRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// read reads a snapshot up to the heartbeat after the snapshot, with a pause before each
// message, and returns the number of sessions in the snapshot.
func read(stream bundle, pause time.Duration) (sessions int, err error) {
	for {
		time.Sleep(pause)
		m, err := stream.Recv()
		if err != nil || m.GetHeartbeat() != nil {
			return sessions, err
		}
		sessions += len(m.GetSnapshotChunk().GetEndedSessions())
	}
}

// watchersAtMost is the bound of the hub in these tests. A peer may hold a half.
const watchersAtMost = 100

// places returns how many further watchers a peer can open. Each of these watchers is a
// stranger, so that it takes no place of another watcher of the same peer.
func (tr *trust) places(t *testing.T, from string) (n int) {
	t.Helper()
	for ; ; n++ {
		w, err := tr.feed.Hub().Watch(t.Context(), hub.Peer{Name: from}, nil)
		if err != nil {
			return n
		}
		defer w.Close()
		for opened := false; !opened; { // reads the whole snapshot, since the next watcher of the same peer waits for the end of this snapshot
			m, err := w.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			decoded := &watchwordv1.WatchBundleResponse{}
			if err := proto.Unmarshal(m, decoded); err != nil {
				t.Fatal(err)
			}
			opened = decoded.GetHeartbeat() != nil
		}
	}
}

// many is a number of sessions that come in three chunks, each of which is more than fits into
// the buffers of a connection.
const many = 2_001

// A watcher that reads nothing is ended, and keeps neither a watcher's place nor a
// place for a snapshot.
func TestAWatcherThatReadsNothingIsSentAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const deaf = 16 // the largest number of snapshots that one peer gets at a time
		tr := serveTrust(t, many)
		began := time.Now()
		var streams []bundle
		for range deaf {
			streams = append(streams, tr.watch(t))
		}
		synctest.Wait()
		late := tr.watch(t)
		if n, err := read(late, 0); n != many || err != nil {
			t.Errorf("who came late was told of %d sessions, %v", n, err)
		}
		if waited := time.Since(began); waited != sendTimeout {
			t.Errorf("who came late waited for %v", waited)
		}
		for range deaf {
			select {
			case err := <-tr.ended:
				if status.Code(err) != codes.Unavailable {
					t.Errorf("ended with %v", err)
				}
			case <-time.After(time.Hour):
				t.Fatal("a stream that nobody reads never ended")
			}
		}
		if slow := tr.feed.Hub().Stats().Slow; slow != deaf {
			t.Errorf("%d slow watchers are counted, want %d", slow, deaf)
		}
		synctest.Wait()
		if all, left := tr.places(t, "another"), tr.places(t, "bufconn"); left != all-1 { // only the stream late holds a place
			t.Errorf("%d places are left of %d", left, all)
		}
		for _, stream := range streams {
			if _, err := read(stream, 0); status.Code(err) != codes.Unavailable {
				t.Errorf("the client reads %v", err)
			}
		}
	})
}

// A watcher that reads slowly is served, and so is a watcher that has read everything
// and gets no message for a long time.
func TestAWatcherThatReadsSlowlyIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := serveTrust(t, many)
		stream := tr.watch(t)
		if n, err := read(stream, sendTimeout/2-time.Second); n != many || err != nil {
			t.Errorf("told of %d sessions, %v", n, err)
		}
		time.Sleep(10 * sendTimeout)
		select {
		case err := <-tr.ended:
			t.Errorf("an idle stream ended: %v", err)
		default:
		}
	})
}

// An IPv6 client has a whole network of addresses: without the rule, the client would get the
// places of a peer for each address.
func TestTheAddressesOfOneNetworkShareTheirPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := serveTrust(t, 1)
		all := tr.places(t, "another")
		for address, network := range map[string]string{
			"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64", "192.0.2.7": "192.0.2.7",
		} {
			tr.from = net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(address), 1234))
			conn := dial(t, func() *bufconn.Listener { return tr.listener })
			stream, err := watchwordv1.NewTrustServiceClient(conn).WatchBundle(t.Context(), &watchwordv1.WatchBundleRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := read(stream, 0); err != nil {
				t.Fatal(err)
			}
			if left := tr.places(t, network); left != all-1 {
				t.Errorf("a watcher from %s leaves %d places of %d to %s", address, left, all, network)
			}
			conn.Close()
			synctest.Wait()
		}
	})
}

// faulty is a stream that cannot be sent on.
type faulty struct{ grpc.ServerStream }

func (faulty) SendMsg(any) error { panic("a bug") }

// A panic while messages are sent, in a separate goroutine, reaches the recovery interceptor,
// and the watcher's place is free again.
func TestAPanicInWatchBundleIsRecovered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := serveTrust(t, 1, func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			return handler(srv, faulty{stream})
		})
		for range 20 { // more than there are places for snapshots
			if _, err := read(tr.watch(t), 0); status.Code(err) != codes.Internal {
				t.Fatal(err)
			}
		}
		if all, left := tr.places(t, "another"), tr.places(t, "bufconn"); left != all {
			t.Errorf("%d places are left of %d", left, all)
		}
	})
}
