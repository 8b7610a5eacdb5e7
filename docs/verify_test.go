package docs_test

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// docs/verify.md has a row for every program that verifies tokens by a library, and names the
// versions that the tests use. TestLibraries of bench/verify holds the other cells.
func TestLibrariesOfThePage(t *testing.T) {
	var programs []string
	for _, pattern := range []string{"clients/verify/*/*", "bench/verify/*.go"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("no %s: %v", pattern, err)
		}
		for _, file := range files {
			name := filepath.Base(file)
			shared := strings.HasPrefix(name, "lines.") || name == "libraries.go" || strings.HasSuffix(name, "_test.go")
			if shared || !slices.Contains([]string{".mjs", ".py", ".rb", ".pl", ".c", ".cpp", ".go"}, filepath.Ext(file)) {
				continue
			}
			programs = append(programs, "../"+strings.TrimPrefix(file, root+"/"))
		}
	}
	versions := versionsOfLibraries(t)
	link := regexp.MustCompile(`^\[(.+)\]\((\S+)\)$`)
	versioned := regexp.MustCompile(`(\S+) (\d+\.\d+\.\d+)`)
	var linked []string
	for _, r := range rows(section(t, "docs/verify.md", "## Libraries that are tested")) {
		match := link.FindStringSubmatch(r[0])
		if match == nil {
			t.Errorf("no link to a program: %s", r[0])
			continue
		}
		linked = append(linked, match[2])
		named := versioned.FindAllStringSubmatch(match[1], -1)
		for _, v := range named {
			if got := versions[v[1]]; got != v[2] {
				t.Errorf("%s: the tests use %s %q", match[1], v[1], got)
			}
		}
		if installed := strings.HasSuffix(match[2], ".mjs") || strings.HasSuffix(match[2], ".go"); installed != (len(named) > 0) {
			t.Errorf("%s: Node.js and Go have versions, and the packages of Debian none", match[1])
		}
	}
	slices.Sort(programs)
	slices.Sort(linked)
	if !slices.Equal(programs, linked) {
		t.Errorf("the page has a row for each of\n%q\nwant\n%q", linked, programs)
	}
}

// versionsOfLibraries returns the versions of the libraries that the programs use: in Node.js by
// the name of the package, in Go by the owner and name of the repository.
func versionsOfLibraries(t *testing.T) map[string]string {
	t.Helper()
	var node struct{ Dependencies map[string]string }
	if err := json.Unmarshal([]byte(read(t, "clients/verify/node/package.json")), &node); err != nil {
		t.Fatal(err)
	}
	required := regexp.MustCompile(`(?m)^\tgithub\.com/([\w.-]+/[\w.-]+)(?:/v\d+)? v(\S+)`)
	for _, m := range required.FindAllStringSubmatch(read(t, "bench/go.mod"), -1) {
		node.Dependencies[m[1]] = m[2]
	}
	return node.Dependencies
}
