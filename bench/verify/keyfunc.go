package verify

import (
	"context"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
)

// Keyfunc verifies by golang-jwt with the keys of MicahParks/keyfunc.
func Keyfunc(ctx context.Context, s Server) (Verify, error) {
	keys, err := keyfunc.NewDefaultCtx(ctx, []string{s.JWKS})
	if err != nil {
		return nil, err
	}
	parser := jwt.NewParser(jwt.WithValidMethods(algorithms), jwt.WithIssuer(s.Issuer), jwt.WithAudience(s.Audience), jwt.WithExpirationRequired())
	return func(_ context.Context, token string) (string, error) {
		verified, err := parser.Parse(token, keys.Keyfunc)
		if err != nil {
			return "", err
		}
		return verified.Claims.GetSubject()
	}, nil
}
