package authn

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// reportServer notes the streams of reports: the number of messages on each, and how each
// stream has ended.
type reportServer struct {
	watchwordv1.UnimplementedTrustServiceServer
	refuse error

	mu       sync.Mutex
	messages []int
	ended    int // the number of streams that the client has ended in order
}

func (s *reportServer) ReportWatcher(stream grpc.ClientStreamingServer[watchwordv1.ReportWatcherRequest, watchwordv1.ReportWatcherResponse]) error {
	s.mu.Lock()
	n := len(s.messages)
	s.messages = append(s.messages, 0)
	s.mu.Unlock()
	if s.refuse != nil {
		return s.refuse
	}
	for {
		m, err := stream.Recv()
		s.mu.Lock()
		switch {
		case errors.Is(err, io.EOF):
			s.ended++
		case err == nil && (m.GetIdentity() == nil) != (s.messages[n] > 0):
			err = status.Error(codes.InvalidArgument, "the identity is the first message, and no other")
		case err == nil:
			s.messages[n]++
		}
		s.mu.Unlock()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&watchwordv1.ReportWatcherResponse{})
		}
		if err != nil {
			return err
		}
	}
}

// seen returns the number of messages on each stream, and the number of streams that the
// client has ended.
func (s *reportServer) seen() ([]int, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]int(nil), s.messages...), s.ended
}

// reportFor runs a reporter against a server, with a heartbeat in every period.
func reportFor(t *testing.T, s *reportServer, heartbeats int, every time.Duration) {
	t.Helper()
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	watchwordv1.RegisterTrustServiceServer(server, s)
	var tasks sync.WaitGroup
	tasks.Go(func() { _ = server.Serve(listener) })
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return listener.Dial() }))
	if err != nil {
		t.Fatal(err)
	}
	r := newReporter(&watchwordv1.WatcherIdentity{Watcher: []byte("id")}, func() *watchwordv1.WatcherReport { return &watchwordv1.WatcherReport{} })
	ctx, cancel := context.WithCancel(t.Context())
	tasks.Go(func() { r.run(ctx, conn) })
	for range heartbeats {
		r.heartbeat()
		time.Sleep(every)
		synctest.Wait()
	}
	cancel()
	conn.Close()
	server.Stop()
	tasks.Wait()
}

// A server resets a stream with more than 1024 small frames: see package gate. So a verifier
// that reports for months opens one stream after another, sends its identity first on each
// stream, and loses no report in between.
func TestReportsForALongTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &reportServer{}
		const heartbeats = 3000
		reportFor(t, s, heartbeats, 5*time.Second)
		messages, ended := s.seen()
		reports := 0
		for _, n := range messages {
			if reports += n - 1; n > 1000 {
				t.Errorf("%d messages on a stream", n)
			}
		}
		if reports != heartbeats || ended != len(messages)-1 {
			t.Errorf("%d reports after %d heartbeats, on %d streams, of which the client has ended %d", reports, heartbeats, len(messages), ended)
		}
	})
}

// Heartbeats that come faster than a server takes reports cause fewer reports, and the verifier
// reports the last state.
func TestReportsKeepTheirPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &reportServer{}
		reportFor(t, s, 10_000, time.Millisecond)
		reports := 0
		messages, _ := s.seen()
		for _, n := range messages {
			reports += n - 1
		}
		if reports < 100 || reports > 20*10 {
			t.Errorf("%d reports in ten seconds, want at most twenty a second", reports)
		}
	})
}

// If a server does not know ReportWatcher, the verifier calls ReportWatcher once in each stream
// of the bundle. After any other refusal, the verifier calls again, with longer and longer
// pauses.
func TestReportsRefused(t *testing.T) {
	for code, most := range map[codes.Code]int{codes.Unimplemented: 1, codes.ResourceExhausted: 70} {
		synctest.Test(t, func(t *testing.T) {
			s := &reportServer{refuse: status.Error(code, "refused")}
			reportFor(t, s, 3600, time.Second)
			if messages, _ := s.seen(); len(messages) > 2*most || len(messages) < (most+1)/2 {
				t.Errorf("%v: %d streams in an hour, want about %d", code, len(messages), most)
			}
		})
	}
}
