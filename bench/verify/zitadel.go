package verify

import (
	"context"
	"net/http"

	"github.com/zitadel/oidc/v3/pkg/client"
	"github.com/zitadel/oidc/v3/pkg/client/rp"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// Zitadel verifies by zitadel/oidc, which leaves the audience to the caller.
func Zitadel(ctx context.Context, s Server) (Verify, error) {
	metadata, err := client.Discover(ctx, s.Issuer, http.DefaultClient)
	if err != nil {
		return nil, err
	}
	verifier := op.NewAccessTokenVerifier(s.Issuer, rp.NewRemoteKeySet(http.DefaultClient, metadata.JwksURI),
		op.WithSupportedAccessTokenSigningAlgorithms(metadata.IDTokenSigningAlgValuesSupported...))
	return func(ctx context.Context, token string) (string, error) {
		claims, err := op.VerifyAccessToken[*oidc.AccessTokenClaims](ctx, token, verifier)
		if err != nil {
			return "", err
		}
		return claims.Subject, checkAudience(s.Audience, claims.Audience)
	}, nil
}
