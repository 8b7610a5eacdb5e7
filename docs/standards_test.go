package docs_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// testsOf returns the names of all tests, fuzz tests and examples of the repository, as
// "package.Name".
func testsOf(t *testing.T) map[string]bool {
	t.Helper()
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Example)\w*)\(`)
	names := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && slices.Contains([]string{".git", ".bin", "node_modules", "testdata"}, entry.Name()):
			return fs.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		folder, _ := filepath.Abs(filepath.Dir(path))
		for _, m := range function.FindAllStringSubmatch(string(text), -1) {
			names[filepath.Base(folder)+"."+m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// namedTest matches a test in a document: `package.TestName`.
var namedTest = regexp.MustCompile("`(\\w+\\.(?:Test|Fuzz|Example)\\w*)`")

// Every test that a document names is in the tree, and so is a test for every -run.
func TestNamedTestsExist(t *testing.T) {
	tests, named := testsOf(t), 0
	runs := regexp.MustCompile(`-run '?\^?((?:Test|Fuzz)\w+)(\$?)`)
	for _, path := range documents(t) {
		if strings.HasPrefix(path, filepath.Join("docs", "decisions")) { // a decision has a date, and can name a test that was renamed later
			continue
		}
		text := read(t, path)
		for _, m := range namedTest.FindAllStringSubmatch(text, -1) {
			if named++; !tests[m[1]] {
				t.Errorf("%s: there is no test %s", path, m[1])
			}
		}
		for _, m := range runs.FindAllStringSubmatch(text, -1) {
			found := false
			for name := range tests {
				_, name, _ = strings.Cut(name, ".")
				found = found || name == m[1] || m[2] == "" && strings.HasPrefix(name, m[1])
			}
			if !found {
				t.Errorf("%s: -run %s finds no test", path, m[1])
			}
		}
	}
	if named < 100 {
		t.Errorf("the documents name %d tests", named)
	}
}

// row is a line of a table: its cells without the blanks around them.
type row []string

// rows returns the lines of the first table of a text, below its head.
func rows(text string) (found []row) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			if found != nil {
				break
			}
			continue
		}
		var cells row
		for _, cell := range strings.Split(strings.Trim(line, "|"), " | ") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		found = append(found, cells)
	}
	return found[min(2, len(found)):]
}

// Every promise of the security page names the tests that show the promise.
func TestPromisesHaveTests(t *testing.T) {
	promises := rows(section(t, "docs/security.md", "## Promises, and the tests that show them"))
	if len(promises) < 20 {
		t.Errorf("%d promises", len(promises))
	}
	for _, r := range promises {
		if len(r) != 2 || !namedTest.MatchString(r[1]) {
			t.Errorf("no test shows the promise: %q", r)
		}
	}
}

// numbers returns "prefix.1" to "prefix.n".
func numbers(prefix string, n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("%s.%d", prefix, i+1))
	}
	return all
}

// Each table of the standards page has every requirement in order. A row for a requirement that
// Watchword meets names a test, and every other row gives the reason.
func TestStandardsAreComplete(t *testing.T) {
	chapters := func(sizes ...int) func(chapter string) []string {
		return func(chapter string) (all []string) {
			for i, n := range sizes {
				all = append(all, numbers(fmt.Sprintf("%s.%d", chapter, i+1), n)...)
			}
			return all
		}
	}
	for heading, want := range map[string][]string{
		"## ASVS 5.0, V6: Authentication":        chapters(3, 12, 8, 6, 8, 4, 2, 4)("6"),
		"## ASVS 5.0, V7: Session Management":    chapters(3, 4, 2, 5, 3, 2)("7"),
		"## ASVS 5.0, V9: Self-contained Tokens": chapters(3, 4)("9"),
		"## RFC 8725: JSON Web Tokens":           numbers("3", 12),
		"## RFC 9700: OAuth 2.0 security": slices.Concat([]string{"2.1", "2.2.1", "2.2.2", "2.3", "2.4", "2.5", "2.6"},
			numbers("4", 8), []string{"4.9"}, numbers("4.10", 3), []string{"4.11", "4.12", "4.13", "4.14.1", "4.14.2", "4.15", "4.16", "4.17"}),
	} {
		var got []string
		counts := map[string]int{}
		for _, r := range rows(section(t, "docs/security-standards.md", heading)) {
			if len(r) != 4 {
				t.Errorf("%s: %q has %d cells, want 4", heading, r, len(r))
				continue
			}
			number, _, _ := strings.Cut(r[0], ",") // a section may have several recommendations
			if len(got) == 0 || got[len(got)-1] != number {
				got = append(got, number)
			}
			counts[r[2]]++
			switch r[2] {
			case "held":
				if !namedTest.MatchString(r[3]) {
					t.Errorf("%s: %s is held, and names no test", heading, r[0])
				}
			case "not applicable", "not yet":
				if len(r[3]) < 20 {
					t.Errorf("%s: %s gives no reason", heading, r[0])
				}
			default:
				t.Errorf("%s: %s is %q", heading, r[0], r[2])
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s has the rows\n%q, want\n%q", heading, got, want)
		}
		t.Logf("%s: %v", heading, counts)
	}
}
