package trusttest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/trusttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Every stream receives the messages, and then waits until its context ends.
func TestPlay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trust := watchwordv1.NewTrustServiceClient(trusttest.Play(trusttest.Chunk(&watchwordv1.SnapshotChunk{Last: true}), trusttest.Heartbeat(time.Now())))
		for range 2 {
			ctx, cancel := context.WithCancel(t.Context())
			var p peer.Peer
			stream, err := trust.WatchBundle(ctx, &watchwordv1.WatchBundleRequest{}, grpc.Peer(&p))
			if err != nil || p.Addr == nil || p.Addr.Network() != "unix" {
				t.Fatalf("a stream to %v, %v", p.Addr, err)
			}
			chunk, err1 := stream.Recv()
			beat, err2 := stream.Recv()
			if err := errors.Join(err1, err2); err != nil || !chunk.GetSnapshotChunk().GetLast() || !beat.GetHeartbeat().GetTimes().GetLatest().AsTime().Equal(time.Now()) {
				t.Errorf("received %v and %v, %v", chunk, beat, err)
			}
			ended := make(chan error)
			go func() { _, err := stream.Recv(); ended <- err }()
			synctest.Wait()
			select {
			case err := <-ended:
				t.Errorf("after the messages: %v", err)
			default:
			}
			cancel()
			if err := <-ended; status.Code(err) != codes.Canceled {
				t.Errorf("at the end: %v", err)
			}
		}
	})
}

// The function of a test may refuse a stream, and every other method is
// UNIMPLEMENTED.
func TestRefusals(t *testing.T) {
	t.Parallel()
	trust := watchwordv1.NewTrustServiceClient(trusttest.Conn(func(context.Context) (trusttest.Next, error) {
		return nil, status.Error(codes.Unavailable, "closed")
	}))
	if _, err := trust.WatchBundle(t.Context(), &watchwordv1.WatchBundleRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("WatchBundle: %v", err)
	}
	if _, err := trust.GetKeySet(t.Context(), &watchwordv1.GetKeySetRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("GetKeySet: %v", err)
	}
}
