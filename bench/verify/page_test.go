package verify

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

// row is a row of a table of docs/verify.md, with what the page says of a library.
type row struct {
	name      string
	program   string            // the path of the program that verifies by the library, from the root
	accepts   map[string]string // the cell of each algorithm
	typ       string
	newKey    string
	withdrawn string
	needs     string
}

var link = regexp.MustCompile(`^\[(.+)\]\(\.\./(\S+)\)$`)

// readPage returns the rows of the libraries that are tested: their names are links to the
// programs.
func readPage(t *testing.T) (rows []row) {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(root, "docs", "verify.md"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		match := link.FindStringSubmatch(cells[0])
		if match == nil || len(cells) != 8 {
			continue
		}
		r := row{name: match[1], program: match[2], accepts: map[string]string{}, typ: cells[4], newKey: cells[5], withdrawn: cells[6], needs: cells[7]}
		for i, alg := range algorithms {
			r.accepts[alg] = cells[1+i]
			if r.accepts[alg] != "yes" && !strings.HasPrefix(r.accepts[alg], "no") {
				t.Errorf("%s: %s is %q, want yes or no", r.name, alg, cells[1+i])
			}
		}
		if r.typ != "ignored" && r.typ != "checked" && r.typ != "`JWT` alone" {
			t.Errorf("%s: typ is %q", r.name, r.typ)
		}
		rows = append(rows, r)
	}
	if len(rows) < 15 {
		t.Fatalf("docs/verify.md has %d libraries", len(rows))
	}
	return rows
}

// verifies returns whether the library verifies signatures of an algorithm.
func (r row) verifies(alg string) bool { return r.accepts[alg] == "yes" }

// good returns whether the library accepts a good token with an algorithm.
func (r row) good(alg string) bool { return r.verifies(alg) && r.typ != "`JWT` alone" }

// refusal returns what the library says to a good token with an algorithm, if the library refuses
// the token.
func (r row) refusal(alg string) string {
	cell := r.accepts[alg]
	if r.verifies(alg) { // the library refuses these tokens for their type
		cell = r.needs
	}
	_, text, _ := strings.Cut(cell, "`")
	text, _, _ = strings.Cut(text, "`")
	return text
}
