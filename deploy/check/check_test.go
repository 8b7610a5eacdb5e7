// Package check tests the files of deploy/ by the tools that read the files: the types of
// Kubernetes, the loader of compose, systemd and Prometheus. The package is a module of its
// own, so that the module of Watchword stays light.
package check

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/watchword-auth/watchword/internal/pgtest"
)

const deploy = ".." // the folder with the files

func TestMain(m *testing.M) {
	os.Exit(func() int {
		defer func() { _ = os.RemoveAll(bin) }()
		return pgtest.Main(m)
	}())
}

var (
	bin   string // the folder with the server's program
	build = sync.OnceValues(func() (string, error) {
		var err error
		if bin, err = os.MkdirTemp("", "watchword-deploy-"); err != nil {
			return "", err
		}
		program := filepath.Join(bin, "watchword")
		cmd := exec.Command("go", "build", "-buildvcs=false", "-o", program, "./cmd/watchword")
		cmd.Dir = filepath.Join(deploy, "..")
		out, err := cmd.CombinedOutput()
		if err != nil {
			_, _ = os.Stderr.Write(out)
		}
		return program, err
	})
)

// watchword returns the path of the server's program.
func watchword(t *testing.T) string {
	t.Helper()
	program, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// environment returns the tests' environment without the variables of Watchword and of
// PostgreSQL, and with the variables in extra.
func environment(extra ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "WATCHWORD_") || strings.HasPrefix(v, "PG") || strings.HasPrefix(v, "OTEL_")
	})
	return append(env, extra...)
}

// tool returns the path of a program. If the program is missing, the test is skipped on a
// developer's machine, and fails in CI.
func tool(t *testing.T, name, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
		return path
	case runtime.GOOS == "linux" && os.Getenv("CI") != "":
		t.Fatalf("%s is missing: apt-get install %s", name, debianPackage)
	default:
		t.Skipf("UNCHECKED: %s is missing: apt-get install %s", name, debianPackage)
	}
	return ""
}

// output runs a program and returns its output, or fails the test.
func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return string(out)
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// texts returns the files of deploy/ by path, without this module and without the secrets of
// a developer.
func texts(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(deploy, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == "check" || entry.Name() == "secrets"):
			return fs.SkipDir
		case !entry.IsDir():
			files[path] = read(t, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestFlagsAndVariables checks that each flag and each variable of Watchword in deploy/ is
// one of the program.
func TestFlagsAndVariables(t *testing.T) {
	var help string
	for _, command := range []string{"serve", "migrate", "healthcheck"} {
		help += output(t, exec.Command(watchword(t), command, "--help"))
	}
	variable := regexp.MustCompile(`WATCHWORD_[A-Z_]+`)
	flag := regexp.MustCompile(`--[a-z][a-z-]+`)
	line := regexp.MustCompile(`(?m)^.*(?:watchword,? (?:serve|migrate|healthcheck)|--(?:shutdown-delay|drain-timeout)).*$`)
	known := map[string]bool{"WATCHWORD_IMAGE": true, "WATCHWORD_PORT": true} // variables of compose and of Kubernetes
	found := 0
	for path, text := range texts(t) {
		for _, name := range variable.FindAllString(text, -1) {
			found++
			if !strings.Contains(help, "($"+name+")") && !known[name] {
				t.Errorf("%s: the program has no variable %s", path, name)
			}
		}
		for _, name := range flag.FindAllString(strings.Join(line.FindAllString(text, -1), "\n"), -1) {
			if !strings.Contains(help, " "+name+"=") {
				t.Errorf("%s: the program has no flag %s", path, name)
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d variables were found in deploy/", found)
	}
}
