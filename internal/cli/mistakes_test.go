package cli_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A command with a mistyped --datastore-uri makes no database, and names the file. Only
// serve and migrate make a database.
func TestAMistypedDatabaseIsNotMade(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	path := filepath.Join(folder, "mistyped.db")
	flag := "--datastore-uri=sqlite:" + path
	for _, args := range [][]string{
		{"user", "list", flag}, {"user", "create", "alice", flag}, {"user", "disable", "alice", flag},
		{"user", "enable", "alice", flag}, {"user", "set-password", "alice", flag}, {"user", "delete", "alice", flag},
		{"key", "list", flag}, {"key", "rotate", flag}, {"key", "revoke", "kid", flag}, {"key", "reseal", flag}, {"audit", flag},
		{"datastore", "restored", flag}, {"datastore", "copy", "sqlite:" + path, "postgres://nowhere.invalid/db"},
		{"backup", filepath.Join(folder, "backup"), flag},
	} {
		fails(t, 1, "there is no database "+path+": ", "a password of alice", args...)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("the commands left %v, %v", left, err)
	}
	other := filepath.Join(folder, "other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, 1, "is not a watchword database", "", "user", "list", "--datastore-uri=sqlite:"+other)
	if text, err := os.ReadFile(other); err != nil || strings.TrimSpace(string(text)) != "" {
		t.Errorf("the file of another program holds %q, %v", text, err)
	}
}
