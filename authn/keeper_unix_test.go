//go:build unix

package authn

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// owned is a file or folder that seems to belong to the user by.
type owned struct {
	fs.FileInfo
	by uint32
}

func (f owned) Sys() any {
	stat := *f.FileInfo.Sys().(*syscall.Stat_t)
	stat.Uid = f.by
	return &stat
}

// other returns a user id that is neither this process's nor root's.
func other() uint32 { return uint32(os.Geteuid()) + 1 }

func TestAnotherUsersFileIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bundle")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkOurs(info); err != nil {
		t.Errorf("the own file: %v", err)
	}
	if checkOurs(owned{info, other()}) == nil {
		t.Error("another user's file was accepted")
	}
}

// A user with the right to write to the folder may replace the file.
func TestFoldersByModeAndOwner(t *testing.T) {
	folder := t.TempDir()
	for _, c := range []struct {
		mode os.FileMode
		by   uint32
		good bool
	}{
		{0o700, uint32(os.Geteuid()), true},
		{0o755, uint32(os.Geteuid()), true},
		{0o755, 0, true},
		{0o755, other(), false},
		{0o775, 0, false},
		{0o757, 0, false},
		{0o775, uint32(os.Geteuid()), false},
		{0o777, uint32(os.Geteuid()), false},
		{0o777 | os.ModeSetgid, 0, false},
		{0o777 | os.ModeSticky, 0, true},
		{0o775 | os.ModeSticky, uint32(os.Geteuid()), true},
		{0o777 | os.ModeSticky, other(), false}, // the folder's owner may replace files
	} {
		if err := os.Chmod(folder, c.mode); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(folder)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkFolder(owned{info, c.by}); (err == nil) != c.good {
			t.Errorf("%v of user %d: %v", c.mode, c.by, err)
		}
	}
}

// A pipe or a link may take the file's place just before the file is opened. Opening the pipe
// must not wait for a writer, and the link must not be followed.
func TestAPipeOrLinkInTheFilesPlace(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	opened := make(chan error, 1)
	go func() {
		f, err := openOurs(pipe)
		f.Close()
		opened <- err
	}()
	select {
	case err := <-opened:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("opening the pipe waits for a writer")
		if f, err := os.OpenFile(pipe, os.O_WRONLY, 0); err == nil { // ends the wait
			f.Close()
		}
	}
	link := pipe + ".link"
	if err := os.Symlink(os.Args[0], link); err != nil {
		t.Fatal(err)
	}
	if f, err := openOurs(link); err == nil {
		f.Close()
		t.Error("the link was followed")
	}
}
