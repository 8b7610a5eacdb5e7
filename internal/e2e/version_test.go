package e2e

import (
	"crypto/x509"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/watchword-auth/watchword/internal/pgtest"
)

// stampFlags returns the flag of the linker that stamps a version, as the Makefile, the
// Dockerfile and scripts/release write it.
func stampFlags(version string) string {
	return "-X github.com/watchword-auth/watchword/internal/version.stamped=" + version
}

// buildWith builds the server with arguments of `go build`, and returns the program's path.
func buildWith(t *testing.T, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "watchword")
	cmd := exec.Command("go", append(append([]string{"build", "-o", path}, args...), "./cmd/watchword")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return path
}

// shownVersion returns the version that a program prints, which the command and the flag
// print alike.
func shownVersion(t *testing.T, program string) string {
	t.Helper()
	command, flag := run(t, exec.Command(program, "version")), run(t, exec.Command(program, "--version"))
	wantExit(t, 0, command)
	wantExit(t, 0, flag)
	if command.stdout != flag.stdout || strings.Count(flag.stdout, "\n") != 1 {
		t.Errorf("`version` prints %q, and --version prints %q", command.stdout, flag.stdout)
	}
	return strings.TrimSpace(flag.stdout)
}

// TestVersion builds the server as `make build` and the Dockerfile do, with a stamped version.
// The program shows the version.
func TestVersion(t *testing.T) {
	const version = "v9.8.7-rc.6"
	program := buildWith(t, "-buildvcs=false", "-ldflags", stampFlags(version))
	if got := shownVersion(t, program); got != version {
		t.Errorf("the version is %q, and %s was stamped", got, version)
	}
	readyLineOfSQLite(t, program, version)
	readyLineOfPostgreSQL(t, program, version)
	for _, file := range []string{"Makefile", "Dockerfile"} {
		if !regexp.MustCompile(regexp.QuoteMeta(stampFlags("")) + `\$\(?VERSION\b`).MatchString(repositoryFile(t, file)) {
			t.Errorf("%s does not stamp VERSION as %s", file, stampFlags("VERSION"))
		}
	}
}

// TestVersionOfAClone compares scripts/version.sh with the Go toolchain, which stamps a
// version into a program that was built in a clone.
func TestVersionOfAClone(t *testing.T) {
	script, err := os.ReadFile(filepath.Join(root, "scripts", "version.sh"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	in := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GOWORK=off")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	commit := func() {
		t.Helper()
		in("git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "--quiet", "--allow-empty", "--message", "test")
	}
	same := func(state string) {
		t.Helper()
		binary := filepath.Join(t.TempDir(), "program")
		in("go", "build", "-buildvcs=true", "-o", binary, ".")
		stamped := regexp.MustCompile(`(?m)^\s+mod\s+example\.org/program\s+(\S+)`).FindStringSubmatch(in("go", "version", "-m", binary))
		if got := in("scripts/version.sh"); stamped == nil || got != stamped[1] {
			t.Errorf("%s: the script prints %q, and Go stamps %q", state, got, stamped)
		}
	}
	for name, text := range map[string]string{
		"go.mod": "module example.org/program\n\ngo 1.26\n", "main.go": "package main\n\nfunc main() {}\n", "scripts/version.sh": string(script),
	} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	if got := in("scripts/version.sh"); got != "" {
		t.Errorf("outside of a clone the script prints %q", got)
	}
	in("git", "init", "--quiet")
	in("git", "add", ".")
	commit()
	same("no tag")
	in("git", "tag", "v1.2.9")
	same("a tag")
	in("git", "tag", "unrelated")
	commit()
	same("after a tag")
	in("git", "tag", "v1.3.0-rc.1")
	commit()
	same("after a release candidate")
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	same("a changed clone")
}

// readyLineOfSQLite starts a server with TLS, and reads the ready line as text.
func readyLineOfSQLite(t *testing.T, program, version string) {
	t.Helper()
	dir := t.TempDir()
	ca := newAuthority(t, dir, "ca")
	_, cert, key := ca.issue(t, "server", x509.ExtKeyUsageServerAuth)
	args := serveArgs(dir, "--tls-cert", cert, "--tls-key", key, "--issuer", "https://auth.example", "--audience", "a,b")
	s := serveCommand(t, dir, exec.Command(program, args...))
	want := " version=" + version + " database=" + database(dir) +
		` issuer=https://auth.example audiences="[a b watchword]" tls=true client_ca=false` + "\n"
	if !strings.Contains(s.stderr.String(), want) {
		t.Errorf("the line ready lacks %q:\n%s", want, s.stderr)
	}
}

// readyLineOfPostgreSQL starts a replica, and reads the ready line as JSON. The URI of the
// database has a password, which the line leaves out. The metrics have the version too.
func readyLineOfPostgreSQL(t *testing.T, program, version string) {
	t.Helper()
	uri, dir := pgtest.URI(t), t.TempDir()
	before, rest, _ := strings.Cut(uri, "://")
	user, address, _ := strings.Cut(rest, "@")
	user, password, found := strings.Cut(user, ":")
	if !found {
		t.Fatal("the URI of the database has no password")
	}
	noteSecret(password)
	masterKey := filepath.Join(dir, "master.key")
	for _, args := range [][]string{{"key", "create-master-key", masterKey}, {"migrate"}} {
		cmd := exec.Command(program, args...)
		cmd.Env = environment("WATCHWORD_DATASTORE_URI=" + uri)
		wantExit(t, 0, run(t, cmd))
	}
	cmd := exec.Command(program, "serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0",
		"--issuer", "http://auth.example", "--master-key-file", masterKey, "--log-format", "json")
	cmd.Env = []string{"WATCHWORD_DATASTORE_URI=" + uri}
	s := serveCommand(t, "", cmd)
	want := `"database":"` + before + "://" + user + "@" + address + `"`
	if !strings.Contains(s.stderr.String(), want) {
		t.Errorf("the line ready lacks %s:\n%s", want, s.stderr)
	}
	info := regexp.MustCompile(`(?m)^watchword_build_info\{.*version="` + regexp.QuoteMeta(version) + `"\} 1$`)
	if page := get(t, "http://"+s.httpAddr+"/metrics"); !info.MatchString(page) {
		t.Errorf("the metrics lack version %s", version)
	}
}
