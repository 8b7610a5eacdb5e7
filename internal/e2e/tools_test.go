package e2e

import (
	"context"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// buildTools builds the tools of docs/tools.md that make builds for no other purpose.
var buildTools = sync.OnceValue(func() error {
	return build("tools/clients", "github.com/ktr0731/evans", "github.com/bojand/ghz/cmd/ghz",
		"github.com/fullstorydev/grpcui/cmd/grpcui", "github.com/grpc-ecosystem/grpc-health-probe")
})

// findBuf sees to it that buf is in .bin, or builds buf beside the other programs.
var findBuf = sync.OnceValue(func() error {
	if _, err := os.Stat(filepath.Join(root, ".bin", "buf")); err == nil {
		return nil
	}
	return build("tools", "github.com/bufbuild/buf/cmd/buf")
})

// A reader is in a shell with the variables of docs/tools.md: the reader has logged in at a server.
type reader struct {
	login string // the lines of the page that log in
	block int    // in a section: of the blocks for TLS 0, of those without TLS 1
	env   []string
}

// readers returns a reader of a server with TLS, and one of a server without TLS.
func readers(t *testing.T) map[string]reader {
	t.Helper()
	found := map[string]reader{}
	for block, name := range []string{"TLS", "plaintext"} {
		dir, flags := t.TempDir(), []string(nil)
		if name == "TLS" {
			ca := newAuthority(t, dir, "ca")
			_, certFile, keyFile := ca.issue(t, "server", x509.ExtKeyUsageServerAuth)
			flags = []string{"--tls-cert", certFile, "--tls-key", keyFile}
		}
		s := serve(t, dir, flags...)
		password := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(password, []byte(s.admin), 0o600); err != nil {
			t.Fatal(err)
		}
		login := toolLines(t, "Log in first")[block]
		for from, to := range map[string]string{
			"auth.example.internal:50051": s.grpcAddr, "127.0.0.1:50051": s.grpcAddr, "ca=ca.crt": "ca=" + filepath.Join(dir, "ca.pem"),
			"login alice": "login admin", // the admin of an empty database
		} {
			login = strings.ReplaceAll(login, from, to)
		}
		pinned, err := filepath.Abs(filepath.Join(root, ".bin"))
		if err != nil {
			t.Fatal(err)
		}
		program(t, "watchword", buildWatchword)
		found[name] = reader{"exec <" + password + "\n" + login + "exec </dev/null\n", block, environment("WATCHWORD_PASSWORD_STDIN=true",
			"HOME="+t.TempDir(), "PATH="+bin+":"+pinned+":"+os.Getenv("PATH"))}
	}
	return found
}

// toolLines returns the blocks of commands in a section of docs/tools.md.
func toolLines(t *testing.T, heading string) (blocks []string) {
	t.Helper()
	lines := section(t, "docs/tools.md", heading)
	for _, m := range regexp.MustCompile("(?ms)^```bash\n(.*?)^```$").FindAllStringSubmatch(lines, -1) {
		blocks = append(blocks, m[1])
	}
	if len(blocks) == 0 || len(blocks)%2 != 0 {
		t.Fatalf("%s: %d blocks, want one for TLS and one without TLS each", heading, len(blocks))
	}
	return blocks
}

// shell returns the command that runs lines of the page, after the login.
func (r reader) shell(ctx context.Context, lines string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "bash", "-c", "set -euo pipefail\n"+r.login+lines)
	cmd.Env = r.env
	return cmd
}

// wantLines runs the blocks of a section, each against its server. The output of each block must
// match want, as often as the block has commands.
func wantLines(t *testing.T, readers map[string]reader, heading string, want *regexp.Regexp) {
	t.Helper()
	blocks := toolLines(t, heading)
	for name, reader := range readers {
		for i := reader.block; i < len(blocks); i += 2 {
			r := run(t, reader.shell(t.Context(), blocks[i]))
			wanted := strings.Count(blocks[i], heading+" -")
			if got := len(want.FindAllString(r.stdout+r.stderr, -1)); r.code != 0 || got < 1 || got != wanted {
				t.Errorf("%s, %s: %d of %d commands gave the answer: %v\n%s", heading, name, got, wanted, r, blocks[i])
			}
		}
	}
}

// The lines for buf curl, of which the repository fixes the version, do what docs/tools.md says.
func TestBufCurl(t *testing.T) {
	if err := findBuf(); err != nil {
		t.Fatal(err)
	}
	all := readers(t)
	wantLines(t, all, "buf curl", regexp.MustCompile(`"sessions"`))
	plain := all["plaintext"]
	r := run(t, plain.shell(t.Context(), "access=rubbish\n"+toolLines(t, "buf curl")[plain.block]))
	if r.code != 128 || !strings.Contains(r.stderr, "unauthenticated") {
		t.Errorf("with a bad token: %v", r)
	}
}

// Every line of docs/tools.md works.
func TestSlowOtherTools(t *testing.T) {
	slow(t)
	if err := buildTools(); err != nil {
		t.Fatal(err)
	}
	all := readers(t)
	wantLines(t, all, "evans", regexp.MustCompile(`"username": "admin"|"sessions"`))
	wantLines(t, all, "ghz", regexp.MustCompile(`\[OK\] +200 responses`))
	wantLines(t, all, "grpc-health-probe", regexp.MustCompile(`status: SERVING`))
	for name, reader := range all {
		t.Run("grpcui with "+name, func(t *testing.T) { grpcui(t, reader) })
	}
}

// grpcui runs the line for grpcui, and makes a call by the page as a browser would.
func grpcui(t *testing.T, r reader) {
	ctx, cancel := context.WithCancel(t.Context())
	cmd := r.shell(ctx, "exec "+toolLines(t, "grpcui")[r.block])
	out := newOutput()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel() // kills grpcui, which the shell has become
		_ = cmd.Wait()
	}()
	page := (&process{cmd: cmd, stderr: out, exited: make(chan struct{})}).awaitLog(t, regexp.MustCompile(`available at (http://\S+)/`))[1]
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: jar}
	resp, err := browser.Get(page + "/")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, page+"/invoke/watchword.v1.SessionService.ListSessions", strings.NewReader(`{"data":[{}]}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for _, cookie := range jar.Cookies(req.URL) {
		req.Header.Set("x-grpcui-csrf-token", cookie.Value)
	}
	resp, err = browser.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(answer), `"sessions"`) {
		t.Errorf("the page answers %s with %s, %v", resp.Status, answer, err)
	}
}
