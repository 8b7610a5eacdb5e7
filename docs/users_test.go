//go:build unix

package docs_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// The addresses in the commands of the documents.
const (
	documentedGRPC  = "127.0.0.1:50051"
	documentedHTTP  = "127.0.0.1:8080"
	documentedNotes = "127.0.0.1:50061"
)

// The commands of the README for users, and of the pages for service accounts and for the first
// week, on one server.
func TestCommandsOfTheDocuments(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the server")
	}
	build := exec.Command("make", "build", ".bin/notes", ".bin/grpcurl")
	build.Dir, build.Env = root, environment()
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s := serveIn(t, folderWithProgram(t))
	t.Run("README", s.users)
	t.Run("a call", s.callNotes)
	t.Run("a certificate", tryTLS)
	t.Run("service accounts", s.services)
	t.Run("first week", s.firstWeek)
	t.Run("files left", s.filesLeft)
	t.Run("lines", runLines)
}

// filesLeft checks that .gitignore names every file that the server and the commands have left in
// the folder, while the server runs.
func (s *served) filesLeft(t *testing.T) {
	repository := t.TempDir()
	if out, err := exec.Command("git", "init", "-q", repository).CombinedOutput(); err != nil {
		t.Skipf("git: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(repository, ".gitignore"), []byte(read(t, ".gitignore")), 0o600); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(s.folder)
	if err != nil || len(left) < 5 {
		t.Fatalf("the folder has only %v: %v", left, err)
	}
	for _, entry := range left {
		if name := entry.Name(); !slices.Contains([]string{".bin", "proto", "examples", "watchword", "password"}, name) && // the test has named these
			exec.Command("git", "-C", repository, "check-ignore", "-q", "--no-index", name).Run() != nil {
			t.Errorf(".gitignore does not name %s", name)
		}
	}
}

func (s *served) users(t *testing.T) {
	steps := blocks(section(t, "README.md", "## Administer users at the command line"), "bash")
	if len(steps) != 4 || !strings.Contains(steps[0], documentedGRPC) {
		t.Fatalf("the blocks are %q, want the variables, the login, the user and the roles", steps)
	}
	s.run(t, steps[0]+steps[1], s.password)
	s.run(t, steps[0]+steps[2], "correct horse battery\n")
	if shown := s.run(t, steps[0]+steps[3], ""); !strings.Contains(shown, " reader,writer\n") || !strings.Contains(shown, "user.created") {
		t.Errorf("the roles of bob are not changed, or not recorded:\n%s", shown)
	}
	if list := s.run(t, ".bin/watchword user list --datastore-uri sqlite:watchword.db", ""); !strings.Contains(list, " reader,writer ") {
		t.Errorf("on the database:\n%s", list)
	}
}

// callNotes calls the notes example before and after a logout of bob.
func (s *served) callNotes(t *testing.T) {
	for _, folder := range []string{"proto", "examples"} {
		of, err := filepath.Abs(filepath.Join(root, folder))
		if err == nil {
			err = os.Symlink(of, filepath.Join(s.folder, folder))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	log := new(screen)
	notes := exec.Command(filepath.Join(s.folder, ".bin/notes"), "-addr", "127.0.0.1:0", "-auth-addr", s.grpc)
	notes.Env, notes.Stderr = environment(), log
	if err := notes.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = notes.Process.Kill()
		_ = notes.Wait()
	}()
	addr := log.await(t, `notes: ready on (\S+)`)
	commands := blocks(section(t, "README.md", "### Call a method of your service"), "bash")[0]
	if !strings.Contains(commands, documentedNotes) {
		t.Fatalf("the block has not the address of notes:\n%s", commands)
	}
	variables := blocks(section(t, "README.md", "## Administer users at the command line"), "bash")[0]
	shown := s.run(t, variables+strings.ReplaceAll(commands, documentedNotes, addr), "correct horse battery\n")
	if strings.Count(shown, "{}") != 1 || !strings.Contains(shown, "the access token was revoked") {
		t.Errorf("shown, in place of one answer and one refusal:\n%s", shown)
	}
}

// tryTLS makes a certificate as the page about PostgreSQL does, on a machine where Docker does not
// answer, and calls a server that has the certificate.
func tryTLS(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is missing")
	}
	folder := folderWithProgram(t)
	deploy, err := filepath.Abs(filepath.Join(root, "deploy"))
	if err == nil {
		err = os.Symlink(deploy, filepath.Join(folder, "deploy"))
	}
	if err != nil {
		t.Fatal(err)
	}
	make := blocks(section(t, "docs/postgresql.md", "### Try TLS"), "bash")[0]
	(&served{folder: folder}).run(t, "export DOCKER_HOST=unix:///no/such/socket\n"+make, "")
	s := serveIn(t, folder, "--tls-cert", "trial/tls.crt", "--tls-key", "trial/tls.key", "--master-key-file", "trial/master.key")
	s.run(t, ".bin/watchword healthcheck --addr "+s.grpc+" --ca-file trial/ca.crt", "")
}

// runLines runs the commands that stand in lines of their own, beside a server of its own.
func runLines(t *testing.T) {
	s := serveIn(t, folderWithProgram(t))
	s.run(t, ".bin/watchword user create alice --password-stdin", "correct horse battery\n")
	s.run(t, ".bin/watchword user create bob --password-stdin", "correct horse battery\n")
	administer, ask := "## Administer: user, service, issuer, session, key, audit, watchers", "## Ask a running server: login, verify, logout, explain, healthcheck"
	const backup = "backups/watchword-2026-11-25.db"
	if err := os.Mkdir(filepath.Join(s.folder, "backups"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.lines(t, "docs/configuration.md", administer, 4)
	s.lines(t, "docs/configuration.md", ask, 8)
	s.lines(t, "docs/keys.md", "## Replace the master key", 1)
	s.lines(t, "docs/restore.md", "## Make a backup", 1)
	s.lines(t, "docs/migrations.md", "## Finish an upgrade", 1)
	s.lines(t, "docs/restore.md", "## After restoring a backup, or promoting a standby", 1)

	lost := &served{folder: folderWithProgram(t)} // a database without its master key
	if err := os.Rename(filepath.Join(s.folder, backup), filepath.Join(lost.folder, "watchword.db")); err != nil {
		t.Fatal(err)
	}
	lost.lines(t, "docs/recovery.md", "## The master key is lost", 1)
	lost.run(t, ".bin/watchword key rotate", "")
}

// lines runs the n indented commands of a section.
func (s *served) lines(t *testing.T, path, heading string, n int) {
	t.Helper()
	ours := strings.NewReplacer("--addr auth:50051 --ca-file ca.pem", "--addr "+s.grpc+" --plaintext", " /backups/", " backups/")
	commands := regexp.MustCompile(`(?m)^ {4,}((?:watchword|umask|rm) .*)$`).FindAllStringSubmatch(section(t, path, heading), -1)
	if len(commands) != n {
		t.Fatalf("%s, %s: %q, want %d commands", path, heading, commands, n)
	}
	for _, c := range commands {
		input := ""
		switch {
		case strings.Contains(c[1], "login admin"):
			input = s.password
		case strings.Contains(c[1], "login alice"):
			input = "correct horse battery\n"
		}
		environment := "export PATH=$PWD/.bin:$PATH; "
		if strings.Contains(c[1], "--plaintext") {
			environment += "export WATCHWORD_ADDR=" + s.grpc + "; "
		}
		s.run(t, environment+ours.Replace(c[1]), input)
	}
}

// step is what a block of commands has, reads and prints.
type step struct{ command, input, output string }

// services runs every block of commands of the page about service accounts, in the order of the
// page.
func (s *served) services(t *testing.T) {
	s.page(t, "docs/services.md", []step{
		{"export WATCHWORD_ADDR=" + documentedGRPC, "", ""},
		{"login admin", s.password, ""},
		{"service create search", "", "audiences     search"},
		{"service set notes", "", " billing,search  enabled "},
		{"service delete notes", "", ""},
		{"audit --user search", "", "user.created"},
	})
}

// firstWeek runs every block of commands of the page about the first week, in the order of the
// page.
func (s *served) firstWeek(t *testing.T) {
	const aPassword = "correct horse battery\n"
	s.page(t, "docs/first-week.md", []step{
		{"export WATCHWORD_ADDR=" + documentedGRPC, "", ""},
		{"login admin", s.password, ""},
		{"user create dana", aPassword, ""},
		{"user create carol", aPassword, ""},
		{"user set-roles carol", "", " reader,writer "},
		{"session revoke-all carol", "", "AUDIENCE"},
		{"user disable carol", "", ""},
		{"audit", "", "user.sessions_revoked"},
		{"watchers", "", "0 watchers, 1 replicas"},
		{"curl", "", "watchword_can_sign 1\nwatchword_database_up 1\nwatchword_ready 1\n"},
		{"backup", "", " reader,writer  disabled "},
		{"key rotate --wait", "", "every watcher has the change"},
		{"mv ", "", ""},
		{"logout", "", ""},
	})
}

// page runs every block of a page. The first block sets the variables for the others.
func (s *served) page(t *testing.T, path string, wants []step) {
	t.Helper()
	steps := blocks(read(t, path), "bash")
	if len(steps) != len(wants) {
		t.Fatalf("the page has %d blocks, want %d", len(steps), len(wants))
	}
	for i, want := range wants {
		if !strings.Contains(steps[i], want.command) {
			t.Fatalf("block %d is\n%s\nwant %s", i, steps[i], want.command)
		}
		switch want.command {
		case "mv ":
			replaceCertificate(t, steps[i])
			continue
		case "curl":
			if _, err := exec.LookPath("curl"); err != nil {
				t.Log("curl is missing: its block was left out")
				continue
			}
		}
		if shown := s.run(t, steps[0]+steps[i], want.input); !strings.Contains(shown, want.output) {
			t.Errorf("shown, without %q:\n%s\n%s", want.output, steps[i], shown)
		}
	}
}

// replaceCertificate runs the commands beside a server of its own with TLS.
func replaceCertificate(t *testing.T, commands string) {
	t.Helper()
	folder := folderWithProgram(t)
	writeCertificate(t, folder, "tls")
	s := serveIn(t, folder, "--tls-cert", "tls.crt", "--tls-key", "tls.key")
	writeCertificate(t, folder, "new")
	s.run(t, commands, "")
	s.log.await(t, `msg="read again; .*`)
}

// writeCertificate writes a new certificate for loopback as NAME.crt and NAME.key.
func writeCertificate(t *testing.T, folder, name string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, of, of, public, private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		name + ".crt": {Type: "CERTIFICATE", Bytes: certificate},
		name + ".key": {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(folder, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// served is a running server, with its database in a folder.
type served struct {
	folder, grpc, http string
	password           string // the password of admin
	log                *screen
}

// run runs commands of a document in the folder, against the server.
func (s *served) run(t *testing.T, commands, input string) string {
	t.Helper()
	toServed := strings.NewReplacer(documentedGRPC, s.grpc, documentedHTTP, s.http)
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", toServed.Replace(commands))
	cmd.Dir = s.folder
	if input != "" { // without input, standard input is the null device, and `watchword logout` ends the kept session
		cmd.Stdin = strings.NewReader(input)
	}
	cmd.Env = append(environment(), "XDG_CONFIG_HOME="+s.folder)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, commands, out)
	}
	return string(out)
}

// folderWithProgram returns a new folder with a link to .bin.
func folderWithProgram(t *testing.T) string {
	t.Helper()
	bin, err := filepath.Abs(filepath.Join(root, ".bin"))
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	if err := os.Symlink(bin, filepath.Join(folder, ".bin")); err != nil {
		t.Fatal(err)
	}
	return folder
}

// serveIn runs a server in a folder with the program.
func serveIn(t *testing.T, folder string, flags ...string) *served {
	t.Helper()
	cmd := exec.Command(".bin/watchword", append([]string{"serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0",
		"--initial-password-file", "password"}, flags...)...)
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
	addr := log.await(t, `msg=ready grpc=(\S+)`)
	text, err := os.ReadFile(filepath.Join(folder, "password"))
	if err != nil {
		t.Fatal(err)
	}
	return &served{
		folder: folder, grpc: addr, http: log.await(t, `msg=ready grpc=\S+ http=(\S+)`), password: string(text), log: log,
	}
}
