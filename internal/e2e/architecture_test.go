package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/watchword-auth/watchword/"
	gen    = "gen/watchword/v1"
)

// mayImport maps each package of the module to the packages that the package may import.
// Imports must keep pointing down: think before adding a package to a row. A new package
// needs a row. Tests may import every package but internal/e2e.
var mayImport = map[string][]string{
	"authn":                    {gen, "internal/clock", "internal/detach", "internal/durable", "internal/meter", "internal/refusal", "internal/reload", "internal/retry", "internal/spans", "internal/token", "internal/transport"}, // a package for other programs, so without a database, a server or a command line
	"authn/authntest":          {"authn", gen, "internal/refusal", "internal/token", "internal/trusttest"},                                                                                                                          // for tests of other programs
	"authn/tokensource":        {"authn", gen, "internal/durable", "internal/meter", "internal/refusal", "internal/retry", "internal/spans", "internal/token", "internal/transport"},                                                // for other programs too, as authn
	"cmd/watchword":            {"internal/cli"},
	"cmd/watchword-ext-authz":  {"internal/extauthz"},
	"docs":                     {}, // tests of the text alone
	"internal/audit":           {"internal/caller", "internal/store"},
	"internal/caller":          {"internal/share", "internal/store"},
	"internal/clock":           {},
	"internal/count":           {},
	"internal/login":           {"internal/audit", "internal/caller", "internal/feed", "internal/password", "internal/session", "internal/store", "internal/throttle", "internal/user"},
	"internal/cli":             {"authn", gen, "authn/tokensource", "internal/audit", "internal/caller", "internal/durable", "internal/federation", "internal/issuer", "internal/keptlogin", "internal/password", "internal/refusal", "internal/retry", "internal/seal", "internal/server", "internal/settings", "internal/store", "internal/transport", "internal/user", "internal/version"},
	"internal/detach":          {},
	"internal/durable":         {},
	"internal/e2e":             {},
	"internal/extauthz":        {"authn", gen, "authn/tokensource", "internal/meter", "internal/reload", "internal/settings", "internal/share", "internal/transport", "internal/version"}, // no database, and nothing of the server
	"internal/federation":      {"internal/audit", "internal/caller", "internal/feed", "internal/issuer", "internal/share", "internal/store", "internal/token", "internal/user"},
	"internal/feed":            {gen, "internal/hub", "internal/spans", "internal/store", "internal/token"},
	"internal/gate":            {gen, "internal/caller", "internal/refusal", "internal/share", "internal/spans"},
	"internal/hub":             {gen, "internal/clock", "internal/count", "internal/share"}, // imports no package of the database, so that the messages of a hub can also come from another server
	"internal/issuer":          {"internal/audit", "internal/caller", "internal/feed", "internal/seal", "internal/store", "internal/token"},
	"internal/keptlogin":       {"internal/durable"},
	"internal/meter":           {},
	"internal/meter/metertest": {}, // a kit for tests
	"internal/password":        {"internal/count", "internal/share", "internal/spans"},
	"internal/pgtest":          {}, // for tests alone
	"internal/refusal":         {gen},
	"internal/reload":          {"internal/durable"},
	"internal/retry":           {},
	"internal/roster":          {"internal/hub", "internal/store"}, // lists the watchers for display, and no other package depends on the list
	"internal/delegation":      {"authn", gen, "internal/audit", "internal/caller", "internal/feed", "internal/issuer", "internal/refusal", "internal/store", "internal/token"},
	"internal/rpc":             {"authn", gen, "internal/audit", "internal/caller", "internal/delegation", "internal/detach", "internal/federation", "internal/hub", "internal/issuer", "internal/login", "internal/password", "internal/refusal", "internal/roster", "internal/session", "internal/share", "internal/store", "internal/throttle", "internal/token", "internal/user"},
	"internal/seal":            {"internal/durable"},
	"internal/server":          {"authn", gen, "internal/audit", "internal/caller", "internal/delegation", "internal/detach", "internal/durable", "internal/federation", "internal/feed", "internal/gate", "internal/issuer", "internal/login", "internal/password", "internal/refusal", "internal/reload", "internal/roster", "internal/rpc", "internal/seal", "internal/session", "internal/share", "internal/store", "internal/telemetry", "internal/throttle", "internal/token", "internal/tracing", "internal/transport", "internal/user", "internal/version"},
	"internal/settings":        {"internal/durable"},
	"internal/share":           {},
	"internal/session":         {"internal/audit", "internal/caller", "internal/feed", "internal/issuer", "internal/seal", "internal/share", "internal/spans", "internal/store", "internal/user"},
	"internal/spans":           {},
	"internal/store":           {"internal/count", "internal/durable", "internal/spans"},
	"internal/store/storetest": {"internal/pgtest", "internal/store"}, // for tests
	"internal/telemetry":       {"authn", "internal/audit", "internal/count", "internal/federation", "internal/feed", "internal/hub", "internal/issuer", "internal/login", "internal/password", "internal/refusal", "internal/share", "internal/store", "internal/version"},
	"internal/throttle":        {"internal/spans", "internal/store"}, // knows no user and no password
	"internal/token":           {gen},
	"internal/token/tokentest": {gen},
	"internal/tracing":         {gen},
	"internal/transport":       {},
	"internal/user":            {"internal/audit", "internal/caller", "internal/feed", "internal/password", "internal/store", "internal/token"},
	"internal/version":         {},
	"scripts/apidoc":           {gen},
	"scripts/release":          {},

	// Kits for tests.
	"internal/session/sessiontest": {"authn", gen, "internal/audit", "internal/caller", "internal/feed", "internal/issuer", "internal/login", "internal/password", "internal/pgtest", "internal/seal", "internal/session", "internal/store", "internal/store/storetest", "internal/throttle", "internal/token", "internal/user"},
	"internal/strangertest":        {gen},
	"internal/terminaltest":        {},
	"internal/trusttest":           {gen},
}

// TestEventsGoThroughFeed checks that only package feed calls AppendEvent and
// SetMaxLifetime, so that every event gets a tag and an expiry.
func TestEventsGoThroughFeed(t *testing.T) {
	appends := regexp.MustCompile(`\.(AppendEvent|SetMaxLifetime)\(`)
	for _, p := range listPackages(t) {
		for _, file := range p.GoFiles {
			text, err := os.ReadFile(filepath.Join(p.Dir, file))
			if err != nil {
				t.Fatal(err)
			}
			if appends.Match(text) && p.name() != "internal/feed" && p.name() != "internal/store/storetest" {
				t.Errorf("%s: %s appends events; only a feed.Tx may append events", p.name(), file)
			}
		}
	}
}

// mayImportForeign maps a package of another module to the packages that may import the
// package, or a package below. No other package of the module may do so.
var mayImportForeign = map[string][]string{
	"database/sql":                {"internal/store"},
	"modernc.org/sqlite":          {"internal/store"},
	"github.com/jackc/pgx":        {"internal/store", "internal/pgtest"},
	"github.com/lib/pq":           {"internal/store"},
	"github.com/mattn/go-sqlite3": {"internal/store"},
	"github.com/pressly/goose":    {"internal/store"},
	"github.com/go-jose/go-jose":  {"internal/federation"},
	"github.com/golang-jwt/jwt":   {"internal/token"},
	"golang.org/x/crypto/argon2":  {"internal/password"},
	"github.com/alecthomas/kong":  {"internal/settings"},
	"github.com/goccy/go-yaml":    {"internal/settings"},
	"golang.org/x/time/rate":      {"internal/audit", "internal/rpc", "internal/extauthz", "authn/tokensource"},

	"github.com/prometheus":               {"internal/telemetry"},
	"go.opentelemetry.io/contrib":         {"internal/tracing"},
	"go.opentelemetry.io/otel/attribute":  {"internal/extauthz", "internal/meter", "internal/spans", "internal/store", "internal/tracing", "authn", "authn/tokensource"},
	"go.opentelemetry.io/otel/exporters":  {"internal/tracing"},
	"go.opentelemetry.io/otel/metric":     {"internal/meter", "authn", "authn/tokensource", "internal/server", "internal/tracing"},
	"go.opentelemetry.io/otel/sdk/metric": {"internal/meter/metertest"},
	"go.opentelemetry.io/otel/sdk/trace":  {"internal/tracing"},
	"go.opentelemetry.io/otel/trace":      {"internal/spans", "internal/store", "internal/tracing", "authn", "authn/tokensource"},

	"github.com/KimMachineGun/automemlimit": {"internal/server"},

	"github.com/envoyproxy": {"internal/extauthz"}, // linked into a program of its own
}

// goPackage holds the output of `go list -json` for a package.
type goPackage struct {
	ImportPath   string
	Dir          string
	GoFiles      []string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Deps         []string
}

func (p goPackage) name() string { return strings.TrimPrefix(p.ImportPath, module) }

func listPackages(t *testing.T) (packages []goPackage) {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports,TestImports,XTestImports,Deps", "./...")
	cmd.Dir = root
	r := run(t, cmd)
	if r.code != 0 {
		t.Fatal(r)
	}
	for decoder := json.NewDecoder(bytes.NewBufferString(r.stdout)); ; {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

func TestImports(t *testing.T) {
	packages := listPackages(t)
	seen := map[string]bool{}
	for _, p := range packages {
		seen[p.name()] = true
		if slices.Contains(slices.Concat(p.Imports, p.TestImports, p.XTestImports), module+"internal/e2e") {
			t.Errorf("%s imports internal/e2e; no package may import internal/e2e", p.name())
		}
		if strings.HasPrefix(p.name(), "gen/") {
			continue
		}
		allowed, ok := mayImport[p.name()]
		if !ok {
			t.Errorf("%s has no row in mayImport: add a row with the packages that %[1]s may import", p.name())
			continue
		}
		for _, path := range p.Imports {
			if ours, ok := strings.CutPrefix(path, module); ok && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s, but may import only %v", p.name(), ours, allowed)
			}
			if owners, foreign := ownersOf(path); foreign && !slices.Contains(owners, p.name()) {
				t.Errorf("%s imports %s; only %v may import the package", p.name(), path, owners)
			}
		}
	}
	page := repositoryFile(t, "docs/architecture.md")
	for name := range mayImport {
		if !seen[name] {
			t.Errorf("mayImport has a row for %s, which does not exist", name)
		}
		// The table of the page has no row for a main of a dozen lines, and none for the kit of a package's tests.
		if kit := strings.Count(name, "/") > 1; strings.HasPrefix(name, "internal/") && !kit && !strings.Contains(page, "\n| `"+name+"` |") {
			t.Errorf("the table of docs/architecture.md has no row for %s", name)
		}
	}
}

func ownersOf(path string) ([]string, bool) {
	for prefix, owners := range mayImportForeign {
		if path == prefix || strings.HasPrefix(path, prefix+"/") {
			return owners, true
		}
	}
	return nil, false
}

// TestAuthnIsLight checks all packages that a service gets by importing authn or
// authn/tokensource, directly and indirectly.
func TestAuthnIsLight(t *testing.T) {
	const (
		tokens    = "github.com/golang-jwt/jwt"
		telemetry = "go.opentelemetry.io/" // only packages of OpenTelemetry's API: no SDK and no exporter
	)
	api := []string{telemetry + "otel/attribute", telemetry + "otel/metric", telemetry + "otel/trace",
		telemetry + "otel/codes", telemetry + "otel/semconv"} // constants that the API imports
	mayDependOn := map[string][]string{
		"authn":             slices.Concat(mayImport["authn"], api, []string{tokens}),
		"authn/tokensource": slices.Concat(mayImport["authn/tokensource"], mayImport["authn"], api, []string{tokens, "golang.org/x/time/rate"}),
	}
	for _, p := range listPackages(t) {
		allowed, light := mayDependOn[p.name()]
		if !light {
			continue
		}
		delete(mayDependOn, p.name())
		for _, path := range p.Deps {
			ours, isOurs := strings.CutPrefix(path, module)
			_, owned := ownersOf(path)
			owned = owned || strings.HasPrefix(path, telemetry)
			if (isOurs || owned) && !slices.ContainsFunc(allowed, func(a string) bool { return ours == a || strings.HasPrefix(ours, a+"/") && owned }) {
				t.Errorf("%s depends on %s", p.name(), path)
			}
		}
		if !slices.Contains(p.Deps, module+gen) {
			t.Errorf("the dependencies of %s were not listed", p.name())
		}
	}
	for name := range mayDependOn {
		t.Errorf("there is no package %s", name)
	}
}
