package feed

import (
	"context"
	"crypto/x509"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
)

// TrustState is whom to trust now. The caller must not change it.
func (f *Feed) TrustState() *watchwordv1.TrustState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.trust
}

// setTrust replaces the trust state; mu is held.
func (f *Feed) setTrust(trust *watchwordv1.TrustState) {
	f.trust, f.trustChunk = trust, encode(chunk(&watchwordv1.SnapshotChunk{TrustState: trust}))
}

// tellKeys lets the issuer take the keys. If it cannot, that holds up nothing
// else, and is tried again behind the next heartbeat.
func (f *Feed) tellKeys(ctx context.Context) {
	err := f.onKeys(ctx)
	f.untold = err != nil
	if err != nil && ctx.Err() == nil {
		f.logger.WarnContext(ctx, "the issuer cannot take the signing keys, and goes on with those that it has", "error", err)
	}
}

// readKeys builds the trust state from the rows. It leaves out what it cannot
// read, as the verifiers do: a newer version may have keys of another kind.
func (f *Feed) readKeys(ctx context.Context, tx *store.Tx) (*watchwordv1.TrustState, error) {
	rows, err := tx.SigningKeys()
	if err != nil {
		return nil, err
	}
	longest, err := tx.MaxLifetime()
	if err != nil {
		return nil, err
	}
	trust := &watchwordv1.TrustState{
		Issuer: f.issuer, MaxTokenLifetime: durationpb.New(longest), Margin: durationpb.New(Margin),
	}
	for _, row := range rows {
		if !row.RevokedAt.IsZero() || !row.VerifiesUntil.IsZero() && !row.VerifiesUntil.After(tx.Now()) {
			continue
		}
		key, err := verificationKey(row)
		if err != nil {
			f.logger.WarnContext(ctx, "a signing key cannot be read, and is left out", "kid", row.KID, "error", err)
			continue
		}
		trust.Keys = append(trust.Keys, key)
	}
	return trust, nil
}

func verificationKey(row *store.SigningKey) (*watchwordv1.VerificationKey, error) {
	parsed, err := x509.ParsePKIXPublicKey(row.PublicKey)
	if err != nil {
		return nil, err
	}
	public, err := token.NewPublicKey(parsed)
	if err != nil {
		return nil, err
	}
	key := &watchwordv1.VerificationKey{Key: public.JWK()}
	if !row.VerifiesUntil.IsZero() {
		key.VerifiesUntil = timestamppb.New(row.VerifiesUntil)
	}
	return key, nil
}
