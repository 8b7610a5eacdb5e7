package authn

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/protobuf/proto"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// An Option sets a property of a Verifier. If an option is given twice, the names of services
// and methods of both options are used; for every other option the last value is used.
type Option func(*config)

// config holds the values of the options. The zero config names no audience and is
// refused, so a program that forgets the audience gets no Verifier.
type config struct {
	audience    audience
	rules       []methodRule
	leeway      time.Duration
	plaintext   bool
	withoutWait bool
	stale       staleness
	cacheBytes  int
	snapshot    *string   // the path of the snapshot file; nil: no file
	words       [3]string // the values of WithName, WithInstance and WithVersion
	log         *slog.Logger
	meters      metric.MeterProvider // the value of WithMeterProvider; nil: no metrics
	attributes  []attribute.KeyValue // the attributes given to WithMeterProvider
}

// audience lists names of services. A token (claim aud) must name at least one of the services.
type audience struct {
	any   bool
	names []string
}

// accepts reports whether named, the names in the audience of a token, has a service of a.
func (a audience) accepts(named []string) bool {
	return a.any || slices.ContainsFunc(named, func(name string) bool {
		return slices.Contains(a.names, name)
	})
}

// WithAudience names the services that this process is. A token must be for at least one of the
// names (claim aud, RFC 7519 section 4.1.3 and RFC 9068 section 4); any other token is
// AUDIENCE_MISMATCH. So no other service can use the tokens of its callers in this process. A
// method with an audience in its option (watchword.v1.access) needs a token for that audience
// instead.
//
// [NewVerifier] needs WithAudience or [WithAnyAudience], and returns INVALID_ARGUMENT if a
// name is empty.
func WithAudience(names ...string) Option {
	return func(c *config) { c.audience.names = append(c.audience.names, names...) }
}

// WithAnyAudience accepts tokens for any service. Every service that has received such a token
// from a caller can then call this process in the caller's name. A method with an audience in
// its option (watchword.v1.access) still needs a token for that audience.
func WithAnyAudience() Option {
	return func(c *config) { c.audience.any = true }
}

// WithPublicMethods admits every caller to the named methods, with a valid token, a bad token
// or no token. WithPublicMethods sets the same rule as [WithMethodRule] with {public: true},
// for any number of patterns.
//
// Use WithPublicMethods for services with proto files of other projects, such as health and
// reflection. In a proto file of your own, set the option (watchword.v1.access) of the method
// to {public: true}.
//
// Errors of NewVerifier: those that [WithMethodRule] lists.
func WithPublicMethods(patterns ...string) Option {
	return func(c *config) {
		for _, pattern := range patterns {
			c.rules = append(c.rules, methodRule{"WithPublicMethods", pattern, &watchwordv1.Access{Public: true}})
		}
	}
}

// WithMethodRule sets the access rule of methods without the method option of
// watchword/v1/access.proto. The rule means the same as in the option: the empty rule demands a
// valid token, roles demand one of the roles, and an audience replaces the audience of
// [WithAudience]. A pattern is "/package.Service/Method", or "/package.Service/*" for every
// method of a service that has no rule of its own.
//
// Two kinds of methods need WithMethodRule: methods with proto files of other projects, and
// methods with Go code that was generated for another protobuf runtime than
// google.golang.org/protobuf (such as gogo/protobuf). The program has no descriptors of methods of
// the second kind, so it cannot read their options. Without WithMethodRule or [WithPublicMethods],
// methods of the second kind admit no caller.
//
// The option of a method takes precedence over every pattern: a pattern for a whole service
// changes nothing for a method with an option, and a pattern with the name of such a method
// must say the same as the option. A pattern with a method's name takes precedence over a
// pattern for the whole service.
//
// Errors of NewVerifier: INVALID_ARGUMENT for a pattern of another form, for a nil rule, for a
// rule that is public and sets another field, for a role that no user can have, for an empty
// audience, for two different rules for one pattern, and for a rule that differs from the
// method's option.
func WithMethodRule(pattern string, rule *watchwordv1.Access) Option {
	return func(c *config) { c.rules = append(c.rules, methodRule{"WithMethodRule", pattern, rule}) }
}

// WithPlaintextFromOtherHosts accepts the trust bundle, with the public keys, from another
// machine over a connection without TLS. An attacker on the network path can then replace the
// keys and forge tokens of every user. So use WithPlaintextFromOtherHosts only where the
// network protects the path by other means.
func WithPlaintextFromOtherHosts() Option {
	return func(c *config) { c.plaintext = true }
}

// WithLeeway accepts tokens for a duration after their expiry (RFC 7519 section 4.1.4). The
// default leeway is zero. A leeway is rarely needed, since a Verifier compares the expiry with the
// server's clock.
//
// The server announces a margin: for how long the server keeps revocations after the expiry of the
// tokens concerned. A leeway longer than the margin is cut to the margin, with a warning in the
// log. [NewVerifier] returns INVALID_ARGUMENT if the leeway is negative.
func WithLeeway(leeway time.Duration) Option {
	return func(c *config) { c.leeway = leeway }
}

// WithoutWaiting lets NewVerifier return before the first trust bundle has come. Until the
// bundle has come, every guarded call is BUNDLE_STALE. [Verifier.Ready] waits for the bundle.
func WithoutWaiting() Option {
	return func(c *config) { c.withoutWait = true }
}

// WithLogger names the logger of the Verifier. The log gets each end and return of the trust
// bundle's stream, staleness, a clock of the server that was set, failures of the snapshot
// file, and panics of handlers after the end of their streams. For a call refused as
// AUDIENCE_MISMATCH or ROLE_REQUIRED, the log gets what was compared (one line a second at
// most). No token is logged. The default, also for nil, is slog.Default(); for silence, give
// slog.New(slog.DiscardHandler).
func WithLogger(log *slog.Logger) Option {
	return func(c *config) { c.log = log }
}

// WithName, [WithInstance] and [WithVersion] describe this process to the operator of the
// Watchword server: `watchword watchers` lists every verifier with its name, instance and
// version. No decision of the server depends on these texts. The name is the name of the service,
// such as "orders"; the default is the name of the program.
//
// [NewVerifier] returns INVALID_ARGUMENT if the name, the instance or the version has more than
// 128 bytes, is not UTF-8, or has a zero byte.
func WithName(service string) Option { return func(c *config) { c.words[0] = service } }

// WithInstance distinguishes this process from the other instances of the service; see
// [WithName]. The default is the name of the machine, which is the name of the pod in
// Kubernetes.
func WithInstance(instance string) Option { return func(c *config) { c.words[1] = instance } }

// WithVersion says which version of the service this process runs; see [WithName]. The default
// is the version of the program's main module that the Go toolchain has stored in the program.
func WithVersion(version string) Option { return func(c *config) { c.words[2] = version } }

// StalePolicy selects what a Verifier does while its trust bundle is stale; see
// [WithMaxStaleness].
type StalePolicy int

const (
	// ContinueWhenStale verifies tokens by the newest keys and revocations that the Verifier
	// has received. A session that ended later stays accepted until its access token expires.
	ContinueWhenStale StalePolicy = iota + 1
	// RefuseWhenStale refuses every guarded call as BUNDLE_STALE.
	RefuseWhenStale
)

const (
	defaultMaxStaleness = time.Minute
	// minMaxStaleness is longer than the pause between two heartbeats, which is a few seconds.
	minMaxStaleness = 10 * time.Second
)

// WithMaxStaleness sets the age from which the trust bundle is stale, and the policy for a
// stale bundle. The default is a minute and ContinueWhenStale. [NewVerifier] returns
// INVALID_ARGUMENT if the policy is unknown, or if the age is less than 10 s, since the
// server's heartbeats come every few seconds.
//
// A heartbeat of the server carries the time up to which the server knew every change. The age
// of the bundle is the time since the newest such time. So the age also grows while the server
// is connected but has lost its database, and a heartbeat that arrives late is as old as its
// delay. The age does not change if the clock of this machine or of the server is set. The age
// may be too high by the newest round trip to the server.
//
// A suspension of the machine, such as of a laptop, adds to the age and to the time by which
// tokens expire. If the host of a virtual machine pauses the machine, the Verifier notices the
// pause at the server's next heartbeat.
func WithMaxStaleness(after time.Duration, policy StalePolicy) Option {
	return func(c *config) { c.stale = staleness{after, policy} }
}

// WithSnapshotFile keeps the trust bundle in a file: the keys, the revocations, and the
// server's time. After a restart the Verifier uses the file until the server answers, so a
// service can start while its Watchword server is away. When the server answers, the server
// sends only the changes since the file was written.
//
// A Verifier that uses the file while the server is away does not know:
//
//   - Changes since the file was written: a session ended since then is accepted until its
//     access tokens expire, and a key withdrawn since then is trusted, until the server
//     answers. [WithMaxStaleness] with RefuseWhenStale sets a limit, because the age of the
//     file counts as staleness.
//   - The exact time: the Verifier takes the latest possible time, which is the server's time in
//     the file plus the time passed since, or this machine's clock if later. A clock ahead of
//     the server's lets tokens expire early. If the machine has booted since the file was
//     written, the time passed is unknown: the bundle is stale from the first moment.
//
// Protect the file as you would protect the keys: anyone able to write the file can forge
// tokens of every user. The Verifier creates the file with mode 0600, and creates a missing
// folder with mode 0700 if the folder above exists. The Verifier ignores a file that belongs to
// another user, that is damaged, or that has another version of the format. The folder must
// belong to the same user or to root, and no other user may have the right to write to the
// folder, unless the folder is sticky, such as /tmp. A volume that the platform mounts with
// other modes needs a folder of the service's own. Only Unix has such modes: on other systems
// the operator has to protect the file.
//
// If another user has the right to read or write the file, or to write to the folder, and the
// file or folder belongs to the user of this process, the Verifier removes the right and begins
// without the file: Kubernetes widens the modes of a volume with fsGroup.
//
// NewVerifier returns INVALID_ARGUMENT if the file could never be used: if the path is empty or
// names a link, a folder or another irregular file, if the folder belongs to another user or if
// another user has the right to write to the folder, or if there is no file and the process has
// no right to write to the folder. Any other fault of the file is in the log and in [Status],
// and the Verifier waits for the server as it does without a file.
//
// The file is written soon after the first bundle and after each change of keys, every 15
// seconds otherwise (a file of many megabytes less often), and by Close. Give each
// service and each server a file of its own: with the server away, a Verifier cannot tell
// the keys of production from the keys of a test.
func WithSnapshotFile(path string) Option {
	return func(c *config) { c.snapshot = &path }
}

// defaultCacheBytes is enough memory for about twenty thousand tokens of ordinary length.
const defaultCacheBytes = 32 << 20

// WithCacheSize sets the largest size of the cache of verified tokens, in bytes. The default is
// 32 MiB. A token of 500 bytes takes about 1,800 bytes in the cache. With size zero, the Verifier
// checks the signature at every call. [NewVerifier] returns INVALID_ARGUMENT if the size is
// negative.
func WithCacheSize(bytes int) Option {
	return func(c *config) { c.cacheBytes = bytes }
}

// newConfig applies the options to a zero config.
//
// Errors: an error for an option with a value that makes no sense.
func newConfig(opts []Option) (*config, error) {
	c := &config{stale: staleness{defaultMaxStaleness, ContinueWhenStale}, cacheBytes: defaultCacheBytes}
	for _, opt := range opts {
		opt(c)
	}
	if c.log == nil {
		c.log = slog.Default()
	}
	named := len(c.audience.names) > 0
	switch {
	case named && c.audience.any:
		return nil, errors.New("WithAudience and WithAnyAudience exclude each other")
	case !named && !c.audience.any:
		return nil, errors.New("no audience: name the services of this process with WithAudience, " +
			"or accept tokens for any service with WithAnyAudience")
	case slices.Contains(c.audience.names, ""):
		return nil, errors.New("WithAudience: a name is empty")
	case c.stale.policy != ContinueWhenStale && c.stale.policy != RefuseWhenStale:
		return nil, fmt.Errorf("WithMaxStaleness: %d is not a policy", c.stale.policy)
	case c.stale.after < minMaxStaleness:
		return nil, fmt.Errorf("WithMaxStaleness: %v is less than %v: heartbeats come every few seconds", c.stale.after, minMaxStaleness)
	case c.cacheBytes < 0:
		return nil, fmt.Errorf("WithCacheSize: %d is negative", c.cacheBytes)
	case c.leeway < 0:
		return nil, fmt.Errorf("WithLeeway: %v is negative", c.leeway)
	case !goodWords(c.words[:]...):
		return nil, fmt.Errorf("WithName, WithInstance, WithVersion: a text has more than %d bytes, is not UTF-8, or has a zero byte", maxWords)
	case c.snapshot != nil && *c.snapshot == "":
		return nil, errors.New("WithSnapshotFile: the path is empty")
	}
	if c.snapshot != nil { // an absolute path, since the working directory may change
		path, err := filepath.Abs(*c.snapshot)
		if err != nil {
			return nil, fmt.Errorf("WithSnapshotFile: %w", err)
		}
		c.snapshot = &path
	}
	return c, nil
}

// namedRules returns the rules of WithMethodRule and WithPublicMethods by their patterns.
//
// Errors: see [WithMethodRule]. [newAccessRules] finds out later whether a rule differs from a
// method's option.
func (c *config) namedRules() (map[string]methodRule, error) {
	named := make(map[string]methodRule, len(c.rules))
	for _, r := range c.rules {
		if !validPattern(r.pattern) {
			return nil, fmt.Errorf("%s: %q is neither /package.Service/Method nor /package.Service/*", r.option, r.pattern)
		}
		if r.access == nil {
			return nil, fmt.Errorf("%s: the rule of %s is nil: for methods that need a valid token, give an empty rule", r.option, r.pattern)
		}
		if err := checkAccess(r.access); err != nil {
			return nil, fmt.Errorf("%s: the rule of %s: %w", r.option, r.pattern, err)
		}
		if other, twice := named[r.pattern]; twice && !proto.Equal(other.access, r.access) {
			return nil, fmt.Errorf("%s: %s already has another rule by %s", r.option, r.pattern, other.option)
		}
		r.access = proto.CloneOf(r.access) // a copy, since the program may change its own rule later
		named[r.pattern] = r
	}
	return named, nil
}
