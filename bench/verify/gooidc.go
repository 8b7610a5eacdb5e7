package verify

import (
	"context"

	"github.com/coreos/go-oidc/v3/oidc"
)

// GoOIDC verifies by coreos/go-oidc. NewProvider reads the algorithms from the metadata. With
// oidc.NewVerifier, SupportedSigningAlgs must name the algorithms.
func GoOIDC(ctx context.Context, s Server) (Verify, error) {
	provider, err := oidc.NewProvider(ctx, s.Issuer)
	if err != nil {
		return nil, err
	}
	verifier := provider.Verifier(&oidc.Config{ClientID: s.Audience})
	return func(ctx context.Context, token string) (string, error) {
		verified, err := verifier.Verify(ctx, token)
		if err != nil {
			return "", err
		}
		return verified.Subject, nil
	}, nil
}
