//go:build unix

package authn_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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

// A file that other users may read or write is removed, also if it was good, and the next file
// has the mode 0600. If a link, a pipe or a folder is in the place of the file, the verifier
// returns an error.
func TestAFileOpenToOtherUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, path := startKept(t)
		first.Close()
		good, err := os.ReadFile(path)
		check(t, err)
		for _, mode := range []os.FileMode{0o640, 0o620, 0o604, 0o602, 0o666, 0o610} {
			check(t, os.WriteFile(path, good, 0o600))
			check(t, os.Chmod(path, mode))
			first.mends(t, path, fmt.Sprintf("%s had mode %04o", path, mode))
		}
		check(t, os.Chmod(path, 0o400))
		first.alone(t, path).wants(t, mint(t, first.key), "ok")

		link, pipe := path+".link", path+".pipe"
		check(t, os.Symlink(path, link))
		check(t, syscall.Mkfifo(pipe, 0o600))
		for _, other := range []string{link, pipe, filepath.Dir(path)} {
			is, err := os.Lstat(other)
			check(t, err)
			wantUnusable(t, other, "not a regular file")
			// The verifier replaces no link, pipe or folder: another program may use it.
			if now, err := os.Lstat(other); err != nil || !os.SameFile(is, now) {
				t.Errorf("%v was replaced (%v)", is.Mode(), err)
			}
		}
	})
}

// mends starts a verifier without its server, which must not use the file at path, and then
// one with a server, which must write the file again.
func (w *world) mends(t *testing.T, path, says string) {
	t.Helper()
	alone := w.alone(t, path)
	alone.wants(t, mint(t, w.key), "BUNDLE_STALE")
	if err := alone.Status().SnapshotError; err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("%v, want %s", err, says)
	}
	alone.Close()
	again := w.alone(t, path) // the earlier content of the file is gone, although the mode is right now
	again.wants(t, mint(t, w.key), "BUNDLE_STALE")
	again.Close()
	server, conn := serveTrust(t)
	next := &world{Verifier: newVerifier(t, conn, authn.WithAudience("internal"), authn.WithSnapshotFile(path)), key: w.key}
	(<-server.streams).tell(snapshot(trustState(w.key)), heartbeat(time.Now()))
	next.wants(t, mint(t, w.key), "ok")
	next.Close()
	last := w.alone(t, path)
	last.wants(t, mint(t, w.key), "ok")
	last.Close()
}

// wantUnusable makes a verifier with a file that can never be used.
func wantUnusable(t *testing.T, path, says string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	v, err := authn.NewVerifier(ctx, nowhere(t), authn.WithAudience("internal"), authn.WithSnapshotFile(path))
	if err == nil {
		v.Close()
	}
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "WithSnapshotFile: ") || !strings.Contains(err.Error(), says) {
		t.Errorf("NewVerifier returned %v, want INVALID_ARGUMENT and %q", err, says)
	}
}

// A folder of ours that other users may write to is mended, and the file in the folder is
// removed. In a folder of another user that others may write to, no verifier starts.
func TestAFolderOpenToOtherUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, path := startKept(t)
		first.Close()
		folder := filepath.Dir(path)
		for _, bad := range []os.FileMode{0o777, 0o770, 0o770 | os.ModeSetgid} { // the last mode is that of a Kubernetes volume with fsGroup
			check(t, os.Chmod(folder, bad))
			first.mends(t, path, fmt.Sprintf("%s had mode %04o", folder, bad.Perm()))
			if info, err := os.Stat(folder); err != nil || info.Mode() != os.ModeDir|bad&^0o022 {
				t.Errorf("%v became %v, %v", bad, info.Mode(), err)
			}
		}
		check(t, os.Chmod(folder, 0o777|os.ModeSticky))
		first.alone(t, path).wants(t, mint(t, first.key), "ok")

		if os.Geteuid() != 0 {
			t.Skip("only root can make a folder of another user")
		}
		check(t, os.Chmod(folder, 0o770|os.ModeSetgid))
		check(t, os.Chown(folder, 65534, 65534))
		wantUnusable(t, path, "name a file in a folder that only this program may write to, such as "+folder+"/verifier/bundle")
	})
}

// A verifier makes a folder of its own in a folder of the platform.
func TestAFolderIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		volume := t.TempDir()
		check(t, os.Chmod(volume, 0o770|os.ModeSetgid))
		path := filepath.Join(volume, "notes", "bundle")
		w := start(t, authn.WithSnapshotFile(path))
		w.Close()
		if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
		w.alone(t, path).wants(t, mint(t, w.key), "ok")
	})
}
