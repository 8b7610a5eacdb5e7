package federation

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

// newCA returns the certificate of a new CA and the CA's private key, in PEM.
func newCA(t *testing.T) (certificate, private string) {
	t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour), IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, bytes []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: bytes}))
	}
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", pkcs8)
}

// document returns a JSON Web Key Set with one new key.
func document(t *testing.T) string {
	t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return string(setOf(t, jwkOf(t, public).with(members{"kid": "k"})))
}

// wantField checks that err is an Invalid for a field; "" means no error.
func wantField(t *testing.T, name string, err error, field string) {
	t.Helper()
	var invalid Invalid
	switch errors.As(err, &invalid); {
	case field == "" && err != nil, field != "" && invalid.Field != field:
		t.Errorf("%s: %v, want field %q", name, err, field)
	}
}

func TestIssuerRules(t *testing.T) {
	ca, private := newCA(t)
	keys := document(t)
	secret := string(setOf(t, members{"kty": "oct", "k": "c2VjcmV0", "kid": "s"}))
	mixed := strings.Replace(keys, `"keys":[`, `"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"s"},`, 1)
	good := store.Issuer{Name: "prod", Issuer: "https://issuer.example", JwksURI: "https://issuer.example/keys?v=1", CAPEM: ca, MaxLifetime: time.Hour}
	for name, c := range map[string]struct {
		change func(*store.Issuer)
		field  string
	}{
		"good":                          {func(*store.Issuer) {}, ""},
		"long name":                     {func(i *store.Issuer) { i.Name = "a" + strings.Repeat("-", 63) }, ""},
		"an issuer that is no URL":      {func(i *store.Issuer) { i.Issuer = "spiffe trust domain" }, ""},
		"discovery":                     {func(i *store.Issuer) { i.JwksURI, i.Discovery = "", true }, ""},
		"discovery with a path":         {func(i *store.Issuer) { i.JwksURI, i.Discovery, i.Issuer = "", true, "https://a.example:8443/tenant/" }, ""},
		"document":                      {func(i *store.Issuer) { i.JwksURI, i.CAPEM, i.Jwks = "", "", keys }, ""},
		"private address":               {func(i *store.Issuer) { i.JwksURI, i.AllowPrivate = "https://[::1]/", true }, ""},
		"two certificates and a text":   {func(i *store.Issuer) { i.CAPEM = "# the old\n" + ca + "# the new\n" + ca }, ""},
		"no name":                       {func(i *store.Issuer) { i.Name = "" }, "name"},
		"name too long":                 {func(i *store.Issuer) { i.Name = strings.Repeat("a", 65) }, "name"},
		"name in upper case":            {func(i *store.Issuer) { i.Name = "Prod" }, "name"},
		"name begins with a hyphen":     {func(i *store.Issuer) { i.Name = "-prod" }, "name"},
		"name with a line":              {func(i *store.Issuer) { i.Name = "prod\n" }, "name"},
		"no issuer":                     {func(i *store.Issuer) { i.Issuer = "" }, "issuer"},
		"issuer too long":               {func(i *store.Issuer) { i.Issuer = strings.Repeat("a", 513) }, "issuer"},
		"issuer with a zero byte":       {func(i *store.Issuer) { i.Issuer = "a\x00" }, "issuer"},
		"issuer not UTF-8":              {func(i *store.Issuer) { i.Issuer = "a\xff" }, "issuer"},
		"issuer with a hidden sign":     {func(i *store.Issuer) { i.Issuer = "https://a\u200b.example" }, "issuer"},
		"issuer that ends with space":   {func(i *store.Issuer) { i.Issuer += " " }, "issuer"},
		"no source":                     {func(i *store.Issuer) { i.JwksURI = "" }, "jwks"},
		"two sources":                   {func(i *store.Issuer) { i.Discovery = true }, "jwks"},
		"discovery over http":           {func(i *store.Issuer) { i.JwksURI, i.Discovery, i.Issuer = "", true, "http://a.example" }, "issuer"},
		"discovery with a query":        {func(i *store.Issuer) { i.JwksURI, i.Discovery, i.Issuer = "", true, "https://a.example?x" }, "issuer"},
		"discovery with an empty query": {func(i *store.Issuer) { i.JwksURI, i.Discovery, i.Issuer = "", true, "https://a.example?" }, "issuer"},
		"discovery of no URL":           {func(i *store.Issuer) { i.JwksURI, i.Discovery, i.Issuer = "", true, "cluster" }, "issuer"},
		"a name of a private host":      {func(i *store.Issuer) { i.JwksURI = "https://localhost/" }, ""},
		"public addresses":              {func(i *store.Issuer) { i.JwksURI = "https://[2606:4700::1111]:8443/" }, ""},
		"document, iss at an address":   {func(i *store.Issuer) { i.JwksURI, i.CAPEM, i.Jwks, i.Issuer = "", "", keys, "https://10.0.0.1" }, ""},
		"private address not allowed":   {func(i *store.Issuer) { i.JwksURI = "https://10.0.0.1/keys" }, "jwks_uri"},
		"loopback not allowed":          {func(i *store.Issuer) { i.JwksURI = "https://[::1]:8443/" }, "jwks_uri"},
		"link-local not allowed":        {func(i *store.Issuer) { i.JwksURI = "https://[fe80::1%25eth0]/" }, "jwks_uri"},
		"IPv4 within IPv6 not allowed":  {func(i *store.Issuer) { i.JwksURI = "https://[::ffff:169.254.169.254]/" }, "jwks_uri"},
		"discovery at such an address":  {func(i *store.Issuer) { i.JwksURI, i.Discovery, i.Issuer = "", true, "https://192.168.1.1:8443/x" }, "issuer"},
		"URL over http":                 {func(i *store.Issuer) { i.JwksURI = "http://127.0.0.1/keys" }, "jwks_uri"},
		"URL of a file":                 {func(i *store.Issuer) { i.JwksURI = "file:///etc/keys" }, "jwks_uri"},
		"URL without a host":            {func(i *store.Issuer) { i.JwksURI = "https:///keys" }, "jwks_uri"},
		"URL without a host but port":   {func(i *store.Issuer) { i.JwksURI = "https://:443/keys" }, "jwks_uri"},
		"URL opaque":                    {func(i *store.Issuer) { i.JwksURI = "https:issuer.example" }, "jwks_uri"},
		"URL with a password":           {func(i *store.Issuer) { i.JwksURI = "https://a:b@issuer.example" }, "jwks_uri"},
		"URL with a fragment":           {func(i *store.Issuer) { i.JwksURI = "https://issuer.example/#" }, "jwks_uri"},
		"URL with a port of 0":          {func(i *store.Issuer) { i.JwksURI = "https://issuer.example:0/" }, "jwks_uri"},
		"URL with a large port":         {func(i *store.Issuer) { i.JwksURI = "https://issuer.example:65536/" }, "jwks_uri"},
		"URL with a space":              {func(i *store.Issuer) { i.JwksURI = "https://issuer .example/" }, "jwks_uri"},
		"URL too long":                  {func(i *store.Issuer) { i.JwksURI += strings.Repeat("a", 2048) }, "jwks_uri"},
		"document too long":             {func(i *store.Issuer) { i.JwksURI, i.CAPEM, i.Jwks = "", "", keys+strings.Repeat(" ", 32<<10) }, "jwks"},
		"document that is no set":       {func(i *store.Issuer) { i.JwksURI, i.CAPEM, i.Jwks = "", "", "{}" }, "jwks"},
		"document with a secret":        {func(i *store.Issuer) { i.JwksURI, i.CAPEM, i.Jwks = "", "", secret }, "jwks"},
		"document with a secret too":    {func(i *store.Issuer) { i.JwksURI, i.CAPEM, i.Jwks = "", "", mixed }, "jwks"},
		"document with a CA":            {func(i *store.Issuer) { i.JwksURI, i.Jwks = "", keys }, "ca_pem"},
		"document at a private address": {func(i *store.Issuer) { i.JwksURI, i.CAPEM, i.Jwks, i.AllowPrivate = "", "", keys, true }, "allow_private"},
		"CA with a private key":         {func(i *store.Issuer) { i.CAPEM += private }, "ca_pem"},
		"CA without PEM":                {func(i *store.Issuer) { i.CAPEM = "ca.pem" }, "ca_pem"},
		"CA that is cut":                {func(i *store.Issuer) { i.CAPEM += ca[:len(ca)/2] }, "ca_pem"},
		"CA that is no certificate":     {func(i *store.Issuer) { i.CAPEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" }, "ca_pem"},
		"CA too long":                   {func(i *store.Issuer) { i.CAPEM += strings.Repeat("\n", 64<<10) }, "ca_pem"},
		"lifetime of nothing":           {func(i *store.Issuer) { i.MaxLifetime = 0 }, "max_lifetime"},
		"negative lifetime":             {func(i *store.Issuer) { i.MaxLifetime = -time.Hour }, "max_lifetime"},
		"lifetime of a part":            {func(i *store.Issuer) { i.MaxLifetime = 1500 * time.Millisecond }, "max_lifetime"},
		"lifetime too long":             {func(i *store.Issuer) { i.MaxLifetime = longestLifetime + time.Second }, "max_lifetime"},
	} {
		row := good
		c.change(&row)
		wantField(t, name, checkIssuer(&row), c.field)
		if c.field == "" && row.CAPEM != "" && strings.ReplaceAll(row.CAPEM, ca, "") != "" {
			t.Errorf("%s: the certificates are kept as %q", name, row.CAPEM)
		}
	}
}

func TestBindingRules(t *testing.T) {
	claim := func(value any, path ...string) store.BoundClaim { return store.BoundClaim{Path: path, Value: value} }
	many := func(n int, value string) (claims []store.BoundClaim) {
		for i := range n {
			claims = append(claims, claim(value, fmt.Sprint("c", i)))
		}
		return claims
	}
	path := strings.Split("abcdefghi", "")
	for name, c := range map[string]struct {
		subject string
		claims  []store.BoundClaim
		field   string
	}{
		"no claims":                 {"system:serviceaccount:shop:orders", nil, ""},
		"many claims":               {"s", many(16, "v"), ""},
		"a string that is empty":    {"s", []store.BoundClaim{claim("", "head_ref")}, ""},
		"a deep path":               {"s", []store.BoundClaim{claim("v", path[:8]...)}, ""},
		"other values":              {"s", []store.BoundClaim{claim(1.0, "n"), claim(false, "b")}, ""},
		"a registered name inside":  {"s", []store.BoundClaim{claim("v", "a", "sub")}, ""},
		"neighbors":                 {"s", []store.BoundClaim{claim("v", "a", "c"), claim("v", "a", "b"), claim("v", "ab")}, ""},
		"no subject":                {"", nil, "subject"},
		"subject too long":          {strings.Repeat("s", 513), nil, "subject"},
		"subject with a line":       {"a\nb", nil, "subject"},
		"too many claims":           {"s", many(17, "v"), "claims"},
		"claims too long":           {"s", many(16, strings.Repeat("v", 128)), "claims"},
		"no path":                   {"s", []store.BoundClaim{claim("v")}, "claims"},
		"path too long":             {"s", []store.BoundClaim{claim("v", path...)}, "claims"},
		"empty name":                {"s", []store.BoundClaim{claim("v", "a", "")}, "claims"},
		"name too long":             {"s", []store.BoundClaim{claim("v", strings.Repeat("n", 129))}, "claims"},
		"value too long":            {"s", []store.BoundClaim{claim(strings.Repeat("v", 513), "a")}, "claims"},
		"value with a zero byte":    {"s", []store.BoundClaim{claim("\x00", "a")}, "claims"},
		"no value":                  {"s", []store.BoundClaim{claim(nil, "a")}, "claims"},
		"a list":                    {"s", []store.BoundClaim{claim([]any{"v"}, "a")}, "claims"},
		"no number":                 {"s", []store.BoundClaim{claim(math.NaN(), "a")}, "claims"},
		"a number too large":        {"s", []store.BoundClaim{claim(float64(1<<53), "a")}, "claims"},
		"an endless number":         {"s", []store.BoundClaim{claim(math.Inf(1), "a")}, "claims"},
		"a claim twice":             {"s", []store.BoundClaim{claim("v", "a"), claim("v", "b"), claim("w", "a")}, "claims"},
		"a claim and its inside":    {"s", []store.BoundClaim{claim("v", "a", "b"), claim("v", "a-"), claim("v", "a")}, "claims"},
		"a claim that is judged":    {"s", []store.BoundClaim{claim("v", "aud")}, "claims"},
		"the subject a second time": {"s", []store.BoundClaim{claim("v", "sub")}, "claims"},
	} {
		row := store.Binding{Issuer: "prod", Subject: c.subject, Claims: c.claims, UserID: "u"}
		wantField(t, name, checkBinding(&row), c.field)
	}
}
