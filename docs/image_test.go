//go:build unix

package docs_test

import (
	"crypto/sha256"
	"fmt"
	"go/version"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var baseImage = regexp.MustCompile(`(?m)^FROM (\S+)(?: AS \w+)?$`)

// The image is built by an exact version of Go, of the release that go.mod asks for. go.mod
// names the oldest version that will do, and has no toolchain line, since that line would
// make every older Go download another one; so the Dockerfile may be ahead.
func TestImageIsBuiltByAnExactVersion(t *testing.T) {
	wanted := regexp.MustCompile(`(?m)^(?:toolchain go|go )(\S+)$`).FindAllStringSubmatch(read(t, "go.mod"), -1)
	if len(wanted) == 0 {
		t.Fatal("go.mod names no version of Go")
	}
	oldest := "go" + wanted[len(wanted)-1][1] // of the last such line: the toolchain, if go.mod names one
	bases := baseImage.FindAllStringSubmatch(read(t, "Dockerfile"), -1)
	if len(bases) != 2 || bases[1][1] != "scratch" {
		t.Fatalf("the Dockerfile begins at %q, want Go and scratch", bases)
	}
	m := regexp.MustCompile(`^golang:(\d+\.\d+\.\d+)(@sha256:[0-9a-f]{64})?$`).FindStringSubmatch(bases[0][1])
	if m == nil {
		t.Fatalf("%s is no exact version of Go", bases[0][1])
	}
	if built := "go" + m[1]; version.Lang(built) != version.Lang(oldest) || version.Compare(built, oldest) < 0 {
		t.Errorf("the image is built by %s, and go.mod asks for %s", built, oldest)
	}
}

// pin runs scripts/pin-images.sh with a registry that answers with a manifest.
func pin(t *testing.T, dockerfile, manifest string) (pinned string, err error) {
	t.Helper()
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token" && r.URL.Query().Get("scope") == "repository:library/golang:pull":
			fmt.Fprint(w, `{"token": "anonymous", "expires_in": 300}`)
		case r.URL.Path == "/v2/library/golang/manifests/1.26.8" && r.Header.Get("Authorization") == "Bearer anonymous" && manifest != "":
			fmt.Fprint(w, manifest)
		default:
			http.NotFound(w, r)
		}
	}))
	defer registry.Close()
	file := filepath.Join(t.TempDir(), "Dockerfile")
	if err := os.WriteFile(file, []byte(dockerfile), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(root, "scripts/pin-images.sh"), file)
	cmd.Env = append(environment(), "PIN_REGISTRY="+registry.URL, "PIN_AUTH="+registry.URL, "NO_PROXY=127.0.0.1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	text, readErr := os.ReadFile(file)
	if readErr != nil {
		t.Fatal(readErr)
	}
	return string(text), err
}

func TestPinImages(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("the script needs curl")
	}
	const manifest = `{"schemaVersion": 2, "manifests": []}` + "\n"
	digest := fmt.Sprintf("@sha256:%x", sha256.Sum256([]byte(manifest)))
	old := "@sha256:" + strings.Repeat("0", 64)
	for _, from := range []string{"FROM golang:1.26.8 AS build\n", "FROM golang:1.26.8" + old + " AS build\n"} {
		const rest = "RUN echo FROM golang:1.26.8\nFROM scratch\nCOPY --from=build /a /a\n"
		pinned, err := pin(t, from+rest, manifest)
		if want := "FROM golang:1.26.8" + digest + " AS build\n" + rest; err != nil || pinned != want {
			t.Errorf("%s became\n%s%v, want\n%s", from, pinned, err, want)
		}
	}
	// Without a good answer nothing changes.
	for what, answer := range map[string]string{"no manifest": "", "a page": "<html>", "an empty answer": "\n"} {
		const before = "FROM golang:1.26.8 AS build\nFROM scratch\n"
		if after, err := pin(t, before, answer); err == nil || after != before {
			t.Errorf("%s: %v\n%s", what, err, after)
		}
	}
	// The manifest of one image is not taken for the next one.
	const two = "FROM golang:1.26.8 AS build\nFROM golang:9.99.9\n"
	if after, err := pin(t, two, manifest); err == nil || after != two {
		t.Errorf("an image that the registry does not have: %v\n%s", err, after)
	}
	ours := read(t, "Dockerfile")
	if pinned, err := pin(t, ours, manifest); err != nil || strings.Count(pinned, digest) != 1 {
		t.Errorf("our Dockerfile: %v\n%s", err, pinned)
	}
}
