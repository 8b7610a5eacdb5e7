package verify

import (
	"context"
	"time"

	"github.com/lestrrat-go/httprc/v3"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jwt"
)

// JWX verifies by lestrrat-go/jwx. The cache fetches the JWKS on a schedule alone.
func JWX(ctx context.Context, s Server) (Verify, error) {
	cache, err := jwk.NewCache(ctx, httprc.NewClient())
	if err != nil {
		return nil, err
	}
	// By default the cache fetches at most once in 15 minutes.
	if err := cache.Register(ctx, s.JWKS, jwk.WithMinInterval(time.Second)); err != nil {
		return nil, err
	}
	keys, err := cache.CachedSet(s.JWKS)
	if err != nil {
		return nil, err
	}
	return func(_ context.Context, token string) (string, error) {
		verified, err := jwt.ParseString(token, jwt.WithKeySet(keys), jwt.WithIssuer(s.Issuer), jwt.WithAudience(s.Audience))
		if err != nil {
			return "", err
		}
		subject, _ := verified.Subject()
		return subject, nil
	}, nil
}
