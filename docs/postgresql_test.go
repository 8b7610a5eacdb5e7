//go:build unix

package docs_test

import (
	"net/url"
	"os/exec"
	"strings"
	"testing"

	"github.com/watchword-auth/watchword/internal/pgtest"
)

// TestTwoReplicasOfThePage runs the three terminals of the page about PostgreSQL: two replicas,
// and the commands of the admin.
func TestTwoReplicasOfThePage(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the server")
	}
	build := exec.Command("make", "build")
	build.Dir, build.Env = root, environment()
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	terminals := blocks(section(t, "docs/postgresql.md", "## Try two replicas on your own machine"), "bash")
	if len(terminals) != 4 {
		t.Fatalf("%d blocks, want two replicas, the admin, and the certificate", len(terminals))
	}
	uri, err := url.Parse(pgtest.URI(t))
	if err != nil {
		t.Fatal("the database's URI is malformed")
	}
	password, _ := uri.User.Password()
	uri.User = url.User(uri.User.Username())
	here := strings.NewReplacer("postgres://watchword@127.0.0.1:5432/watchword", "'"+uri.String()+"'",
		"127.0.0.1:50052", "127.0.0.1:0", "127.0.0.1:8081", "127.0.0.1:0", "watchword serve", "exec watchword serve")
	folder := folderWithProgram(t)
	printed := new(screen)
	replica := func(commands string) (grpc string) {
		log := new(screen)
		cmd := exec.Command("bash", "-euc", here.Replace(commands))
		cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = folder, strings.NewReader(password+"\n"), printed, log
		cmd.Env = append(environment(), "WATCHWORD_GRPC_ADDR=127.0.0.1:0", "WATCHWORD_HTTP_ADDR=127.0.0.1:0")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		return log.await(t, `msg=ready grpc=(\S+)`)
	}
	replica(terminals[0])
	second := replica(terminals[1])
	admin := printed.await(t, `(?m)^([a-z2-7]{5}(?:-[a-z2-7]{5}){4})$`)
	s := &served{folder: folder}
	if shown := s.run(t, strings.ReplaceAll(terminals[2], "127.0.0.1:50052", second), admin+"\n"); !strings.Contains(shown, "0 watchers, 2 replicas") {
		t.Errorf("shown, without both replicas:\n%s", shown)
	}
}
