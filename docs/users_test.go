//go:build unix

package docs_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The README's commands for users, at a server of its own.
func TestUsersFromTheReadme(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the server")
	}
	const builds, addr = "make .bin/grpcurl\n", "127.0.0.1:50051"
	steps := blocks(section(t, "README.md", "## Administer users at the command line"), "bash")
	if len(steps) != 3 || !strings.HasPrefix(steps[2], builds) || !strings.Contains(steps[2], addr) {
		t.Fatalf("the blocks are %q, want the user, the login and the roles", steps)
	}
	build := exec.Command("make", "build", ".bin/grpcurl")
	build.Dir, build.Env = root, environment()
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	bin, err := filepath.Abs(filepath.Join(root, ".bin"))
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	if err := os.Symlink(bin, filepath.Join(folder, ".bin")); err != nil {
		t.Fatal(err)
	}
	served, password := serveIn(t, folder)
	run := func(commands, input string) string {
		t.Helper()
		cmd := exec.Command("bash", "-euo", "pipefail", "-c", strings.ReplaceAll(commands, addr, served))
		cmd.Dir, cmd.Stdin = folder, strings.NewReader(input)
		cmd.Env = append(environment(), "WATCHWORD_ADDR="+served, "XDG_CONFIG_HOME="+folder)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s\n%s", err, commands, out)
		}
		return string(out)
	}
	run(steps[0], "correct horse battery\n")
	run(steps[1], password)
	if info, err := os.Stat(filepath.Join(folder, "tokens.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("tokens.json: %v, %v", info, err)
	}
	run(strings.TrimPrefix(steps[2], builds), "")
	if list := run(".bin/watchword user list", ""); !strings.Contains(list, " reader,writer ") {
		t.Errorf("the roles of bob are not changed:\n%s", list)
	}
}

// serveIn runs a server with its database in a folder, and returns the gRPC address and the
// password of admin.
func serveIn(t *testing.T, folder string) (addr, password string) {
	t.Helper()
	cmd := exec.Command(".bin/watchword", "serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--initial-password-file", "password")
	cmd.Path, cmd.Err = filepath.Join(folder, ".bin/watchword"), nil
	log := new(screen)
	cmd.Dir, cmd.Env, cmd.Stderr = folder, environment(), log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	addr = log.await(t, `msg=ready grpc=(\S+)`)
	text, err := os.ReadFile(filepath.Join(folder, "password"))
	if err != nil {
		t.Fatal(err)
	}
	return addr, string(text)
}
