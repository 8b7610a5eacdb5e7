package rpc

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/token"
)

// Keys serves KeyService. The verifier lets only admins call KeyService.
type Keys struct {
	watchwordv1.UnimplementedKeyServiceServer
	Keyring *issuer.Keyring
}

// ListKeys serves KeyService/ListKeys.
func (s *Keys) ListKeys(ctx context.Context, _ *watchwordv1.ListKeysRequest) (*watchwordv1.ListKeysResponse, error) {
	keys, err := s.Keyring.List(ctx)
	return &watchwordv1.ListKeysResponse{Keys: messages(keys, keyMessage)}, err
}

// RotateKey serves KeyService/RotateKey.
func (s *Keys) RotateKey(ctx context.Context, req *watchwordv1.RotateKeyRequest) (*watchwordv1.RotateKeyResponse, error) {
	var r reading
	var alg token.Algorithm
	if name := req.GetAlgorithm(); name != "" {
		alg = field(&r, "algorithm", token.ParseAlgorithm, name)
	}
	if r.err != nil {
		return nil, r.err
	}
	key, err := s.Keyring.Rotate(ctx, callerOf(ctx), alg)
	return &watchwordv1.RotateKeyResponse{Key: keyMessage(key)}, err
}

// RevokeKey serves KeyService/RevokeKey.
func (s *Keys) RevokeKey(ctx context.Context, req *watchwordv1.RevokeKeyRequest) (*watchwordv1.RevokeKeyResponse, error) {
	var r reading
	kid := field(&r, "kid", requiredID, req.GetKid())
	if r.err != nil {
		return nil, r.err
	}
	key, err := s.Keyring.Revoke(ctx, callerOf(ctx), kid)
	return &watchwordv1.RevokeKeyResponse{Key: keyMessage(key)}, err
}

// keyMessage converts a signing key to a message of the API, without the private half.
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

	issuer.Untrusted: watchwordv1.KeyState_KEY_STATE_UNTRUSTED,
}

// timestamp converts a time to a message. For the zero time, which stands for a time that is
// not decided yet, timestamp returns nil.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
