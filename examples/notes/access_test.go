package notes_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The copy of access.proto is there for the compiler of proto files. Were it
// another than the one that authn was generated from, a rule could be written
// down that nobody holds to.
func TestAccessProtoIsTheModules(t *testing.T) {
	const file = "watchword/v1/access.proto"
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/watchword-auth/watchword").Output()
	if err != nil {
		t.Fatalf("looking for the module: %v", err)
	}
	want, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "proto", file))
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join("third_party", file))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("third_party/%s is not the module's: copy it again and run buf generate", file)
	}
}
