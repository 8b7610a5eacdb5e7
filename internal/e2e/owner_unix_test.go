//go:build unix

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// service is the user of a service in the tests below, and another is a stranger.
const service, another = 65534, 65533

// passable lets every user pass through the folders above path.
func passable(t *testing.T, path string) {
	t.Helper()
	for dir := filepath.Dir(path); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err == nil {
			err = os.Chmod(dir, info.Mode().Perm()|0o011)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// as makes a command run as another user.
func as(cmd *exec.Cmd, uid, gid uint32) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid, NoSetGroups: false}}
	return cmd
}

// owned returns a folder that belongs to the user of a service.
func owned(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can run a program as another user")
	}
	dir := t.TempDir()
	passable(t, dir)
	passable(t, watchword(t))
	if err := os.Chown(dir, service, service); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestRootBesideAService runs commands as root on the database of a service. Every file
// still belongs to the service, and the service starts again.
func TestRootBesideAService(t *testing.T) {
	dir := owned(t)
	serveAs := func() {
		serveCommand(t, dir, as(exec.Command(watchword(t), serveArgs(dir)...), service, service)).stop(t)
	}
	migrate := cliCommand(t, dir, "", "migrate", "--datastore-uri", database(dir))
	wantExit(t, 0, run(t, as(migrate, service, service)))
	turn := filepath.Join(dir, "watchword.db-turn")
	if err := os.Remove(turn); err != nil { // the next command, which runs as root, makes another turn file
		t.Fatal(err)
	}
	wantExit(t, 0, cli(t, dir, newPassword(), "user", "create", "alice", "--datastore-uri", database(dir)))
	serveAs()
	key := filepath.Join(dir, "watchword.db.master-key")
	if err := os.Chmod(key, 0o640); err != nil { // the operator has chosen this mode, and the command must keep the mode
		t.Fatal(err)
	}
	wantExit(t, 0, cli(t, dir, "", "key", "reseal", "--new-master-key", "--datastore-uri", database(dir)))
	files, err := os.ReadDir(dir)
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		info, err := file.Info()
		if err != nil {
			t.Fatal(err)
		}
		want := os.FileMode(0o600)
		if file.Name() == filepath.Base(key) {
			want = 0o640
		}
		if uid := info.Sys().(*syscall.Stat_t).Uid; uid != service || info.Mode() != want {
			t.Errorf("%s belongs to uid %d with mode %v", file.Name(), uid, info.Mode())
		}
	}
	serveAs()

	// The turnstile is optional: the service starts although root keeps the file.
	if err := os.Chown(turn, 0, 0); err != nil {
		t.Fatal(err)
	}
	serveAs()
	for _, file := range []string{key, filepath.Join(dir, "watchword.db")} {
		if err := os.Chown(file, another, another); err != nil {
			t.Fatal(err)
		}
		r := run(t, as(cliCommand(t, dir, "", serveArgs(dir)...), service, service))
		if wantExit(t, 1, r); !strings.Contains(r.stderr, file+" belongs to uid 65533,") || !strings.Contains(r.stderr, "this process runs as uid 65534,") {
			t.Errorf("a start with %s of another user: %v", file, r)
		}
	}
}

// TestReadersAreWarnedAbout starts a server on files that other users may read. A volume of
// Kubernetes with fsGroup has files of mode 0660 in a folder of root.
func TestReadersAreWarnedAbout(t *testing.T) {
	dir := t.TempDir()
	serve(t, dir).stop(t)
	for _, file := range []string{"watchword.db", "watchword.db.master-key"} {
		path := filepath.Join(dir, file)
		for _, mode := range []os.FileMode{0o640, 0o660, 0o604} {
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
			s := serve(t, dir)
			s.awaitLog(t, regexp.MustCompile(`level=WARN msg="other users can use a file with secrets: .*file=`+regexp.QuoteMeta(path)+`\n`))
			s.stop(t)
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := serve(t, dir)
	if log := s.stderr.String(); strings.Contains(log, "level=WARN") {
		t.Errorf("with files of mode 0600 the log warns:\n%s", log)
	}
}

// TestVolumesOfPlatforms runs a server first as OpenShift does: as an arbitrary user in the
// group 0, on a folder with the rights that the Dockerfile gives. Then the test runs the server
// on a volume that Kubernetes has given to a group (fsGroup), as the same user and as another
// user.
func TestVolumesOfPlatforms(t *testing.T) {
	const first, second, shared = 1000640000, 1000650000, 2000
	dir := owned(t)
	give := func(path string, uid, gid int, mode os.FileMode) {
		t.Helper()
		if err := os.Chown(path, uid, gid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	pod := func(cmd *exec.Cmd, uid uint32, groups ...uint32) *exec.Cmd {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: 0, Groups: groups}}
		return cmd
	}
	server := func(uid uint32, groups ...uint32) {
		t.Helper()
		serveCommand(t, dir, pod(exec.Command(watchword(t), serveArgs(dir)...), uid, groups...)).stop(t)
	}
	give(dir, 65532, 0, 0o770)
	server(first)
	server(first)

	// What Kubernetes does with fsGroup: every file and folder gets the group and its rights.
	give(dir, 0, shared, 0o770|os.ModeSetgid)
	files, err := os.ReadDir(dir)
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		give(filepath.Join(dir, file.Name()), first, shared, 0o660)
	}
	server(first, shared)
	server(second, shared)
	reseal := cliCommand(t, dir, "", "key", "reseal", "--new-master-key", "--datastore-uri", database(dir))
	wantExit(t, 0, run(t, pod(reseal, second, shared)))
	server(second, shared)
	server(first, shared)

	// A volume on which every user may write: an empty folder of Kubernetes, without fsGroup.
	give(dir, 0, 0, 0o777)
	wantExit(t, 1, run(t, pod(cliCommand(t, dir, "", serveArgs(dir)...), second)))
	own := filepath.Join(dir, "watchword")
	serveCommand(t, own, pod(exec.Command(watchword(t), serveArgs(own)...), second)).stop(t)
	for _, file := range []string{own, filepath.Join(own, "watchword.db"), filepath.Join(own, "watchword.db.master-key")} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}

	give(own, first, 0, 0o755) // own is now a folder that another user has put there
	r := run(t, pod(cliCommand(t, own, "", serveArgs(own)...), second))
	if wantExit(t, 1, r); !strings.Contains(r.stderr, "every user may replace the folder: run chmod o-w "+dir) {
		t.Errorf("a start in the folder of another user: %v", r)
	}
	give(own, 0, shared, 0o770) // a volume that is mounted there
	serveCommand(t, own, pod(exec.Command(watchword(t), serveArgs(own)...), second, shared)).stop(t)
}
