package authn

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// An Option sets something about a Verifier. Options given twice add up where
// they hold lists; otherwise the last one counts.
type Option func(*config)

// config is what the options say. Its zero value names no audience, so that
// who forgets to choose one gets no verifier.
type config struct {
	audience    audience
	public      []string
	leeway      time.Duration
	plaintext   bool
	withoutWait bool
	stale       staleness
	policy      StalePolicy
	cacheBytes  int
	snapshot    *string // nil: no file
	log         *slog.Logger
}

// audience is the services that a token may be for.
type audience struct {
	any   bool
	names []string
}

// accepts says whether a token for the services named is for one of these.
func (a audience) accepts(named []string) bool {
	return a.any || slices.ContainsFunc(named, func(name string) bool {
		return slices.Contains(a.names, name)
	})
}

// WithAudience names the services that this process is. A token must be for at
// least one of them; one that is for others alone is AUDIENCE_MISMATCH, so that
// a service which was handed a token cannot use it elsewhere.
func WithAudience(names ...string) Option {
	return func(c *config) { c.audience.names = append(c.audience.names, names...) }
}

// WithAnyAudience accepts tokens for whatever service. Every service that a
// caller has shown such a token to can then act here in the caller's name.
func WithAnyAudience() Option {
	return func(c *config) { c.audience.any = true }
}

// WithPublicMethods lets anyone call the methods named, with no token or with a
// bad one: "/package.Service/Method", or "/package.Service/*" for all of a
// service. It is for services whose proto files one cannot change, such as
// health and reflection; others say it in their method option. A method whose
// option asks for roles cannot be made public.
func WithPublicMethods(patterns ...string) Option {
	return func(c *config) { c.public = append(c.public, patterns...) }
}

// WithPlaintextFromOtherHosts takes keys from another machine over a connection
// without TLS. Whoever sits on the path between can then forge every caller, so
// this is for networks that protect the path by other means.
func WithPlaintextFromOtherHosts() Option {
	return func(c *config) { c.plaintext = true }
}

// WithLeeway accepts a token for this much longer than it lives. Rarely needed:
// a verifier corrects its clock by the server's. The server states a margin,
// beyond which it forgets revocations; a leeway above it is cut down to it.
func WithLeeway(leeway time.Duration) Option {
	return func(c *config) { c.leeway = leeway }
}

// WithoutWaiting lets NewVerifier return at once, before there is a bundle to
// judge by. Until then every guarded call is BUNDLE_STALE; Ready waits.
func WithoutWaiting() Option {
	return func(c *config) { c.withoutWait = true }
}

// WithLogger is told when the bundle's stream is lost and when it is back, and of a
// handler's panic that nobody else could be told of. No token is ever logged. The
// default, and nil, is silence.
func WithLogger(log *slog.Logger) Option {
	return func(c *config) { c.log = log }
}

// StalePolicy says what a Verifier does when its bundle is stale.
type StalePolicy int

const (
	// ContinueWhenStale goes on with the keys and revocations that are known. A
	// session that ends meanwhile stays good here until its access token expires.
	ContinueWhenStale StalePolicy = iota + 1
	// RefuseWhenStale refuses every guarded call as BUNDLE_STALE.
	RefuseWhenStale
)

const (
	defaultMaxStaleness = time.Minute
	// minMaxStaleness is above the time between two heartbeats.
	minMaxStaleness = 10 * time.Second
)

// WithMaxStaleness says for how long the bundle may not be brought up to date
// before it counts as stale, and what is done then. The default is a minute and
// ContinueWhenStale. The age is counted from the moment up to which the server
// said that it knew everything, so it grows too where the server has lost its
// database. Heartbeats come every few seconds: less than 10 s is refused.
//
// A machine that was suspended, a laptop or a paused virtual machine, notices by its
// clock how much time went by, and all of it counts; from two minutes on it counts for
// the expiry of tokens too. A clock that is set forward looks the same. In either case
// the server's next heartbeat says what is true.
func WithMaxStaleness(after time.Duration, policy StalePolicy) Option {
	return func(c *config) { c.stale, c.policy = staleness{after, policy == RefuseWhenStale}, policy }
}

// WithSnapshotFile keeps what the Verifier knows in a file: the keys, what has been
// revoked, and as of when. One that starts goes on from there, judges by it until
// the server is heard, and so can start while the server is away. The time that has
// passed counts as staleness: see WithMaxStaleness. When the server is back it sends
// what was missed.
//
// What happened in between is not known until then. A session that ended stays good
// until its access tokens expire, as everywhere while the server is away; and a key
// that was withdrawn meanwhile is trusted until the server is heard. Who cannot bear
// that asks for RefuseWhenStale. The time is the server's last word and what has
// passed by this machine's clock, or that clock itself if it is later: while the
// server is away, a clock that is ahead lets tokens expire early.
//
// The file is as good as the keys: who can write it can forge every caller. It is
// made with mode 0600. One that others may read or write, that belongs to another
// user, or that is no regular file is ignored, and so is one that is damaged or of
// another version; the log and Status say so, and the Verifier waits for the server
// as it does without. Nothing about the file makes a Verifier fail. Its folder must
// be there, belong to the same user or to root, and be nobody else's to write to,
// unless it is sticky as /tmp is; in any other nothing is read or written. A volume
// that comes with mode 0777 needs a folder of the service's own in it. Outside of Unix
// nothing can be said of who may write it: see to that yourself.
//
// It is written soon after the first bundle and whenever the keys change, every 15
// seconds otherwise (a very large one more rarely), and by Close. A file belongs to
// one service and to one server: nothing in it tells the keys of production from
// those of a test, as long as the server is away.
func WithSnapshotFile(path string) Option {
	return func(c *config) { c.snapshot = &path }
}

// defaultCacheBytes holds some twenty thousand tokens of ordinary length.
const defaultCacheBytes = 32 << 20

// WithCacheSize bounds the memory of the cache of verified tokens, in bytes; the
// default is 32 MiB. A token of 500 bytes takes about 1,800. Zero means that
// every call costs a signature's check.
func WithCacheSize(bytes int) Option {
	return func(c *config) { c.cacheBytes = bytes }
}

// newConfig gathers the options and refuses what cannot be meant.
func newConfig(opts []Option) (*config, error) {
	c := &config{stale: staleness{after: defaultMaxStaleness}, policy: ContinueWhenStale, cacheBytes: defaultCacheBytes}
	for _, opt := range opts {
		opt(c)
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	named := len(c.audience.names) > 0
	switch {
	case named && c.audience.any:
		return nil, errors.New("WithAudience and WithAnyAudience exclude each other")
	case !named && !c.audience.any:
		return nil, errors.New("no audience: say which services this is with WithAudience, " +
			"or WithAnyAudience to accept tokens meant for others")
	case slices.Contains(c.audience.names, ""):
		return nil, errors.New("WithAudience: an audience is empty")
	case c.policy != ContinueWhenStale && c.policy != RefuseWhenStale:
		return nil, fmt.Errorf("WithMaxStaleness: %d is no policy", c.policy)
	case c.stale.after < minMaxStaleness:
		return nil, fmt.Errorf("WithMaxStaleness: %v is less than %v, and heartbeats come every few seconds", c.stale.after, minMaxStaleness)
	case c.cacheBytes < 0:
		return nil, fmt.Errorf("WithCacheSize: %d is negative", c.cacheBytes)
	case c.leeway < 0:
		return nil, fmt.Errorf("WithLeeway: %v is negative", c.leeway)
	}
	if c.snapshot != nil {
		path, err := absolute(*c.snapshot)
		if err != nil {
			return nil, fmt.Errorf("WithSnapshotFile: %w", err)
		}
		c.snapshot = &path
	}
	for _, pattern := range c.public {
		if !validPattern(pattern) {
			return nil, fmt.Errorf("WithPublicMethods: %q is neither /package.Service/Method nor /package.Service/*", pattern)
		}
	}
	return c, nil
}

// absolute is a path that a change of the working directory doesn't lead elsewhere.
func absolute(path string) (string, error) {
	if path == "" {
		return "", errors.New("the path is empty")
	}
	return filepath.Abs(path)
}

// validPattern is strict, since a pattern that matches nothing goes unnoticed
// until somebody needs the method.
func validPattern(pattern string) bool {
	service, method, ok := splitMethod(pattern)
	return ok && protoreflect.FullName(service).IsValid() &&
		(method == "*" || protoreflect.Name(method).IsValid())
}

// splitMethod takes "/package.Service/Method" apart. It knows no other form:
// what the router below reads differently must not slip past a rule.
func splitMethod(full string) (service, method string, ok bool) {
	rest, ok := strings.CutPrefix(full, "/")
	if !ok {
		return "", "", false
	}
	service, method, ok = strings.Cut(rest, "/")
	if !ok || service == "" || method == "" || strings.Contains(method, "/") {
		return "", "", false
	}
	return service, method, true
}
