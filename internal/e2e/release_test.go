package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestSlowReleaseIsReproducible builds a release in two folders, with a cache, a time zone, a
// umask and flags of Go of its own for the second one. Both folders get the same bytes. The
// programs in the archive show the version, and each SBOM lists the modules of its program.
func TestSlowReleaseIsReproducible(t *testing.T) {
	slow(t)
	if err := build("tools", "github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod"); err != nil {
		t.Fatal(err)
	}
	const version, name = "v9.8.7", "watchword_9.8.7_linux_amd64"
	first := filepath.Join(t.TempDir(), "one")
	second := filepath.Join(t.TempDir(), "another", "folder")
	made := [2]map[string][32]byte{
		buildRelease(t, first, version, ""),
		buildRelease(t, second, version, "umask 077; export TZ=Asia/Tokyo GOFLAGS=-tags=other CGO_ENABLED=1 GOCACHE="+t.TempDir()+"; "),
	}
	if len(made[0]) != 4 || fmt.Sprint(made[0]) != fmt.Sprint(made[1]) {
		t.Errorf("one folder has %x,\nthe other one %x", made[0], made[1])
	}
	in := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = filepath.Join(first, "release")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", cmd, err, out)
		}
	}
	in("sha256sum", "--check", "SHA256SUMS")
	in("tar", "xzf", name+".tar.gz")
	unpacked := filepath.Join(first, "release", name)
	if got := shownVersion(t, filepath.Join(unpacked, "watchword")); got != version {
		t.Errorf("the program in the archive shows %q", got)
	}
	if r := run(t, exec.Command(filepath.Join(unpacked, "watchword-ext-authz"), "--version")); strings.TrimSpace(r.stdout) != version {
		t.Errorf("the program for Envoy in the archive shows %v", r)
	}
	for _, file := range []string{"README.md", "deploy/systemd/watchword.service", "deploy/kubernetes/watchword.yaml",
		"deploy/envoy/envoy.yaml", "deploy/istio/notes.yaml", "deploy/opa/watchword.rego"} {
		if _, err := os.Stat(filepath.Join(unpacked, file)); err != nil {
			t.Error(err)
		}
	}
	wantBill(t, filepath.Join(first, "release", name+".cdx.json"), version)
	wantBill(t, filepath.Join(first, "release", strings.Replace(name, "watchword", "watchword-ext-authz", 1)+".cdx.json"), version)
}

// buildRelease copies the repository into a folder, runs the release program there after some
// commands of the shell, and returns the hash of each file of the release.
func buildRelease(t *testing.T, folder, version, before string) map[string][32]byte {
	t.Helper()
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	absolute, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	// The script copies the files that git knows of in the working tree, without the repository.
	script := fmt.Sprintf("set -e; (cd %q; git ls-files -z --cached --others --exclude-standard | tar c --null -T -) | tar x; %s"+
		"go run ./scripts/release -version %s -sbom %q -only linux/amd64", absolute, before, version, filepath.Join(bin, "cyclonedx-gomod"))
	cmd := exec.Command("bash", "-c", script)
	cmd.Dir, cmd.Env = folder, environment("SOURCE_DATE_EPOCH=1700000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	hashes := map[string][32]byte{}
	entries, err := os.ReadDir(filepath.Join(folder, "release"))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		data, err := os.ReadFile(filepath.Join(folder, "release", entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		hashes[entry.Name()] = sha256.Sum256(data)
	}
	return hashes
}

// wantBill reads an SBOM, which must name the program with its version, and a module that the
// program contains.
func wantBill(t *testing.T, path, version string) {
	t.Helper()
	type component struct{ Name, Version string }
	var bill struct {
		BOMFormat    string
		SerialNumber string
		Metadata     struct {
			Timestamp string
			Component component
		}
		Components []component
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &bill); err != nil {
		t.Fatal(err)
	}
	if main := bill.Metadata.Component; bill.BOMFormat != "CycloneDX" || main.Version != version || main.Name+"/" != module {
		t.Errorf("%s is of %+v", path, main)
	}
	if bill.SerialNumber != "" || bill.Metadata.Timestamp != "" {
		t.Errorf("%s has a serial number or a time", path)
	}
	for _, c := range bill.Components {
		if c.Name == "google.golang.org/grpc" && strings.HasPrefix(c.Version, "v1.") {
			return
		}
	}
	t.Errorf("%s has %d components, and gRPC is not among them", path, len(bill.Components))
}
