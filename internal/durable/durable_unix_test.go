//go:build unix

package durable_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/watchword-auth/watchword/internal/durable"
)

// A file has mode 0600 under every umask. The umask belongs to the process, so the test
// does not run beside others.
func TestMode(t *testing.T) {
	folder := t.TempDir() // the folder is made before the umask, which could make the folder unusable
	for _, mask := range []int{0, 0o022, 0o077, 0o277, 0o777} {
		old := syscall.Umask(mask)
		path := filepath.Join(folder, "file")
		err := durable.Replace(path, func(f *os.File) error {
			if info, err := f.Stat(); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("umask %03o: the draft has mode %v, %v", mask, info.Mode(), err)
			}
			return nil
		})
		syscall.Umask(old)
		if err != nil {
			t.Fatalf("umask %03o: %v", mask, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
			t.Errorf("umask %03o: the file has mode %v, %v", mask, info.Mode(), err)
		}
	}
}

// A new file beside another file is for the owner and the group at most. A file that is
// replaced keeps its mode.
func TestRightsOfOthers(t *testing.T) {
	folder := t.TempDir()
	for mode, adopted := range map[os.FileMode]os.FileMode{0o600: 0o600, 0o660: 0o660, 0o644: 0o640} {
		path := filepath.Join(folder, mode.String())
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		beside := func(file *os.File) error { return durable.Adopt(file, path) }
		if err := errors.Join(durable.Create(path+".new", beside), durable.Rewrite(path, write("text"))); err != nil {
			t.Fatal(err)
		}
		for file, want := range map[string]os.FileMode{path + ".new": adopted, path: mode} {
			if info, err := os.Stat(file); err != nil || info.Mode() != want {
				t.Errorf("%v, %v, want %v", info.Mode(), err, want)
			}
		}
	}
}

// Every user may replace a link in a folder that every user may write to. A folder in the place
// of a file is no reason to change the mode of the folder.
func TestCheckWritersOfLinksAndFolders(t *testing.T) {
	open, safe := filepath.Join(t.TempDir(), "open"), filepath.Join(t.TempDir(), "safe")
	link, file := filepath.Join(open, "link"), filepath.Join(safe, "file")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777), os.Mkdir(safe, 0o700),
		os.WriteFile(file, nil, 0o600), os.Symlink(file, link)); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		link: "so every user may replace link: run chmod o-w " + open,
		open: "is a folder: name a file",
	} {
		if err := durable.CheckWriters(path); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := errors.Join(os.Symlink(file, filepath.Join(safe, "link")), durable.CheckWriters(filepath.Join(safe, "link"))); err != nil {
		t.Error(err)
	}
}
