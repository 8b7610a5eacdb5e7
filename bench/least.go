package main

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/watchword-auth/watchword/authn"
)

// This file has the least that an interceptor can do: the limits of package authn. The limits
// use no code of Watchword.

var errLeast = errors.New("the token is not in the map, or has a wrong signature")

type leastKey struct{}

// leastSeen returns a call that looks up the metadata, finds the value in a map, and makes a
// context with a value.
func leastSeen(call context.Context) func(worker, i int) error {
	seen := map[string]*leastClaims{strings.Clone(metadata.ValueFromIncomingContext(call, "authorization")[0]): {}}
	return func(_, _ int) error {
		p, ok := seen[metadata.ValueFromIncomingContext(call, "authorization")[0]]
		if !ok {
			return errLeast
		}
		_, err := noop(context.WithValue(call, leastKey{}, p), nil)
		return err
	}
}

// leastUnseen returns calls that check the signature, read the claims by hand, and make a
// context with the claims.
func leastUnseen(public ed25519.PublicKey, calls []context.Context) func(worker, i int) error {
	return func(_, i int) error {
		call := calls[i%len(calls)]
		p, ok := parseLeast(strings.TrimPrefix(metadata.ValueFromIncomingContext(call, "authorization")[0], "Bearer "), public)
		if !ok || p.Version != 1 {
			return errLeast
		}
		_, err := noop(context.WithValue(call, leastKey{}, p), nil)
		return err
	}
}

type leastClaims struct {
	Issuer, Subject, ID, Session, Username string
	Audience, Roles                        []string
	Issued, Expires                        time.Time
	Version                                int64
}

// parseLeast reads a token of [issuer.mint], and checks nothing but the signature.
func parseLeast(raw string, key ed25519.PublicKey) (*leastClaims, bool) {
	first, last := strings.IndexByte(raw, '.'), strings.LastIndexByte(raw, '.')
	header, _ := base64.RawURLEncoding.DecodeString(raw[:first])
	payload, _ := base64.RawURLEncoding.DecodeString(raw[first+1 : last])
	signature, _ := base64.RawURLEncoding.DecodeString(raw[last+1:])
	if textAfter(string(header), `"kid":`) == "" || !ed25519.Verify(key, []byte(raw[:last]), signature) {
		return nil, false
	}
	claims := string(payload)
	return &leastClaims{
		textAfter(claims, `"iss":`), textAfter(claims, `"sub":`), textAfter(claims, `"jti":`), textAfter(claims, `"sid":`), textAfter(claims, `"username":`),
		textsAfter(claims, `"aud":`), textsAfter(claims, `"roles":`),
		time.Unix(numberAfter(claims, `"iat":`), 0), time.Unix(numberAfter(claims, `"exp":`), 0), numberAfter(claims, `"ver":`),
	}, true
}

func textAfter(json, name string) string {
	_, rest, _ := strings.Cut(json, name+`"`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

func textsAfter(json, name string) []string {
	_, rest, _ := strings.Cut(json, name+`["`)
	list, _, _ := strings.Cut(rest, `"]`)
	return strings.Split(list, `","`)
}

func numberAfter(json, name string) int64 {
	_, rest, _ := strings.Cut(json, name)
	n, _ := strconv.ParseInt(rest[:strings.IndexAny(rest, ",}")], 10, 64)
	return n
}

// unseenAlone compares, on one core and by processor time, the interceptor of a verifier
// without a cache with the least for a token that was never seen.
func unseenAlone(b *bench, issuer *issuer, calls []context.Context) error {
	verifier, err := issuer.verifier(0, authn.WithCacheSize(0))
	if err != nil {
		return err
	}
	defer verifier.Close()
	public, err := base64.RawURLEncoding.DecodeString(issuer.key.Public().JWK().GetX())
	if err != nil {
		return err
	}
	r := race{turns: b.of(21, 81), stint: 60 * time.Millisecond, workers: 1, batch: 4, processor: true}
	all, err := r.run(side{"ours", through(verifier.UnaryServerInterceptor(), calls)}, side{"least", leastUnseen(public, calls)})
	if err != nil {
		return err
	}
	b.report("interceptor/never-seen/on-one-core", all[0].nanos(), "ns", limit{})
	b.report("interceptor/never-seen/on-one-core/of-check-and-minimal-parse", 1/all[0].over(all[1]), "times", atMost(1))
	b.report("interceptor/check-and-minimal-parse/on-one-core", all[1].nanos(), "ns", limit{})
	return nil
}
