// Command release builds the programs of a release, with archives, SBOMs and checksums. Two
// runs with the same source, version, release of Go and SOURCE_DATE_EPOCH write the same bytes,
// in whatever folder. The Makefile runs release.
package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// platforms lists the systems and processors for which a release has programs. docs/deploy.md names
// the platforms, too.
var platforms = []string{"linux/amd64", "linux/arm64", "darwin/arm64", "windows/amd64"}

// programs lists the programs of an archive. Each program has an SBOM of its own.
var programs = []string{"watchword", "watchword-ext-authz"}

// shipped lists the files beside the programs in an archive.
var shipped = []string{"README.md", "CHANGELOG.md", "SECURITY.md", "docs/*.md", "docs/decisions/*.md",
	"deploy/compose/compose.yaml", "deploy/compose/secrets.sh", "deploy/kubernetes/*", "deploy/systemd/*", "deploy/prometheus/*", "deploy/grafana/*",
	"deploy/envoy/*", "deploy/istio/*", "deploy/opa/*"}

// semver matches the versions of Go modules.
var semver = regexp.MustCompile(`^v\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

// settings holds what a release depends on, beside the source and the Go toolchain.
type settings struct {
	version string
	made    time.Time // the time of every file in an archive
	sbom    string    // the program cyclonedx-gomod
	out     string    // the folder for the files of the release
}

func main() {
	var s settings
	flag.StringVar(&s.version, "version", "", "the version, such as v1.2.3")
	flag.StringVar(&s.sbom, "sbom", "", "path of the program cyclonedx-gomod")
	flag.StringVar(&s.out, "out", "release", "folder for the files of the release; made anew")
	only := flag.String("only", strings.Join(platforms, ","), "platforms, with commas")
	flag.Parse()
	if err := s.run(strings.Split(*only, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// run makes the files of a release in the folder s.out. The working directory must be the folder of
// the repository.
func (s *settings) run(platforms []string) error {
	if !semver.MatchString(s.version) {
		return fmt.Errorf("%q is no version such as v1.2.3: run make release VERSION=v1.2.3", s.version)
	}
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil || epoch <= 0 {
		return errors.New("SOURCE_DATE_EPOCH must hold the time of the commit, in seconds since 1970")
	}
	s.made = time.Unix(epoch, 0).UTC()
	if err := errors.Join(os.RemoveAll(s.out), os.MkdirAll(s.out, 0o755)); err != nil {
		return err
	}
	for _, platform := range platforms {
		if err := s.build(platform); err != nil {
			return fmt.Errorf("%s: %w", platform, err)
		}
	}
	return s.checksums()
}

// build makes the archive and the SBOMs of one platform.
func (s *settings) build(platform string) error {
	system, processor, _ := strings.Cut(platform, "/")
	of := fmt.Sprintf("_%s_%s_%s", strings.TrimPrefix(s.version, "v"), system, processor)
	name := "watchword" + of
	work, err := os.MkdirTemp("", "watchword-release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	var binaries []string
	for _, program := range programs {
		binary := filepath.Join(work, program)
		if system == "windows" {
			binary += ".exe"
		}
		if err := s.compile(system, processor, binary, "./cmd/"+program); err != nil {
			return err
		}
		sbom := exec.Command(s.sbom, "bin", "-json", "-std", "-noserial", "-notimestamp", "-version", s.version,
			"-output", filepath.Join(s.out, program+of+".cdx.json"), binary)
		if out, err := sbom.CombinedOutput(); err != nil {
			return fmt.Errorf("SBOM of %s: %w\n%s", program, err, out)
		}
		binaries = append(binaries, binary)
	}
	files, err := s.files(name, binaries)
	if err != nil {
		return err
	}
	write, suffix := tarGz, ".tar.gz"
	if system == "windows" {
		write, suffix = zipped, ".zip"
	}
	archive, err := write(files, s.made)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.out, name+suffix), archive, 0o644)
}

// compile builds a program from a package. The environment of the caller, which may hold other
// settings of the compiler, has no influence: only the folders of Go's caches are passed on.
func (s *settings) compile(system, processor, binary, from string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-tags", "grpcnotrace", "-buildvcs=false", "-mod=readonly",
		"-ldflags", "-s -w -buildid= -X github.com/watchword-auth/watchword/internal/version.stamped="+s.version,
		"-o", binary, from)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		passed := []string{"GOCACHE", "GOMODCACHE", "GOPATH", "GOPROXY", "GOSUMDB", "GONOSUMDB", "GOROOT", "GOTOOLCHAIN", "GOTMPDIR"}
		return strings.HasPrefix(name, "GO") && !slices.Contains(passed, name) || strings.HasPrefix(name, "CGO_")
	})
	cmd.Env = append(cmd.Env, "GOOS="+system, "GOARCH="+processor, "CGO_ENABLED=0", "GOAMD64=v1", "GOARM64=v8.0", "GOWORK=off",
		"GOFLAGS=-buildvcs=false", "GOEXPERIMENT=none", "GOFIPS140=off") // an empty value would count as unset
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, out)
	}
	return err
}

// file is one file of an archive.
type file struct {
	name string
	mode fs.FileMode
	data []byte
}

// files reads the programs and the shipped files, sorted by name.
func (s *settings) files(folder string, binaries []string) ([]file, error) {
	var files []file
	for _, binary := range binaries {
		data, err := os.ReadFile(binary)
		if err != nil {
			return nil, err
		}
		files = append(files, file{folder + "/" + filepath.Base(binary), 0o755, data})
	}
	for _, pattern := range shipped {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			return nil, fmt.Errorf("%s: no such file (%v)", pattern, err)
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			mode := fs.FileMode(0o644)
			if strings.HasSuffix(path, ".sh") {
				mode = 0o755
			}
			files = append(files, file{folder + "/" + filepath.ToSlash(path), mode, data})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.name, b.name) })
	return files, nil
}

// tarGz returns the files as a tar archive, compressed by gzip.
func tarGz(files []file, made time.Time) ([]byte, error) {
	var archive bytes.Buffer
	compressed := gzip.NewWriter(&archive)
	w := tar.NewWriter(compressed)
	for _, f := range files {
		header := &tar.Header{Name: f.name, Mode: int64(f.mode), Size: int64(len(f.data)), ModTime: made, Format: tar.FormatUSTAR}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	err := errors.Join(w.Close(), compressed.Close())
	return archive.Bytes(), err
}

// zipped returns the files as a zip archive.
func zipped(files []file, made time.Time) ([]byte, error) {
	var archive bytes.Buffer
	w := zip.NewWriter(&archive)
	for _, f := range files {
		header := &zip.FileHeader{Name: f.name, Method: zip.Deflate, Modified: made}
		header.SetMode(f.mode)
		entry, err := w.CreateHeader(header)
		if err != nil {
			return nil, err
		}
		if _, err := entry.Write(f.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return archive.Bytes(), err
}

// checksums writes SHA256SUMS, which `sha256sum --check` reads.
func (s *settings) checksums() error {
	entries, err := os.ReadDir(s.out) // sorted by name
	if err != nil {
		return err
	}
	var sums bytes.Buffer
	for _, entry := range entries {
		data, err := os.ReadFile(filepath.Join(s.out, entry.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(data), entry.Name())
	}
	return os.WriteFile(filepath.Join(s.out, "SHA256SUMS"), sums.Bytes(), 0o644)
}
