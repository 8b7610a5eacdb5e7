// Package verify has a program for each Go library of docs/verify.md that verifies access tokens,
// and a test of every library of the page, in all languages, against the real server.
package verify

import (
	"context"
	"errors"
	"slices"
)

// Server tells a library what to trust.
type Server struct{ Issuer, Audience, JWKS string }

// Verify returns the claim sub of a valid token.
type Verify func(ctx context.Context, token string) (subject string, err error)

// Libraries holds a verifier for each library, by the name of the file with the verifier.
var Libraries = map[string]func(ctx context.Context, s Server) (Verify, error){
	"gooidc.go":  GoOIDC,
	"zitadel.go": Zitadel,
	"jwx.go":     JWX,
	"keyfunc.go": Keyfunc,
	"gojose.go":  GoJOSE,
}

// algorithms holds the algorithms of Watchword. No other algorithm may sign a token.
var algorithms = []string{"EdDSA", "ES256", "RS256"}

// checkAudience returns an error unless the audience is among those of a token.
func checkAudience(audience string, audiences []string) error {
	if !slices.Contains(audiences, audience) {
		return errors.New("the token is for another audience")
	}
	return nil
}
