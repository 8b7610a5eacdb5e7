package main

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/golang-jwt/jwt/v5"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/auth"
	"github.com/lestrrat-go/httprc/v3"
	"github.com/lestrrat-go/jwx/v3/jwk"
	jwxjwt "github.com/lestrrat-go/jwx/v3/jwt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// guard is a way to check the access tokens of a server's unary calls.
type guard struct {
	name  string
	unary grpc.UnaryServerInterceptor
}

// claimsKey is the key of a peer's claims in the context, as our Principal has one.
type claimsKey struct{}

// peers returns the usual alternatives: go-grpc-middleware's auth interceptor around a
// library for JWTs, set up as its documentation says. Each has the issuer's key in
// memory before it is measured, makes its parser and its options once, and checks the
// signature, EdDSA as the only algorithm, iss, aud and exp. None decodes more claims
// than its check returns.
func peers(ctx context.Context, i *issuer) ([]guard, error) {
	known, err := base64.RawURLEncoding.DecodeString(i.key.Public().JWK().GetX())
	if err != nil {
		return nil, err
	}
	set, err := keyfunc.NewDefaultCtx(ctx, []string{i.jwksURL()})
	if err != nil {
		return nil, err
	}
	byJWX, err := jwx(ctx, i)
	if err != nil {
		return nil, err
	}
	byOIDC, err := goOIDC(ctx, i)
	if err != nil {
		return nil, err
	}
	return []guard{
		bearer("golang-jwt", golangJWT(i, func(*jwt.Token) (any, error) { return ed25519.PublicKey(known), nil })),
		bearer("keyfunc", golangJWT(i, set.Keyfunc)),
		bearer("jwx", byJWX),
		bearer("go-oidc", byOIDC),
	}, nil
}

// bearer returns the interceptor for a check of tokens.
func bearer(name string, check func(ctx context.Context, raw string) (any, error)) guard {
	return guard{name, auth.UnaryServerInterceptor(func(ctx context.Context) (context.Context, error) {
		raw, err := auth.AuthFromMD(ctx, "bearer")
		if err != nil {
			return nil, err
		}
		claims, err := check(ctx, raw)
		if err != nil {
			return nil, status.Errorf(codes.Unauthenticated, "invalid token: %v", err)
		}
		return context.WithValue(ctx, claimsKey{}, claims), nil
	})}
}

// golangJWT uses golang-jwt with MapClaims, and the keys that the issuer serves.
func golangJWT(i *issuer, find jwt.Keyfunc) func(context.Context, string) (any, error) {
	parser := jwt.NewParser(jwt.WithValidMethods([]string{"EdDSA"}),
		jwt.WithIssuer(i.name), jwt.WithAudience(audience), jwt.WithExpirationRequired())
	return func(_ context.Context, raw string) (any, error) {
		parsed, err := parser.Parse(raw, find)
		if err != nil {
			return nil, err
		}
		return parsed.Claims, nil
	}
}

// jwx uses jwx with the key set that its cache keeps up to date.
func jwx(ctx context.Context, i *issuer) (func(context.Context, string) (any, error), error) {
	cache, err := jwk.NewCache(ctx, httprc.NewClient())
	if err != nil {
		return nil, err
	}
	if err := cache.Register(ctx, i.jwksURL()); err != nil { // waits for the first answer
		return nil, err
	}
	set, err := cache.CachedSet(i.jwksURL())
	if err != nil {
		return nil, err
	}
	options := []jwxjwt.ParseOption{jwxjwt.WithKeySet(set), jwxjwt.WithIssuer(i.name), jwxjwt.WithAudience(audience),
		jwxjwt.WithRequiredClaim(jwxjwt.ExpirationKey)}
	return func(_ context.Context, raw string) (any, error) {
		return jwxjwt.ParseString(raw, options...)
	}, nil
}

// goOIDC uses go-oidc with the provider's discovery and remote key set, which it keeps
// between calls.
func goOIDC(ctx context.Context, i *issuer) (func(context.Context, string) (any, error), error) {
	provider, err := oidc.NewProvider(ctx, i.name)
	if err != nil {
		return nil, err
	}
	verifier := provider.Verifier(&oidc.Config{ClientID: audience, SupportedSigningAlgs: []string{oidc.EdDSA}})
	return func(ctx context.Context, raw string) (any, error) { return verifier.Verify(ctx, raw) }, nil
}
