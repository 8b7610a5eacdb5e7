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

// mayImport says which of our packages each of our packages may import, so that
// the arrows keep pointing down. A new package needs a row, and the row a
// thought. Tests may import what they like, but for this package.
var mayImport = map[string][]string{
	"authn":                    {gen, "internal/detach", "internal/durable", "internal/refusal", "internal/retry", "internal/token", "internal/transport"}, // public: no database, no server, no command line
	"authn/authntest":          {"authn", gen, "internal/token"},                                                                                           // public
	"cmd/watchword":            {"internal/cli"},
	"docs":                     {}, // nothing but tests of the text
	"internal/audit":           {"internal/caller", "internal/store"},
	"internal/caller":          {"internal/store"},
	"internal/login":           {"internal/audit", "internal/caller", "internal/feed", "internal/password", "internal/session", "internal/store", "internal/user"},
	"internal/cli":             {gen, "internal/caller", "internal/audit", "internal/feed", "internal/issuer", "internal/password", "internal/refusal", "internal/seal", "internal/server", "internal/store", "internal/token", "internal/user"},
	"internal/detach":          {},
	"internal/durable":         {},
	"internal/e2e":             {},
	"internal/feed":            {gen, "internal/hub", "internal/store", "internal/token"},
	"internal/hub":             {gen}, // no database: an upstream stream may fill a hub too
	"internal/issuer":          {"internal/audit", "internal/caller", "internal/feed", "internal/seal", "internal/store", "internal/token"},
	"internal/password":        {},
	"internal/pgtest":          {}, // for tests alone
	"internal/refusal":         {gen},
	"internal/retry":           {},
	"internal/rpc":             {"authn", gen, "internal/audit", "internal/caller", "internal/detach", "internal/hub", "internal/issuer", "internal/login", "internal/password", "internal/refusal", "internal/session", "internal/store", "internal/token", "internal/user"},
	"internal/seal":            {"internal/durable"},
	"internal/server":          {"authn", gen, "internal/audit", "internal/caller", "internal/detach", "internal/feed", "internal/issuer", "internal/login", "internal/password", "internal/refusal", "internal/rpc", "internal/seal", "internal/session", "internal/store", "internal/token", "internal/user"},
	"internal/session":         {"internal/audit", "internal/caller", "internal/feed", "internal/issuer", "internal/seal", "internal/store", "internal/user"},
	"internal/store":           {"internal/durable"},
	"internal/store/storetest": {"internal/pgtest", "internal/store"}, // for tests
	"internal/token":           {gen},
	"internal/token/tokentest": {gen},
	"internal/transport":       {},
	"internal/user":            {"internal/audit", "internal/caller", "internal/feed", "internal/password", "internal/store"},
}

// TestEventsGoThroughFeed holds that only feed's own transaction appends events, since
// it is the feed that knows whom to wait for.
func TestEventsGoThroughFeed(t *testing.T) {
	appends := regexp.MustCompile(`\.(AppendEvent|SetMaxLifetime)\(`)
	for _, p := range listPackages(t) {
		for _, file := range p.GoFiles {
			text, err := os.ReadFile(filepath.Join(p.Dir, file))
			if err != nil {
				t.Fatal(err)
			}
			if appends.Match(text) && p.name() != "internal/feed" && p.name() != "internal/store/storetest" {
				t.Errorf("%s: %s appends events, which only a feed.Tx may", p.name(), file)
			}
		}
	}
}

// mayImportForeign says which of our packages alone may import a package of
// others, or anything below it.
var mayImportForeign = map[string][]string{
	"database/sql":                {"internal/store"},
	"modernc.org/sqlite":          {"internal/store"},
	"github.com/jackc/pgx":        {"internal/store", "internal/pgtest"},
	"github.com/lib/pq":           {"internal/store"},
	"github.com/mattn/go-sqlite3": {"internal/store"},
	"github.com/pressly/goose":    {"internal/store"},
	"github.com/golang-jwt/jwt":   {"internal/token"},
	"golang.org/x/crypto/argon2":  {"internal/password"},
	"github.com/alecthomas/kong":  {"internal/cli"},
}

// goPackage is what `go list -json` says of a package.
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
			t.Errorf("%s imports internal/e2e, which is nobody's", p.name())
		}
		if strings.HasPrefix(p.name(), "gen/") {
			continue
		}
		allowed, ok := mayImport[p.name()]
		if !ok {
			t.Errorf("%s has no row in mayImport: say what it may import", p.name())
			continue
		}
		for _, path := range p.Imports {
			if ours, ok := strings.CutPrefix(path, module); ok && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s, and may import only %v", p.name(), ours, allowed)
			}
			if owners, foreign := ownersOf(path); foreign && !slices.Contains(owners, p.name()) {
				t.Errorf("%s imports %s, which only %v may", p.name(), path, owners)
			}
		}
	}
	for name := range mayImport {
		if !seen[name] {
			t.Errorf("mayImport has a row for %s, which does not exist", name)
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

// TestAuthnIsLight holds what a service takes on that imports authn, through
// whatever authn imports.
func TestAuthnIsLight(t *testing.T) {
	for _, p := range listPackages(t) {
		if p.name() != "authn" {
			continue
		}
		for _, path := range p.Deps {
			ours, isOurs := strings.CutPrefix(path, module)
			_, owned := ownersOf(path)
			if isOurs && !slices.Contains(mayImport["authn"], ours) || owned && !strings.HasPrefix(path, "github.com/golang-jwt/jwt") {
				t.Errorf("authn depends on %s", path)
			}
		}
		if !slices.Contains(p.Deps, module+gen) {
			t.Error("the dependencies were not listed")
		}
		return
	}
	t.Error("there is no package authn")
}
