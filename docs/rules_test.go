//go:build unix

package docs_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The README's way to a service with rules of its own, pasted into an empty folder
// beside a clone. Programs that have to be installed are those of .bin instead.
func TestRulesFromTheReadme(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a module")
	}
	text := section(t, "README.md", "### Set the rule of each method")
	pastes := blocks(text, "bash")
	if len(pastes) != 5 {
		t.Fatalf("%d blocks to paste, want the module, the tools, the service, buf and protoc", len(pastes))
	}
	module, tools, service, buf, protoc := pastes[0], pastes[1], pastes[2], pastes[3], pastes[4]
	managed := blocks(text, "yaml")[0]
	wantPinned(t, tools)

	bin := toolFolder(t)
	folder := t.TempDir()
	clone, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(clone, filepath.Join(folder, "watchword")); err != nil {
		t.Fatal(err)
	}
	in := folder
	run := func(step, script string) {
		t.Helper()
		cmd := exec.Command("bash", "-e")
		cmd.Dir, cmd.Stdin = in, strings.NewReader(script)
		// GOSUMDB is off, because go.sum of this module already has the sums of the modules that
		// the commands build.
		cmd.Env = append(environment(), "PATH="+bin+":"+os.Getenv("PATH"), "GOSUMDB=off", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", step, err, out)
		}
	}
	run("the module", module)
	in = filepath.Join(folder, "notes")
	run("the service", service)
	run("buf", buf)
	if err := os.WriteFile(filepath.Join(in, "main.go"), []byte(rulesProgram), 0o600); err != nil {
		t.Fatal(err)
	}
	const same = "test ! -e gen/watchword && go run . | cmp - <(printf '%s\\n' 'AddNote [writer admin] false' 'About [] true' 'ListNotes [] false')\n"
	const again = "rm -rf gen third_party\n"
	run("the rules", same)
	run("protoc", "rm -rf gen\n"+protoc+same)
	run("a module with a folder vendor", "go mod vendor\ntest -z \"$(go list -m -f '{{.Dir}}' github.com/watchword-auth/watchword)\"\n"+again+buf+same+"rm -rf gen\n"+protoc+same+"rm -r vendor\n")
	run("managed mode", "sed -i.old '/^option go_package/d' proto/notes/v1/notes.proto && rm proto/notes/v1/*.old\n"+
		"cat >>buf.gen.yaml <<'EOF'\n"+managed+"EOF\nrm -rf gen\nbuf generate\n"+same)
}

// rulesProgram prints the rules that the generated code carries.
const rulesProgram = `package main

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"

	notesv1 "example.com/notes/gen/notes/v1"
)

func main() {
	methods := notesv1.File_notes_v1_notes_proto.Services().Get(0).Methods()
	for _, name := range []string{"AddNote", "About", "ListNotes"} {
		for i := range methods.Len() {
			if method := methods.Get(i); string(method.Name()) == name {
				access := proto.GetExtension(method.Options(), watchwordv1.E_Access).(*watchwordv1.Access)
				fmt.Println(name, access.GetRoles(), access.GetPublic())
			}
		}
	}
}
`

// toolFolder returns a folder with buf and its plugins, and with buf as protoc
// where there is no protoc that finds its own proto files.
func toolFolder(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("make", ".bin/buf", ".bin/protoc-gen-go", ".bin/protoc-gen-go-grpc")
	cmd.Dir, cmd.Env = root, environment()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	bin, err := filepath.Abs(filepath.Join(root, ".bin"))
	if err != nil {
		t.Fatal(err)
	}
	if exec.Command("protoc", "--descriptor_set_out="+os.DevNull, "google/protobuf/descriptor.proto").Run() == nil {
		return bin
	}
	standIn := t.TempDir()
	script := "#!/bin/sh\nexec buf alpha protoc \"$@\"\n"
	if err := os.WriteFile(filepath.Join(standIn, "protoc"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return standIn + ":" + bin
}

// wantPinned checks that a script installs what this repository builds, in the
// same versions.
func wantPinned(t *testing.T, script string) {
	t.Helper()
	pins := read(t, "go.mod") + read(t, "tools/go.mod")
	installs := regexp.MustCompile(`(?m)^go install -v (\S+)@(\S+)$`).FindAllStringSubmatch(script, -1)
	if len(installs) != 3 {
		t.Errorf("%d programs are installed, want three", len(installs))
	}
	for _, install := range installs {
		path, version := install[1], install[2]
		for path != "." && !strings.Contains(pins, "\t"+path+" v") {
			path = filepath.Dir(path)
		}
		if !strings.Contains(pins, "\t"+path+" "+version) {
			t.Errorf("%s: no go.mod pins %s at %s", install[0], path, version)
		}
	}
}
