package verify

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// GoJOSE verifies by go-jose, which fetches no keys.
func GoJOSE(_ context.Context, s Server) (Verify, error) {
	keys := &keySet{url: s.JWKS}
	return func(ctx context.Context, token string) (string, error) {
		parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.EdDSA, jose.ES256, jose.RS256})
		if err != nil {
			return "", err
		}
		set, err := keys.with(ctx, parsed.Headers[0].KeyID)
		if err != nil {
			return "", err
		}
		var claims jwt.Claims
		if err := parsed.Claims(set, &claims); err != nil {
			return "", err
		}
		return claims.Subject, claims.ValidateWithLeeway(jwt.Expected{Issuer: s.Issuer, AnyAudience: jwt.Audience{s.Audience}}, 0)
	}, nil
}

// keySet keeps the JWKS for keyLifetime. An unknown kid causes a fetch, at most once in
// keyPause: forged tokens must not flood the Watchword server.
type keySet struct {
	url string

	mu      sync.Mutex
	keys    *jose.JSONWebKeySet
	fetched time.Time
}

const (
	keyLifetime = 5 * time.Minute
	keyPause    = 5 * time.Second
)

// with returns the JWKS, fetched again if kid is unknown or the JWKS is old.
func (k *keySet) with(ctx context.Context, kid string) (*jose.JSONWebKeySet, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if age := time.Since(k.fetched); k.keys != nil && age < keyLifetime && (len(k.keys.Key(kid)) > 0 || age < keyPause) {
		return k.keys, nil
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	set := new(jose.JSONWebKeySet)
	if err := json.NewDecoder(response.Body).Decode(set); err != nil {
		return nil, err
	}
	k.keys, k.fetched = set, time.Now()
	return set, nil
}
