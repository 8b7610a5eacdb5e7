// Package docs_test checks that the program does what the documents say.
package docs_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = ".."

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// section returns what stands under a heading of a document, up to the next heading
// of the same or a higher level.
func section(t *testing.T, path, heading string) string {
	t.Helper()
	_, rest, found := strings.Cut(read(t, path), "\n"+heading+"\n")
	if !found {
		t.Fatalf("%s has no heading %s", path, heading)
	}
	level := strings.IndexByte(heading, ' ')
	next := regexp.MustCompile(fmt.Sprintf(`(?m)^#{1,%d} `, level))
	for _, end := range next.FindAllStringIndex(rest, -1) {
		if before := rest[:end[0]]; strings.Count(before, "\n```")%2 == 0 { // no comment of a code block
			return before
		}
	}
	return rest
}

// blocks returns the code blocks of a language in a text.
func blocks(text, language string) (found []string) {
	fenced := regexp.MustCompile("(?ms)^```" + language + "\n(.*?)^```$")
	for _, m := range fenced.FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	return found
}

// The Go of the README and of the documents is part of examples and tests that are compiled
// and run.
func TestSnippetsAreExamples(t *testing.T) {
	var examples string
	for _, pattern := range []string{"authn/example*_test.go", "authn/*/example*_test.go"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("no %s: %v", pattern, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			examples += unindent(string(text))
		}
	}
	for _, path := range documents(t) {
		snippets := blocks(read(t, path), "go")
		if len(snippets) == 0 && path == "README.md" {
			t.Fatal("README.md has no Go")
		}
		for _, snippet := range snippets {
			if !strings.Contains(examples, unindent(snippet)) {
				t.Errorf("%s: in no example of authn and the packages below:\n%s", path, snippet)
			}
		}
	}
}

func unindent(code string) string {
	var lines []string
	for line := range strings.Lines(code) {
		lines = append(lines, strings.TrimSpace(line))
	}
	return strings.Join(lines, "\n") + "\n"
}

// documents returns the paths of all Markdown files of the project.
func documents(t *testing.T) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == "node_modules" || entry.Name() == ".git"):
			return fs.SkipDir
		case filepath.Ext(path) == ".md":
			rel, err := filepath.Rel(root, path)
			paths = append(paths, rel)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestLinksLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for _, path := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(read(t, path), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			file := filepath.Join(filepath.Dir(path), target)
			if target == "" {
				file = path
			}
			if _, err := os.Stat(filepath.Join(root, file)); err != nil {
				t.Errorf("%s: %s is not there", path, m[1])
			} else if anchor != "" && !hasHeading(read(t, file), anchor) {
				t.Errorf("%s: %s has no such heading", path, m[1])
			}
		}
	}
}

// docs/README.md lists every document of the folder.
func TestEveryDocumentIsListed(t *testing.T) {
	list := read(t, "docs/README.md")
	for _, path := range documents(t) {
		if dir, name := filepath.Split(path); dir == "docs/" && name != "README.md" && !strings.Contains(list, "]("+name+")") {
			t.Errorf("docs/README.md has no row for %s", name)
		}
	}
}

func hasHeading(text, anchor string) bool {
	heading := regexp.MustCompile(`(?m)^#+ (.*)$`)
	dropped := regexp.MustCompile(`[^a-z0-9 _-]`)
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		slug := dropped.ReplaceAllString(strings.ToLower(m[1]), "")
		if strings.ReplaceAll(slug, " ", "-") == anchor {
			return true
		}
	}
	return false
}

func TestMakeTargetsExist(t *testing.T) {
	makefile := read(t, "Makefile")
	named := regexp.MustCompile("(?m)(?:`|^)make ([a-z-]+)")
	for _, path := range documents(t) {
		for _, m := range named.FindAllStringSubmatch(read(t, path), -1) {
			if !strings.Contains(makefile, "\n"+m[1]+":") {
				t.Errorf("%s: there is no `make %s`", path, m[1])
			}
		}
	}
}

// Every flag that --help shows is in the table, with its variable and its
// default.
func TestFlagsAreDocumented(t *testing.T) {
	program := filepath.Join(t.TempDir(), "watchword")
	if out, err := exec.Command("go", "build", "-o", program, "../cmd/watchword").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// A flag: its name, perhaps its default or a placeholder, and what is said of it.
	flag := regexp.MustCompile(`(?m)^ +(?:-h, )?--([a-z-]+)(?:=(\S+))?((?:\n? +[^-\s].*)*)`)
	variable := regexp.MustCompile(`\(\$(\w+)\)`)
	document := read(t, "docs/configuration.md")
	for _, command := range []string{
		"serve", "migrate", "backup", "datastore copy", "datastore restored", "datastore rekey", "user create", "user list", "user show", "user rename", "user set-roles", "user set-password", "user delete", "session list", "session revoke", "session revoke-all", "key list", "key rotate", "key revoke", "audit", "explain", "completion", "login", "verify", "logout", "healthcheck",
	} {
		help, err := exec.Command(program, append(strings.Fields(command), "--help")...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s --help: %v\n%s", command, err, help)
		}
		for _, m := range flag.FindAllStringSubmatch(string(help), -1) {
			name, value, about := m[1], strings.Trim(m[2], `"`), m[3]
			if name == "help" || name == "version" {
				continue
			}
			row := "| `--" + name + "` |"
			if v := variable.FindStringSubmatch(about); v != nil {
				row += " `" + v[1] + "` |"
			}
			if value = strings.TrimSuffix(value, ",..."); value != "" && value != strings.ToUpper(value) {
				row += fmt.Sprintf(" `%s` |", value)
			}
			if !strings.Contains(document, "\n"+row) {
				t.Errorf("%s: docs/configuration.md has no row that begins %s", command, row)
			}
		}
	}
}

// scripts/patiently.sh runs the steps of make, so its exit status must show a failure of a step.
func TestPatiently(t *testing.T) {
	cmd := exec.Command(filepath.Join(root, "scripts/patiently.sh"), "a step", "bash", "-c", "cat; echo told >&2; printf 'no end'; exit 3")
	cmd.Stdin = strings.NewReader("given\n")
	out, _ := cmd.CombinedOutput()
	if status := cmd.ProcessState.ExitCode(); status != 3 || string(out) != "given\ntold\nno end" {
		t.Errorf("status %d, %q", status, out)
	}
	failing := exec.Command(filepath.Join(root, "scripts/patiently.sh"), "go test", "printf", "%s\n", "--- FAIL: TestA", "    a_test.go:1: why", "ok  	b")
	out, _ = failing.CombinedOutput()
	if strings.Contains(string(out), "what failed") {
		t.Errorf("a command that succeeded: %q", out)
	}
	failing = exec.Command(filepath.Join(root, "scripts/patiently.sh"), "go test", "bash", "-c", `printf -- "--- FAIL: TestA\n    why\nok  \tb\n"; exit 1`)
	out, _ = failing.CombinedOutput()
	if _, again, _ := strings.Cut(string(out), "== what failed in go test:\n"); again != "--- FAIL: TestA\n    why\n" {
		t.Errorf("a failed command repeats %q of %q", again, out)
	}
}
