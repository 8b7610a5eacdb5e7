package cli_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A resume file that cannot be used is an error that names the file, before the first event is
// printed, and the file stays as it is.
func TestFollowRefusesAResumeFile(t *testing.T) {
	db := database(t)
	done(t, "a password of somebody", "user", "create", "somebody", "--password-stdin", db)
	folder := t.TempDir()
	follow := func(file string) []string {
		return []string{"audit", "--follow", "--json", "--resume-file=" + file, db}
	}
	fails(t, 2, "--resume-file is for --follow", "", "audit", "--json", "--resume-file="+filepath.Join(folder, "f"), db)
	fails(t, 1, filepath.Join(folder, "none"), "", follow(filepath.Join(folder, "none", "f"))...)
	for text, status := range map[string]int{
		"garbage": 2, strings.Repeat("A", 3000): 2, strings.Repeat("A", 1<<20): 1, "\x00\xff": 1,
		"eyJmIjoiYWJjIiwicyI6IjAwMDEtMDEtMDFUMDA6MDA6MDBaIiwiYSI6e319": 2, // the resume file belongs to a run with other filters
	} {
		file := filepath.Join(folder, "resume")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		fails(t, status, file, "", follow(file)...)
		if kept, err := os.ReadFile(file); err != nil || string(kept) != text {
			t.Errorf("the file is %.20q now, and was %.20q: %v", kept, text, err)
		}
	}
}
