package token_test

import (
	"crypto"
	"crypto/x509"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/token/tokentest"
)

// BenchmarkParse measures a verifier's cost for a new token. BenchmarkMapClaims
// measures golang-jwt alone, with fewer checks.
func BenchmarkParse(b *testing.B) {
	for _, alg := range algorithms {
		b.Run(string(alg), func(b *testing.B) {
			key := generateKey(b, alg)
			raw := sign(b, key, typical())
			find := finder(key.Public())
			b.ReportAllocs()
			for b.Loop() {
				if _, err := token.Parse(raw, find); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkMapClaims(b *testing.B) {
	suite := tokentest.Load(b)
	for _, k := range suite.Keys {
		b.Run(k.JWK.GetAlg(), func(b *testing.B) {
			key, err := token.ParseSigningKey(k.PKCS8)
			if err != nil {
				b.Fatal(err)
			}
			raw := sign(b, key, typical())
			private, err := x509.ParsePKCS8PrivateKey(k.PKCS8)
			if err != nil {
				b.Fatal(err)
			}
			public := private.(crypto.Signer).Public()
			parser := jwt.NewParser(jwt.WithValidMethods([]string{k.JWK.GetAlg()}), jwt.WithoutClaimsValidation())
			find := func(*jwt.Token) (any, error) { return public, nil }
			b.ReportAllocs()
			for b.Loop() {
				if _, err := parser.ParseWithClaims(raw, jwt.MapClaims{}, find); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRefuse measures the cost of a forged token with an unknown key.
func BenchmarkRefuse(b *testing.B) {
	key := generateKey(b, token.EdDSA)
	raw := sign(b, key, typical())
	none := func(string) *token.PublicKey { return nil }
	b.ReportAllocs()
	for b.Loop() {
		_, _ = token.Parse(raw, none)
	}
}

func BenchmarkSign(b *testing.B) {
	for _, alg := range algorithms {
		b.Run(string(alg), func(b *testing.B) {
			key := generateKey(b, alg)
			for b.Loop() {
				sign(b, key, typical())
			}
		})
	}
}
