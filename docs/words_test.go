package docs_test

import (
	"cmp"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// unused lists words that the project does not use. The first words are hard for a reader with
// another first language; the others make a person of a process, or a riddle of a pronoun.
var (
	unused = regexp.MustCompile(`(?i)\b(shall|meanwhile|for\s+good|in\s+vain|thereby|whoever|nobody|whom|whose)\b`)
	// Comments in Go need no "who" either: the project writes client, caller, server or user.
	unusedInGo = regexp.MustCompile(`(?i)\bwho\b`)
)

// Comments, flags, errors, logs, the API's manual, the documents and the scripts have none of
// the words that the project does not use. Decisions are dated and stay as they were written.
func TestWords(t *testing.T) {
	check := func(path, text string, line int, words ...*regexp.Regexp) {
		for _, pattern := range words {
			for _, at := range pattern.FindAllStringIndex(text, -1) {
				t.Errorf("%s:%d: %q is not used here", path, line+strings.Count(text[:at[0]], "\n"), text[at[0]:at[1]])
			}
		}
	}
	for _, path := range ours(t) {
		switch cmp.Or(filepath.Ext(path), filepath.Base(path)) {
		case ".go":
			for _, text := range prose(t, path) {
				check(path, text.words, text.line, unused, unusedInGo)
			}
		case ".proto", ".md", ".yaml", ".rego", ".sh", ".py", ".mjs", ".rb", ".pl", ".c", ".cpp", "Makefile", "Dockerfile":
			check(path, read(t, path), 1, unused)
		}
	}
}

// ours returns the files of the repository that users or developers read, without tests and test
// kits, generated code, and documents about the past.
func ours(t *testing.T) (paths []string) {
	t.Helper()
	left := []string{".git", ".bin", "node_modules", "gen", "testdata", "docs/decisions", "CHANGELOG.md",
		"bench", "internal/e2e", "internal/pgtest", "internal/store/storetest", "internal/token/tokentest"}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if slices.Contains(left, rel) || slices.Contains(left, entry.Name()) {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if !entry.IsDir() && !strings.HasSuffix(path, "_test.go") {
			paths = append(paths, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// text is a comment or a string literal, and its first line.
type text struct {
	words string
	line  int
}

// prose returns the comments and the string literals of a Go file, field tags with
// the help of flags among them.
func prose(t *testing.T, path string) (texts []text) {
	t.Helper()
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, filepath.Join(root, path), nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(node ast.Node) bool {
		if literal, ok := node.(*ast.BasicLit); ok && literal.Kind == token.STRING {
			texts = append(texts, text{literal.Value, files.Position(literal.Pos()).Line})
		}
		return true
	})
	for _, group := range file.Comments {
		var words strings.Builder
		for _, comment := range group.List { // without the slashes, which would part two words
			words.WriteString(strings.TrimPrefix(comment.Text, "//") + "\n")
		}
		texts = append(texts, text{words.String(), files.Position(group.Pos()).Line})
	}
	return texts
}
