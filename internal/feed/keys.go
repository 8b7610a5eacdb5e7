package feed

import (
	"crypto/x509"
	"fmt"

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

// readKeys builds the trust state from the rows.
func (f *Feed) readKeys(tx *store.Tx) error {
	rows, err := tx.SigningKeys()
	if err != nil {
		return err
	}
	longest, err := tx.MaxLifetime()
	if err != nil {
		return err
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
			return fmt.Errorf("signing key %s: %w", row.KID, err)
		}
		trust.Keys = append(trust.Keys, key)
	}
	f.mu.Lock()
	f.trust = trust
	f.mu.Unlock()
	return nil
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
