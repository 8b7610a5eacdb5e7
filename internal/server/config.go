package server

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/watchword-auth/watchword/internal/token"
)

// Config is what a server is started with. The tags are read by the command
// line, which makes a flag and an environment variable of every field. It holds
// no secret but the password that DatastoreURI may have.
type Config struct {
	GRPCAddr      string        `name:"grpc-addr" default:"127.0.0.1:50051" help:"Address of the gRPC API."`
	HTTPAddr      string        `name:"http-addr" default:"127.0.0.1:8080" help:"Address of the JWKS, metadata, health and metrics."`
	DatastoreURI  string        `name:"datastore-uri" default:"sqlite:watchword.db" help:"Database: sqlite:FILE or postgres://… (its password better by the variable, PGPASSWORD or PGPASSFILE)."`
	Issuer        string        `help:"Claim iss, an http or https URL. Kept in the database from the first start on; by default the HTTP address, with PostgreSQL none."`
	Audience      []string      `default:"internal" help:"Services that tokens may be for; may be given several times."`
	SigningAlg    string        `default:"EdDSA" enum:"EdDSA,ES256,RS256" help:"Algorithm of the first signing key: EdDSA, ES256 or RS256."`
	AccessTTL     time.Duration `name:"access-ttl" default:"5m" help:"Lifetime of an access token."`
	RefreshTTL    time.Duration `name:"refresh-ttl" default:"720h" help:"A session ends when it is not refreshed for so long."`
	SessionTTL    time.Duration `name:"session-ttl" default:"2160h" help:"A session ends after so long in any case."`
	RefreshGrace  time.Duration `default:"10s" help:"A spent refresh token gets the same answer again for so long."`
	JWKSMaxAge    time.Duration `name:"jwks-max-age" default:"1m" help:"How long caches may keep the JWKS."`
	KeyTTL        time.Duration `name:"key-ttl" default:"720h" help:"A signing key is replaced when it has signed for so long; 0: only by hand."`
	AuditTTL      time.Duration `name:"audit-ttl" default:"2160h" help:"The security record is kept for so long."`
	MasterKeyFile string        `type:"path" help:"File of the key that seals the keys in the database; by default beside an embedded database."`
	TLSCert       string        `name:"tls-cert" type:"path" help:"Certificate chain, PEM, for both addresses."`
	TLSKey        string        `name:"tls-key" type:"path" help:"Private key of the certificate, PEM."`
	ClientCA      string        `name:"client-ca" type:"path" help:"CA of client certificates, PEM: checked if given, needed by WatchBundle alone."`
	Insecure      bool          `help:"Serve without TLS to other machines."`
	DrainTimeout  time.Duration `default:"10s" help:"How long calls in flight may take when the server stops."`

	InitialPasswordFile string `type:"path" help:"File for the password of the first user, in place of standard output; must not exist before the first start."`
}

// DefaultConfig returns what the command line starts with when no flag is given: the
// defaults in the tags, which a test of package cli compares with these.
func DefaultConfig() Config {
	return Config{
		GRPCAddr: "127.0.0.1:50051", HTTPAddr: "127.0.0.1:8080", DatastoreURI: "sqlite:watchword.db",
		Audience: []string{"internal"}, SigningAlg: "EdDSA",
		AccessTTL: 5 * time.Minute, RefreshTTL: 720 * time.Hour, SessionTTL: 2160 * time.Hour, RefreshGrace: 10 * time.Second,
		JWKSMaxAge: time.Minute, KeyTTL: 720 * time.Hour, AuditTTL: 2160 * time.Hour, DrainTimeout: 10 * time.Second,
	}
}

// minAccessTTL is a bound below which clients would do little but refresh.
const minAccessTTL = time.Second

// An access token carries the issuer and the audiences, and has at most 8 KiB.
const (
	maxIssuer   = 256  // bytes
	maxAudience = 1024 // bytes in all
)

// audience is what needs no escape in a token's JSON, URIs among it.
var audience = regexp.MustCompile(`^[A-Za-z0-9._~:/?#@!$*+=-]{1,256}$`)

var printable = regexp.MustCompile(`^[!-~]*$`)

// Validate says what is wrong with a configuration, before anything is opened.
func (c *Config) Validate() error {
	return errors.Join(c.validateIssuing(), c.validateLifetimes(), c.validateTransport())
}

func (c *Config) validateIssuing() error {
	var errs []error
	if len(c.Audience) == 0 {
		errs = append(errs, errors.New("--audience: at least one is needed"))
	}
	if len(strings.Join(c.Audience, `","`)) > maxAudience {
		errs = append(errs, fmt.Errorf("--audience: more than %d bytes in all, and every access token carries them", maxAudience))
	}
	for _, a := range c.Audience {
		if !audience.MatchString(a) {
			errs = append(errs, fmt.Errorf("--audience: %q is not of the form %s", a, audience))
		}
	}
	if _, err := token.ParseAlgorithm(c.SigningAlg); err != nil {
		errs = append(errs, fmt.Errorf("--signing-alg: %w", err))
	}
	if c.Issuer != "" {
		u, err := url.Parse(c.Issuer)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || !printable.MatchString(c.Issuer) ||
			strings.ContainsAny(c.Issuer, "?#") ||
			u.Path != "" && path.Clean(u.Path) != u.Path || len(c.Issuer) > maxIssuer {
			errs = append(errs, fmt.Errorf("--issuer: must be an http or https URL of at most %d bytes with a clean path and without query "+
				"and fragment (RFC 8414, section 2)", maxIssuer))
		}
	}
	return errors.Join(errs...)
}

func (c *Config) validateLifetimes() error {
	var errs []error
	if c.AccessTTL < minAccessTTL {
		errs = append(errs, fmt.Errorf("--access-ttl: must be at least %v", minAccessTTL))
	}
	if c.RefreshTTL < c.AccessTTL {
		errs = append(errs, errors.New("--refresh-ttl: must not be shorter than --access-ttl"))
	}
	if c.SessionTTL < c.AccessTTL {
		errs = append(errs, errors.New("--session-ttl: must not be shorter than --access-ttl"))
	}
	if c.RefreshGrace < 0 || c.RefreshGrace >= c.RefreshTTL {
		errs = append(errs, errors.New("--refresh-grace: must not be negative, and shorter than --refresh-ttl"))
	}
	if c.JWKSMaxAge < 0 {
		errs = append(errs, errors.New("--jwks-max-age: must not be negative"))
	}
	if c.KeyTTL != 0 && c.KeyTTL < c.AccessTTL { // a key stays in the set until what it signed has expired
		errs = append(errs, errors.New("--key-ttl: must be 0, or not shorter than --access-ttl"))
	}
	if c.AuditTTL < time.Hour {
		errs = append(errs, errors.New("--audit-ttl: must be at least 1h"))
	}
	if c.DrainTimeout < 0 {
		errs = append(errs, errors.New("--drain-timeout: must not be negative"))
	}
	return errors.Join(errs...)
}

func (c *Config) validateTransport() error {
	var errs []error
	if (c.TLSCert == "") != (c.TLSKey == "") {
		errs = append(errs, errors.New("--tls-cert and --tls-key go together"))
	}
	if c.ClientCA != "" && c.TLSCert == "" {
		errs = append(errs, errors.New("--client-ca needs --tls-cert and --tls-key"))
	}
	for flag, addr := range map[string]string{"--grpc-addr": c.GRPCAddr, "--http-addr": c.HTTPAddr} {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: must be HOST:PORT", flag))
		} else if c.TLSCert == "" && !c.Insecure && !loopback(host) {
			errs = append(errs, fmt.Errorf("%s: %s is not a loopback address: passwords and tokens would travel in the clear; "+
				"give --tls-cert and --tls-key, or --insecure where something else protects the network", flag, addr))
		}
	}
	return errors.Join(errs...)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
