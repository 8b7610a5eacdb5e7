//go:build unix

package authn_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-auth/watchword/authn"
)

// Only the owner may read and write the file, whatever the umask.
func TestModeOfTheFile(t *testing.T) {
	before := syscall.Umask(0o022)
	defer syscall.Umask(before)
	for _, umask := range []int{0, 0o022, 0o077, 0o277} {
		synctest.Test(t, func(t *testing.T) {
			folder := t.TempDir() // made before the umask forbids the making
			syscall.Umask(umask)
			path := filepath.Join(folder, "bundle")
			w := start(t, authn.WithSnapshotFile(path))
			w.Close()
			syscall.Umask(0o022)
			info, err := os.Stat(path)
			if err != nil || info.Mode() != 0o600 {
				t.Errorf("umask %04o: %v, %v", umask, info.Mode(), err)
			}
			w.alone(t, path).wants(t, mint(t, w.key), "ok")
		})
	}
}

// A file that other users may read or write is ignored; so is a link, a pipe or a folder in
// the file's place.
func TestAFileOpenToOtherUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, path := startKept(t)
		first.Close()
		refused := func(path, says string) {
			t.Helper()
			w := first.alone(t, path)
			w.wants(t, mint(t, first.key), "BUNDLE_STALE")
			if err := w.Status().SnapshotError; err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%s: %v", says, err)
			}
			w.Close()
		}
		for _, mode := range []os.FileMode{0o640, 0o620, 0o604, 0o602, 0o666, 0o610} {
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
			refused(path, fmt.Sprintf("mode %04o", mode))
		}
		if err := os.Chmod(path, 0o400); err != nil {
			t.Fatal(err)
		}
		first.alone(t, path).wants(t, mint(t, first.key), "ok")

		link, pipe := path+".link", path+".pipe"
		if err := os.Symlink(path, link); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mkfifo(pipe, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, other := range []string{link, pipe, filepath.Dir(path)} {
			refused(other, "not a regular file")
			is, err := os.Lstat(other)
			if err != nil {
				t.Fatal(err)
			}
			// And none of these is replaced: another program may use it.
			server, conn := serveTrust(t)
			w := &world{Verifier: newVerifier(t, conn, authn.WithAudience("internal"), authn.WithSnapshotFile(other)), key: first.key}
			(<-server.streams).tell(snapshot(trustState(first.key)), heartbeat(time.Now()))
			w.wants(t, mint(t, first.key), "ok")
			if w.Status().SnapshotError == nil {
				t.Error("no error, as if the file had been written")
			}
			w.Close()
			if now, err := os.Lstat(other); err != nil || !os.SameFile(is, now) {
				t.Errorf("%v was replaced (%v)", is.Mode(), err)
			}
		}
	})
}

// In a folder that other users may write to, the file is ignored and not written, and Status
// shows the fault all the time.
func TestAFolderOpenToOtherUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, path := startKept(t)
		first.Close()
		folder := filepath.Dir(path)
		mode := func(mode os.FileMode) {
			t.Helper()
			if err := os.Chmod(folder, mode); err != nil {
				t.Fatal(err)
			}
		}
		for _, bad := range []os.FileMode{0o777, 0o770} {
			mode(bad)
			was, err := os.Stat(path)
			check(t, err)
			server, conn := serveTrust(t)
			w := &world{Verifier: newVerifier(t, conn, authn.WithAudience("internal"), authn.WithSnapshotFile(path)), key: first.key}
			w.wants(t, mint(t, first.key), "BUNDLE_STALE")
			says := func() {
				t.Helper()
				if err := w.Status().SnapshotError; err == nil || !strings.Contains(err.Error(), folder+" has mode") {
					t.Errorf("%v: %v", bad, err)
				}
			}
			says()
			(<-server.streams).tell(snapshot(trustState(first.key)), heartbeat(time.Now()))
			w.wants(t, mint(t, first.key), "ok")
			says()
			w.Close()
			says()
			if is, err := os.Stat(path); err != nil || !os.SameFile(was, is) {
				t.Errorf("%v: the file was written (%v)", bad, err)
			}
		}
		mode(0o777 | os.ModeSticky)
		first.alone(t, path).wants(t, mint(t, first.key), "ok")
	})
}
