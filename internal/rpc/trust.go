package rpc

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/session"
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
	watcher := t.Feed.Watch()
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

var errAudienceMismatch = refuse(codes.Unauthenticated, watchwordv1.ErrorReason_ERROR_REASON_AUDIENCE_MISMATCH,
	watchwordv1.AuthService_Verify_FullMethodName, "the token is for other services")

// audienceField names the field of a refused audience.
func audienceField(err error) error {
	if errors.Is(err, session.ErrAudience) {
		return invalidField{"audience", session.ErrAudience}
	}
	return err
}

// weakField names the field of a refused password.
func weakField(field string, err error) error {
	if errors.Is(err, password.ErrTooWeak) {
		return invalidField{field, err}
	}
	return err
}

func keyMessage(key issuer.Key) *watchwordv1.Key {
	return &watchwordv1.Key{
		Kid: key.KID, Algorithm: key.Algorithm, State: keyStates[key.State], PublishedAt: timestamp(key.PublishedAt),
		SignsFrom: timestamp(key.SignsFrom), SignsUntil: timestamp(key.SignsUntil), VerifiesUntil: timestamp(key.VerifiesUntil),
	}
}

var keyStates = map[issuer.State]watchwordv1.KeyState{
	issuer.Next:    watchwordv1.KeyState_KEY_STATE_NEXT,
	issuer.Signing: watchwordv1.KeyState_KEY_STATE_SIGNING,
	issuer.Retired: watchwordv1.KeyState_KEY_STATE_RETIRED,
	issuer.Revoked: watchwordv1.KeyState_KEY_STATE_REVOKED,
}

// timestamp is a time that may not be decided.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
