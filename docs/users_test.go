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
	const addr = "127.0.0.1:50051"
	steps := blocks(section(t, "README.md", "## Administer users at the command line"), "bash")
	if len(steps) != 4 || !strings.Contains(steps[0], addr) {
		t.Fatalf("the blocks are %q, want the variables, the login, the user and the roles", steps)
	}
	build := exec.Command("make", "build")
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
		cmd := exec.Command("bash", "-euo", "pipefail", "-c", strings.ReplaceAll(steps[0]+commands, addr, served))
		cmd.Dir = folder
		if input != "" { // else the null device, and logout ends the kept session
			cmd.Stdin = strings.NewReader(input)
		}
		cmd.Env = append(environment(), "XDG_CONFIG_HOME="+folder)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s\n%s", err, commands, out)
		}
		return string(out)
	}
	run(steps[1], password)
	run(steps[2], "correct horse battery\n")
	if shown := run(steps[3], ""); !strings.Contains(shown, " reader,writer\n") || !strings.Contains(shown, "user.created") {
		t.Errorf("the roles of bob are not changed, or not recorded:\n%s", shown)
	}
	if list := run(".bin/watchword user list --datastore-uri sqlite:watchword.db", ""); !strings.Contains(list, " reader,writer ") {
		t.Errorf("on the database:\n%s", list)
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
