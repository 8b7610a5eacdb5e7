package rpc

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	protoenc "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/detach"
	"github.com/watchword-auth/watchword/internal/feed"
)

var errNoCertificate = errors.New("no client certificate")

// Trust serves TrustService.
type Trust struct {
	watchwordv1.UnimplementedTrustServiceServer
	Feed   *feed.Feed
	Logger *slog.Logger
	// NeedCertificate lets only watchers in that show a client certificate.
	NeedCertificate bool
}

// GetKeySet serves TrustService/GetKeySet.
func (t *Trust) GetKeySet(context.Context, *watchwordv1.GetKeySetRequest) (*watchwordv1.GetKeySetResponse, error) {
	trust := t.Feed.TrustState()
	resp := &watchwordv1.GetKeySetResponse{Issuer: trust.GetIssuer()}
	for _, key := range trust.GetKeys() {
		resp.Keys = append(resp.Keys, key.GetKey())
	}
	return resp, nil
}

// sendTimeout bounds how long a watcher may leave a message unread once the
// connection's buffers are full. It could otherwise keep what it was sent, and
// its peer's place for a snapshot, for good.
const sendTimeout = 30 * time.Second

// WatchBundle serves TrustService/WatchBundle.
func (t *Trust) WatchBundle(req *watchwordv1.WatchBundleRequest, stream grpc.ServerStreamingServer[watchwordv1.WatchBundleResponse]) error {
	ctx := stream.Context()
	if t.NeedCertificate && !showsCertificate(ctx) {
		return errNoCertificate
	}
	watcher, err := t.Feed.Watch(ctx, addressOf(ctx).Source().Network(), req.GetResume())
	if errors.Is(err, feed.ErrOutdated) {
		return status.Error(codes.Unavailable, "this replica is behind: come back, or go to another")
	}
	if err != nil {
		return err
	}
	unread := time.NewTimer(sendTimeout)
	defer unread.Stop()
	sending := detach.Go(func() error {
		defer watcher.Close()
		for {
			unread.Stop()
			message, err := watcher.Next(ctx)
			if err != nil {
				return err
			}
			unread.Reset(sendTimeout)
			if err := stream.SendMsg(message); err != nil {
				return err
			}
		}
	})
	select {
	case <-sending.Done():
		err = sending.Result()
	case <-unread.C:
		sending.Leave(LogLate(t.Logger))
		return status.Error(codes.Unavailable, "messages were left unread: come back")
	}
	if errors.Is(err, feed.ErrBehind) {
		return status.Error(codes.Unavailable, "fell behind: come back")
	}
	return err
}

// LogLate returns a function for [detach.Call.Leave] that logs the panic of a handler
// whose stream has ended.
func LogLate(logger *slog.Logger) func(fault any, stack []byte) {
	return func(fault any, stack []byte) {
		logger.Error("panic in a handler whose stream had ended", "panic", fault, "stack", string(stack))
	}
}

// Codec is protobuf's, and sends what the feed has encoded for all watchers as it
// is. The server needs it for WatchBundle.
func Codec() encoding.CodecV2 { return codec{encoding.GetCodecV2(protoenc.Name)} }

type codec struct{ encoding.CodecV2 }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if encoded, ok := v.(feed.Message); ok {
		return mem.BufferSlice{mem.SliceBuffer(encoded)}, nil
	}
	return c.CodecV2.Marshal(v)
}

// showsCertificate reports whether the peer has shown a certificate that the
// handshake verified.
func showsCertificate(ctx context.Context) bool {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	return ok && len(info.State.VerifiedChains) > 0
}
