package server_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/server"
)

func TestValidate(t *testing.T) {
	type edit = func(*server.Config)
	issuer := func(name string) edit { return func(c *server.Config) { c.Issuer = name } }
	for name, test := range map[string]struct {
		edit
		want string // a part of the error; empty: no error
	}{
		"as it is":                     {func(*server.Config) {}, ""},
		"no audience":                  {func(c *server.Config) { c.Audience = nil }, "--audience"},
		"empty audience":               {func(c *server.Config) { c.Audience = []string{"internal", ""} }, "--audience"},
		"long audience":                {func(c *server.Config) { c.Audience = []string{long(257)} }, "--audience"},
		"audience that is not UTF-8":   {func(c *server.Config) { c.Audience = []string{"a\xff"} }, "--audience"},
		"longest audience":             {func(c *server.Config) { c.Audience = []string{long(256)} }, ""},
		"no algorithm":                 {func(c *server.Config) { c.SigningAlg = "" }, "--signing-alg"},
		"HMAC":                         {func(c *server.Config) { c.SigningAlg = "HS256" }, "--signing-alg"},
		"algorithm none":               {func(c *server.Config) { c.SigningAlg = "none" }, "--signing-alg"},
		"algorithm in another case":    {func(c *server.Config) { c.SigningAlg = "eddsa" }, "--signing-alg"},
		"ES256":                        {func(c *server.Config) { c.SigningAlg = "ES256" }, ""},
		"access TTL too short":         {func(c *server.Config) { c.AccessTTL = time.Second - 1 }, "--access-ttl"},
		"access TTL zero":              {func(c *server.Config) { c.AccessTTL = 0 }, "--access-ttl"},
		"access TTL negative":          {func(c *server.Config) { c.AccessTTL = -time.Hour }, "--access-ttl"},
		"refresh TTL below access":     {func(c *server.Config) { c.RefreshTTL = 4 * time.Minute }, "--refresh-ttl"},
		"session TTL below access":     {func(c *server.Config) { c.SessionTTL = 4 * time.Minute }, "--session-ttl"},
		"negative grace":               {func(c *server.Config) { c.RefreshGrace = -1 }, "--refresh-grace"},
		"no session":                   {func(c *server.Config) { c.MaxSessions = 0 }, "--max-sessions"},
		"one session":                  {func(c *server.Config) { c.MaxSessions = 1 }, ""},
		"the most sessions":            {func(c *server.Config) { c.MaxSessions = 10_000 }, ""},
		"more sessions than counted":   {func(c *server.Config) { c.MaxSessions = 10_001 }, "--max-sessions"},
		"no repeats":                   {func(c *server.Config) { c.RefreshRepeats = 0 }, "--refresh-repeats"},
		"no grace":                     {func(c *server.Config) { c.RefreshGrace = 0 }, ""},
		"grace as long as the refresh": {func(c *server.Config) { c.RefreshGrace = c.RefreshTTL }, "--refresh-grace"},
		"key TTL below access":         {func(c *server.Config) { c.KeyTTL = time.Minute }, "--key-ttl"},
		"keys rotated by hand":         {func(c *server.Config) { c.KeyTTL = 0 }, ""},
		"record kept for minutes":      {func(c *server.Config) { c.AuditTTL = time.Minute }, "--audit-ttl"},
		"negative max age":             {func(c *server.Config) { c.JWKSMaxAge = -1 }, "--jwks-max-age"},
		"no room for one hash":         {func(c *server.Config) { c.HashMemory = 57<<20 - 1 }, "--hash-memory: 59768831B is less than one password hash takes: give 57MiB or more"},
		"negative hash memory":         {func(c *server.Config) { c.HashMemory = -1 }, "--hash-memory"},
		"room for one hash":            {func(c *server.Config) { c.HashMemory = 57 << 20 }, ""},
		"negative drain timeout":       {func(c *server.Config) { c.DrainTimeout = -1 }, "--drain-timeout"},
		"certificate without key":      {func(c *server.Config) { c.TLSCert = "cert" }, "--tls-cert and --tls-key"},
		"key without certificate":      {func(c *server.Config) { c.TLSKey = "key" }, "--tls-cert and --tls-key"},
		"proxy by its name":            {func(c *server.Config) { c.TrustedProxy = []string{"proxy.example"} }, "--trusted-proxy"},
		"proxies":                      {func(c *server.Config) { c.TrustedProxy = []string{"10.0.0.0/8", "::1"} }, ""},
		"client CA without TLS":        {func(c *server.Config) { c.ClientCA = "ca" }, "--client-ca"},
		"gRPC off loopback":            {func(c *server.Config) { c.GRPCAddr = "0.0.0.0:50051" }, "--grpc-addr"},
		"gRPC everywhere":              {func(c *server.Config) { c.GRPCAddr = ":50051" }, "--grpc-addr"},
		"HTTP off loopback":            {func(c *server.Config) { c.HTTPAddr = "192.0.2.1:8080" }, "--http-addr"},
		"HTTP on a name":               {func(c *server.Config) { c.HTTPAddr = "localhost.example.com:8080" }, "--http-addr"},
		"IPv6 everywhere":              {func(c *server.Config) { c.GRPCAddr = "[::]:50051" }, "--grpc-addr"},
		"IPv6 loopback":                {func(c *server.Config) { c.GRPCAddr = "[::1]:50051" }, ""},
		"localhost":                    {func(c *server.Config) { c.GRPCAddr = "localhost:50051" }, ""},
		"all of 127":                   {func(c *server.Config) { c.GRPCAddr = "127.9.9.9:50051" }, ""},
		"off loopback, insecure":       {func(c *server.Config) { c.GRPCAddr, c.Insecure = "0.0.0.0:50051", true }, ""},
		"off loopback, TLS":            {func(c *server.Config) { c.GRPCAddr, c.TLSCert, c.TLSKey = "0.0.0.0:50051", "cert", "key" }, ""},
		"no port":                      {func(c *server.Config) { c.GRPCAddr = "127.0.0.1" }, "--grpc-addr"},
		"no address":                   {func(c *server.Config) { c.HTTPAddr = "" }, "--http-addr"},
		"issuer without a scheme":      {issuer("auth.example.internal"), "--issuer"},
		"issuer of another scheme":     {issuer("ftp://auth.example.internal"), "--issuer"},
		"issuer without a host":        {issuer("https://"), "--issuer"},
		"issuer of a path alone":       {issuer("/auth"), "--issuer"},
		"issuer with a query":          {issuer("https://auth.example.internal/?a=b"), "--issuer"},
		"issuer with an empty query":   {issuer("https://auth.example.internal/?"), "--issuer"},
		"issuer with a fragment":       {issuer("https://auth.example.internal/#a"), "--issuer"},
		"issuer with empty fragment":   {issuer("https://auth.example.internal/#"), "--issuer"},
		"issuer with a password":       {issuer("https://user:pass@auth.example.internal"), "--issuer"},
		"issuer that is not UTF-8":     {issuer("https://auth.example.internal/\xff"), "--issuer"},
		"issuer with a double slash":   {issuer("https://auth.example.internal//a"), "--issuer"},
		"issuer with dots":             {issuer("https://auth.example.internal/a/../b"), "--issuer"},
		"issuer with a slash at last":  {issuer("https://example.internal/auth/"), "--issuer"},
		"issuer with a path":           {issuer("https://example.internal/auth"), ""},
		"issuer too long":              {issuer("https://" + long(249)), "--issuer"},
		"longest issuer":               {issuer("https://" + long(248)), ""},
		"client id with a space":       {func(c *server.Config) { c.ClientID = "a b" }, "--client-id"},
		"client id too long":           {func(c *server.Config) { c.ClientID = long(129) }, "--client-id"},
		"client id that grows":         {func(c *server.Config) { c.ClientID = "<" }, "--client-id"},
		"longest client id":            {func(c *server.Config) { c.ClientID = long(128) }, ""},
		"the audience for admins":      {func(c *server.Config) { c.Audience = []string{"internal", "watchword"} }, "--audience"},
		"audience with a space":        {func(c *server.Config) { c.Audience = []string{"a b"} }, "--audience"},
		"audience with a line break":   {func(c *server.Config) { c.Audience = []string{"a\n"} }, "--audience"},
		"audience of a URI":            {func(c *server.Config) { c.Audience = []string{"https://api.example/a?b=c"} }, ""},
		"audiences too long in all":    {func(c *server.Config) { c.Audience = manyRoles(200) }, "--audience"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t.TempDir())
			test.edit(&cfg)
			err := cfg.Validate()
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// New names all mistakes of a configuration in one error, and opens nothing.
func TestValidateComesFirst(t *testing.T) {
	folder := t.TempDir()
	cfg := config(folder)
	cfg.Audience, cfg.AccessTTL, cfg.GRPCAddr = nil, 0, "0.0.0.0:0"
	srv, err := server.New(t.Context(), cfg, slog.New(slog.DiscardHandler), announceTo(new(strings.Builder)))
	if srv != nil || err == nil {
		t.Fatal(srv, err)
	}
	for _, flag := range []string{"--audience", "--access-ttl", "--grpc-addr"} {
		if !strings.Contains(err.Error(), flag) {
			t.Errorf("%v does not name %s", err, flag)
		}
	}
	if left, _ := os.ReadDir(folder); len(left) > 0 {
		t.Errorf("it left %v", left)
	}
}

// If a later step of New fails, New closes everything that it has opened (goleak checks the
// goroutines), and the error says what to do.
func TestNewFails(t *testing.T) {
	folder := t.TempDir()
	h, err := launch(folder)
	if err != nil {
		t.Fatal(err)
	}
	taken := h.server.HTTPAddr()
	defer h.stop()
	for name, test := range map[string]struct {
		edit func(*server.Config)
		want string
	}{
		"another issuer":      {func(c *server.Config) { c.Issuer = "https://elsewhere.example" }, "--issuer"},
		"address taken":       {func(c *server.Config) { c.HTTPAddr = taken }, "--http-addr"},
		"no master key":       {func(c *server.Config) { c.MasterKeyFile = filepath.Join(folder, "nothing") }, "nothing"},
		"not a master key":    {func(c *server.Config) { c.MasterKeyFile = h.database }, "master key"},
		"no such certificate": {func(c *server.Config) { c.TLSCert, c.TLSKey = "/nonexistent", "/nonexistent" }, "--tls-cert"},
		"another engine":      {func(c *server.Config) { c.DatastoreURI = "mysql://user:geheim@host" }, "datastore"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(folder)
			test.edit(&cfg)
			srv, err := server.New(t.Context(), cfg, slog.New(slog.DiscardHandler), announceTo(new(strings.Builder)))
			if srv != nil || err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "geheim") {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
	for _, file := range []string{h.database, h.database + ".master-key", h.database + "-wal"} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", file, info.Mode(), err)
		}
	}
}

// A second start keeps users, sessions and keys, and prints no password.
func TestRestart(t *testing.T) {
	folder := t.TempDir()
	h, err := launch(folder)
	if err != nil {
		t.Fatal(err)
	}
	tokens := h.admin.TokenPair
	issuerBefore := h.claims(t, h.admin).Issuer
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}
	again, err := launch(folder)
	if again != nil {
		defer again.stop()
	}
	if err == nil || again.announced != "" { // launch fails, since no password for its login was printed
		t.Fatalf("%q %v", again.announced, err)
	}
	wants(t, "a token of before", again.verify(t, tokens.GetAccessToken()), "ok")
	wants(t, "a session of before", again.refresh(t, tokens.GetRefreshToken()), "ok")
	again.admin.password = h.admin.password
	if err := again.login(again.admin); err != nil {
		t.Error(err)
	}
	if got := again.claims(t, again.admin).Issuer; got != issuerBefore {
		t.Errorf("issuer %s, before %s", got, issuerBefore)
	}
}
