package rpc

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/feed"
)

var errNoCertificate = errors.New("no client certificate")

// Trust serves TrustService.
type Trust struct {
	watchwordv1.UnimplementedTrustServiceServer
	Feed *feed.Feed
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

// WatchBundle serves TrustService/WatchBundle.
func (t *Trust) WatchBundle(_ *watchwordv1.WatchBundleRequest, stream grpc.ServerStreamingServer[watchwordv1.WatchBundleResponse]) error {
	if t.NeedCertificate && !showsCertificate(stream.Context()) {
		return errNoCertificate
	}
	watcher, err := t.Feed.Watch()
	if err != nil {
		return err
	}
	defer watcher.Close()
	for {
		message, err := watcher.Next(stream.Context())
		if errors.Is(err, feed.ErrBehind) {
			return status.Error(codes.Unavailable, "fell behind: come back for a snapshot")
		}
		if err != nil {
			return err
		}
		if err := stream.Send(message); err != nil {
			return err
		}
	}
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
