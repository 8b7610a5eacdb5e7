package notes_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The compiler of proto files reads a copy of access.proto. If the copy differed from the
// module's file, notes.proto could state a rule that authn does not know.
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
		t.Errorf("third_party/%s differs from the module's file: copy the file again and run buf generate", file)
	}
}
