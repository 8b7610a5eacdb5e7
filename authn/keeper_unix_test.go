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

// owned is a file or folder as if it were another user's.
type owned struct {
	fs.FileInfo
	by uint32
}

func (f owned) Sys() any {
	stat := *f.FileInfo.Sys().(*syscall.Stat_t)
	stat.Uid = f.by
	return &stat
}

// other is neither ourselves nor root.
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
		t.Errorf("our own: %v", err)
	}
	if checkOurs(owned{info, other()}) == nil {
		t.Error("another user's was taken")
	}
}

// Who may write to the folder may put a file of their own making in place of ours.
func TestTheFolderIsNobodyElses(t *testing.T) {
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
		{0o777 | os.ModeSticky, other(), false}, // its owner may do all the same
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

// A pipe that somebody has put in the file's place would make who opens it wait for
// a writer, for good; a link would lead elsewhere.
func TestWhatWasPutInTheFilesPlace(t *testing.T) {
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
		t.Error("it waits for a writer")
		if f, err := os.OpenFile(pipe, os.O_WRONLY, 0); err == nil { // here is one
			f.Close()
		}
	}
	link := pipe + ".link"
	if err := os.Symlink(os.Args[0], link); err != nil {
		t.Fatal(err)
	}
	if f, err := openOurs(link); err == nil {
		f.Close()
		t.Error("a link was followed")
	}
}
