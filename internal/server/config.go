package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/reload"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/transport"
	"github.com/watchword-auth/watchword/internal/user"
)

// Config holds the settings of a server. Package cli reads the tags, and makes a flag and an
// environment variable of every field. The only secret in a Config is the password in
// DatastoreURI, if the URI has one.
type Config struct {
	GRPCAddr             string        `name:"grpc-addr" default:"127.0.0.1:50051" help:"Address of the gRPC API."`
	HTTPAddr             string        `name:"http-addr" default:"127.0.0.1:8080" help:"Address of the JWKS, metadata, health and metrics."`
	DatastoreURI         string        `name:"datastore-uri" default:"sqlite:watchword.db" help:"Database: sqlite:FILE or postgres://… (give a password in the variable, PGPASSWORD or PGPASSFILE)."`
	Issuer               string        `help:"Claim iss, an http or https URL. The first start stores the issuer in the database. Default: the HTTP address; with PostgreSQL none."`
	Audience             []string      `default:"internal" help:"A service to issue tokens for; repeat the flag for more. A login that names none gets the first."`
	ClientID             string        `name:"client-id" placeholder:"NAME" help:"Claim client_id of the tokens of users, for verifiers that demand the claim (RFC 9068). Tokens of service accounts then name the service account. Default: no such claim."`
	SigningAlg           string        `default:"EdDSA" enum:"EdDSA,ES256,RS256" help:"Algorithm of the first signing key: EdDSA, ES256 or RS256."`
	AccessTTL            time.Duration `name:"access-ttl" default:"5m" help:"Lifetime of an access token."`
	RefreshTTL           time.Duration `name:"refresh-ttl" default:"720h" help:"A session ends after this time without a refresh."`
	SessionTTL           time.Duration `name:"session-ttl" default:"2160h" help:"A session ends after this time in any case."`
	MaxSessions          int           `default:"1000" help:"Sessions that one user can have; a further login ends the oldest."`
	RefreshGrace         time.Duration `default:"10s" help:"How long after a refresh the spent refresh token still gets the same new refresh token, for a client that lost the answer."`
	RefreshRepeats       int           `default:"16" help:"How many refreshes in a row may be repeated with the spent refresh token; one more ends the session."`
	JWKSMaxAge           time.Duration `name:"jwks-max-age" default:"1m" help:"How long caches may keep the JWKS."`
	KeyTTL               time.Duration `name:"key-ttl" default:"720h" help:"How long a signing key signs before the next key takes over; 0: until the command key rotate."`
	AuditTTL             time.Duration `name:"audit-ttl" default:"2160h" help:"How long the security record is kept."`
	MasterKeyFile        string        `type:"path" help:"File with the master key, which encrypts the keys in the database. Default: beside an embedded database."`
	TLSCert              string        `name:"tls-cert" type:"path" help:"Certificate chain, PEM, for both addresses."`
	TLSKey               string        `name:"tls-key" type:"path" help:"Private key of the certificate, PEM."`
	ClientCA             string        `name:"client-ca" type:"path" help:"CA of client certificates, PEM. A certificate is checked if the client shows one; WatchBundle requires one."`
	Insecure             bool          `help:"Allow addresses other than loopback without TLS."`
	MaxConnections       int           `help:"Connections to the gRPC address at a time. Default: 2048, or fewer if the limit of open files is low."`
	TrustedProxy         []string      `help:"Network or address of a proxy that may name the client's address in x-forwarded-for; repeat the flag for more."`
	HashMemory           Size          `placeholder:"SIZE" help:"Memory for password hashes, such as 256MiB. Default: half of the memory limit (cgroup or GOMEMLIMIT), or else a quarter of the machine's memory."`
	ThrottleFreeTries    int           `default:"10" help:"Wrong passwords for one user, or from one known device, before each further try has to wait."`
	ThrottleLongestDelay time.Duration `default:"30s" help:"Longest time between two tries for one user, however many passwords were wrong."`
	ThrottleSourceRate   int           `default:"5" help:"Wrong passwords a second from one network; 20 times as many at once. 0: no bound."`
	ShutdownDelay        time.Duration `default:"0s" help:"How long the server goes on serving after SIGTERM, with readiness off, until load balancers send calls to other replicas."`
	DrainTimeout         time.Duration `default:"10s" help:"How long calls in flight may take while the server stops."`

	PasswordRules

	InitialPasswordFile string `type:"path" help:"File for the password of the first user, instead of standard output. Must not exist at the first start."`
}

// PasswordRules holds the settings of the rules for new passwords. The settings are flags of
// `serve`, and of the commands that set a password in the database.
type PasswordRules struct {
	MinPasswordLength int    `default:"15" help:"Fewest characters of a new password, 8 at least."`
	PasswordList      string `type:"path" help:"File of further passwords to refuse, one a line."`
}

// maxMinPasswordLength is the largest value of --min-password-length: NIST SP 800-63B-4 demands
// that users can choose passwords of 64 characters.
const maxMinPasswordLength = 64

// Validate returns every fault of the settings. The text of each fault begins with the name of
// the flag.
func (r *PasswordRules) Validate() error {
	return check(rule{r.MinPasswordLength < password.LeastMinLength || r.MinPasswordLength > maxMinPasswordLength,
		fmt.Sprintf("--min-password-length: must be between %d and %d (NIST SP 800-63B-4)", password.LeastMinLength, maxMinPasswordLength)})
}

// Policy reads the file of --password-list, and returns the rules for new passwords.
func (r *PasswordRules) Policy() (password.Policy, error) {
	policy := password.Policy{MinLength: r.MinPasswordLength}
	if r.PasswordList == "" {
		return policy, nil
	}
	file, err := os.Open(r.PasswordList)
	if err != nil {
		return policy, fmt.Errorf("--password-list: %w", err)
	}
	defer file.Close()
	if policy.List, err = password.ReadList(file, r.MinPasswordLength); err != nil {
		err = fmt.Errorf("--password-list: %s: %w", r.PasswordList, err)
	}
	return policy, err
}

// DefaultConfig returns the settings with which the command line starts if no flag is given. A
// test of package cli compares the settings with the defaults in the tags.
func DefaultConfig() Config {
	return Config{
		GRPCAddr: "127.0.0.1:50051", HTTPAddr: "127.0.0.1:8080", DatastoreURI: "sqlite:watchword.db",
		Audience: []string{"internal"}, SigningAlg: "EdDSA",
		AccessTTL: 5 * time.Minute, RefreshTTL: 720 * time.Hour, SessionTTL: 2160 * time.Hour, MaxSessions: 1000,
		RefreshGrace: 10 * time.Second, RefreshRepeats: session.DefaultRepeats,
		JWKSMaxAge: time.Minute, KeyTTL: 720 * time.Hour, AuditTTL: 2160 * time.Hour, DrainTimeout: 10 * time.Second,
		PasswordRules:     PasswordRules{MinPasswordLength: password.DefaultMinLength},
		ThrottleFreeTries: 10, ThrottleLongestDelay: 30 * time.Second, ThrottleSourceRate: 5,
	}
}

// minAccessTTL is the shortest lifetime of an access token. With a shorter lifetime, clients
// would do little else than refresh.
const minAccessTTL = time.Second

// maxMaxSessions is the largest value of --max-sessions. Each login counts the user's sessions,
// up to --max-sessions: counting 10,000 sessions takes about 1.5 ms, and keeps SQLite's one
// writer busy for 1.5 ms.
const maxMaxSessions = 10_000

// The issuer, the client id and the audiences are in every access token, and a token has at most 8
// KiB: a longer token would not fit into the headers of a call. The bounds of the three
// settings leave room for 32 roles.
const (
	maxIssuer   = 256  // bytes
	maxClientID = 128  // bytes
	maxAudience = 1024 // bytes of all audiences together
)

// printable matches visible ASCII characters: verifiers compare `iss` byte by byte, and
// other characters have several spellings.
var printable = regexp.MustCompile(`^[!-~]*$`)

// clientID matches characters that JSON writes as one byte each: other characters could make the
// token too long.
var clientID = regexp.MustCompile(`^[A-Za-z0-9._~:/@-]*$`)

// Validate returns every fault of a configuration in one error, so that the operator can mend
// all faults at once. [New] calls Validate before New opens the database or an address. The
// text of each fault begins with the name of the flag.
func (c *Config) Validate() error {
	return errors.Join(c.validateIssuing(), c.validateLifetimes(), c.validateBounds(), c.validateThrottle(), c.validateTransport(), c.PasswordRules.Validate())
}

// CheckFiles returns the faults of the database's URI, and of the files that must exist before
// the start. CheckFiles opens no database. The text of each fault begins with the name of the
// flag.
func (c *Config) CheckFiles() error {
	_, _, err := c.readFiles(reload.NewSet(slog.New(slog.DiscardHandler)))
	return err
}

// readFiles checks what CheckFiles checks, and adds the files of TLS to a set. Without TLS,
// readFiles returns nil for TLS. The error holds every fault, so that the operator can mend all
// faults at once.
func (c *Config) readFiles(set *reload.Set) (password.Policy, *tlsFiles, error) {
	_, errURI := store.CheckURI(c.DatastoreURI)
	if errURI != nil {
		errURI = fmt.Errorf("--datastore-uri: %w", errURI)
	}
	policy, errList := c.Policy()
	files, errTLS := c.tls(set)
	return policy, files, errors.Join(errURI, c.checkMasterFile(), errList, errTLS, c.checkPasswordFile())
}

// rule is one rule for a flag of the configuration.
type rule struct {
	broken bool   // whether the configuration breaks the rule
	text   string // the text of the fault, which begins with the name of the flag
}

// check joins the texts of the broken rules.
func check(rules ...rule) error {
	var errs []error
	for _, r := range rules {
		if r.broken {
			errs = append(errs, errors.New(r.text))
		}
	}
	return errors.Join(errs...)
}

func (c *Config) validateIssuing() error {
	rules := []rule{
		{len(c.ClientID) > maxClientID || !clientID.MatchString(c.ClientID),
			fmt.Sprintf("--client-id: must be at most %d letters, digits and characters of ._~:/@-", maxClientID)},
		{len(c.Audience) == 0, "--audience: at least one is needed"},
		{len(strings.Join(c.Audience, `","`)) > maxAudience,
			fmt.Sprintf("--audience: more than %d bytes together, and every access token carries them", maxAudience)},
		{c.Issuer != "" && !validIssuer(c.Issuer),
			fmt.Sprintf("--issuer: must be an http or https URL of at most %d bytes with a clean path and without query and fragment (RFC 8414, section 2)", maxIssuer)},
	}
	for _, a := range c.Audience {
		rules = append(rules,
			rule{!user.IsAudience(a), "--audience: each must be " + user.AudienceForm},
			rule{a == caller.AdminAudience, "--audience: " + caller.AdminAudience + " is the audience for administration, for which every server issues: " +
				"name your services otherwise"})
	}
	_, err := token.ParseAlgorithm(c.SigningAlg)
	return check(append(rules, rule{err != nil, fmt.Sprintf("--signing-alg: %v", err)})...)
}

// validIssuer checks the issuer by RFC 8414, section 2. validIssuer refuses a path that is not
// clean, such as /a//b: the HTTP server would redirect the path instead of serving it.
func validIssuer(issuer string) bool {
	u, err := url.Parse(issuer)
	return err == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https") && u.User == nil &&
		(u.Path == "" || path.Clean(u.Path) == u.Path) &&
		printable.MatchString(issuer) && !strings.ContainsAny(issuer, "?#") && len(issuer) <= maxIssuer
}

func (c *Config) validateLifetimes() error {
	return check(
		rule{c.AccessTTL < minAccessTTL, fmt.Sprintf("--access-ttl: must be at least %v", minAccessTTL)},
		rule{c.RefreshTTL < c.AccessTTL, "--refresh-ttl: must not be shorter than --access-ttl"},
		rule{c.SessionTTL < c.AccessTTL, "--session-ttl: must not be shorter than --access-ttl"},
		rule{c.MaxSessions < 1 || c.MaxSessions > maxMaxSessions, fmt.Sprintf("--max-sessions: must be between 1 and %d", maxMaxSessions)},
		rule{c.RefreshGrace < 0 || c.RefreshGrace >= c.RefreshTTL, "--refresh-grace: must not be negative, and must be shorter than --refresh-ttl"},
		rule{c.RefreshRepeats < 1, "--refresh-repeats: must be at least 1, so that one lost answer logs out no client"},
		rule{c.JWKSMaxAge < 0, "--jwks-max-age: must not be negative"},
		// A key stays in the key set until its last token has expired. With a --key-ttl below
		// --access-ttl, many keys would collect in the key set.
		rule{c.KeyTTL != 0 && c.KeyTTL < c.AccessTTL, "--key-ttl: must be 0, or not shorter than --access-ttl"},
		rule{c.AuditTTL < time.Hour, "--audit-ttl: must be at least 1h"},
		rule{c.ShutdownDelay < 0, "--shutdown-delay: must not be negative"},
		rule{c.DrainTimeout < 0, "--drain-timeout: must not be negative"},
	)
}

func (c *Config) validateBounds() error {
	return check(
		rule{c.MaxConnections != 0 && c.MaxConnections < minConnections,
			fmt.Sprintf("--max-connections: must be at least %d", minConnections)},
		rule{c.HashMemory != 0 && c.HashMemory < oneHash, fmt.Sprintf("--hash-memory: %v is less than one password hash takes: give %v or more", c.HashMemory, oneHash)},
	)
}

// validateThrottle refuses settings that make the list of promised tries long: package throttle
// promises a client the time of its next try, one time in each --throttle-longest-delay, up to
// an hour ahead.
func (c *Config) validateThrottle() error {
	return check(
		rule{c.ThrottleFreeTries < 1 || c.ThrottleFreeTries > maxFreeTries, fmt.Sprintf("--throttle-free-tries: must be between 1 and %d", maxFreeTries)},
		rule{c.ThrottleLongestDelay < 10*time.Second || c.ThrottleLongestDelay > time.Hour, "--throttle-longest-delay: must be between 10s and 1h"},
		rule{c.ThrottleSourceRate < 0 || c.ThrottleSourceRate > maxSourceRate, fmt.Sprintf("--throttle-source-rate: must be between 0 and %d", maxSourceRate)},
	)
}

// The largest values of --throttle-free-tries and --throttle-source-rate are far beyond the
// values that slow down an attacker that guesses passwords.
const (
	maxFreeTries  = 1_000_000
	maxSourceRate = 1_000_000
)

// validateTransport refuses to send passwords and tokens without TLS to other machines, unless
// the operator sets --insecure.
func (c *Config) validateTransport() error {
	_, err := caller.ParseProxies(c.TrustedProxy)
	rules := []rule{
		{err != nil, fmt.Sprintf("--trusted-proxy: %v", err)},
		{(c.TLSCert == "") != (c.TLSKey == ""), "--tls-cert and --tls-key go together"},
		{c.ClientCA != "" && c.TLSCert == "", "--client-ca needs --tls-cert and --tls-key"},
	}
	for _, address := range []struct{ flag, value string }{{"--grpc-addr", c.GRPCAddr}, {"--http-addr", c.HTTPAddr}} {
		host, _, err := net.SplitHostPort(address.value)
		rules = append(rules,
			rule{err != nil, address.flag + ": must be HOST:PORT"},
			rule{err == nil && c.TLSCert == "" && !c.Insecure && !transport.LoopbackListener(host),
				address.flag + ": not a loopback address, so passwords and tokens would travel in the clear: " +
					"give --tls-cert and --tls-key, or --insecure if the network is protected by other means"})
	}
	return check(rules...)
}
