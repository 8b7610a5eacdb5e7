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
	"github.com/watchword-auth/watchword/internal/hub"
)

var errNoCertificate = errors.New("no client certificate")

// Trust serves TrustService.
type Trust struct {
	watchwordv1.UnimplementedTrustServiceServer
	Hub    *hub.Hub
	Logger *slog.Logger
	// NeedCertificate refuses WatchBundle to a client without a certificate.
	NeedCertificate bool
}

// GetKeySet serves TrustService/GetKeySet.
func (t *Trust) GetKeySet(context.Context, *watchwordv1.GetKeySetRequest) (*watchwordv1.GetKeySetResponse, error) {
	trust := t.Hub.TrustState()
	resp := &watchwordv1.GetKeySetResponse{Issuer: trust.GetIssuer()}
	for _, key := range trust.GetKeys() {
		resp.Keys = append(resp.Keys, key.GetKey())
	}
	return resp, nil
}

// sendTimeout bounds how long a client may leave a message unread after the buffers of
// the connection are full. Until then the watcher keeps the message in memory, and the
// peer's turn for a snapshot.
const sendTimeout = 30 * time.Second

// WatchBundle serves TrustService/WatchBundle.
func (t *Trust) WatchBundle(req *watchwordv1.WatchBundleRequest, stream grpc.ServerStreamingServer[watchwordv1.WatchBundleResponse]) error {
	ctx := stream.Context()
	if t.NeedCertificate && !showsCertificate(ctx) {
		return errNoCertificate
	}
	watcher, err := t.Hub.Watch(ctx, addressOf(ctx).Source().Network(), req.GetResume())
	if errors.Is(err, hub.ErrOutdated) {
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
	if errors.Is(err, hub.ErrBehind) {
		return status.Error(codes.Unavailable, "fell behind: come back")
	}
	return err
}

// LogLate returns a function for [detach.Call.Leave] that logs the panic of a handler
// after the end of its stream.
func LogLate(logger *slog.Logger) func(fault any, stack []byte) {
	return func(fault any, stack []byte) {
		logger.Error("panic in a handler after the end of its stream", "panic", fault, "stack", string(stack))
	}
}

// Codec returns protobuf's codec, extended to send a [hub.Message] unchanged: the hub
// has encoded the message once for all watchers. WatchBundle needs Codec.
func Codec() encoding.CodecV2 { return codec{encoding.GetCodecV2(protoenc.Name)} }

type codec struct{ encoding.CodecV2 }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if encoded, ok := v.(hub.Message); ok {
		return mem.BufferSlice{mem.SliceBuffer(encoded)}, nil
	}
	return c.CodecV2.Marshal(v)
}

// showsCertificate reports whether the handshake verified a certificate of the peer.
func showsCertificate(ctx context.Context) bool {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	return ok && len(info.State.VerifiedChains) > 0
}
