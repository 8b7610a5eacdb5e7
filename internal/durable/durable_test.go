package durable_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/watchword-auth/watchword/internal/durable"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// write fills a file with a text.
func write(text string) func(*os.File) error {
	return func(f *os.File) error {
		_, err := f.WriteString(text)
		return err
	}
}

// unexpected fails the test if Create asks for content that will not be published.
func unexpected(t *testing.T) func(*os.File) error {
	return func(*os.File) error {
		t.Error("fill was called")
		return nil
	}
}

// wantOnly checks that a folder holds one file with a text, and no draft.
func wantOnly(t *testing.T, path, text string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != text {
		t.Errorf("the file holds %q, %v, want %q", got, err, text)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("the folder holds %v, %v", entries, err)
	}
}

func TestWriting(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(string, func(*os.File) error) error{"Create": durable.Create, "Replace": durable.Replace} {
		path := filepath.Join(t.TempDir(), "file")
		if err := do(path, write("content")); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		wantOnly(t, path, "content")
		if err := do(filepath.Join(t.TempDir(), "no", "such", "folder"), write("content")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s in a folder that does not exist: %v", name, err)
		}
	}
}

func TestReplaceReplaces(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	for _, text := range []string{"a long text that was there first", "short", ""} {
		if err := durable.Replace(path, write(text)); err != nil {
			t.Fatal(err)
		}
		wantOnly(t, path, text)
	}
}

// The error of a missing folder names the file, and not the draft with its random name.
func TestMissingFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing", "file")
	var failed *fs.PathError
	if err := durable.Create(path, nil); !errors.As(err, &failed) || failed.Path != path || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want an error that names %s", err, path)
	}
}

func TestCreateRefusesAnExistingFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("the old file"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := durable.Create(path, unexpected(t))
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file that is there: %v", err)
	}
	wantOnly(t, path, "the old file")
}

// If another process makes the file while Create writes its draft, Create returns an error, and
// the other file stays as it is.
func TestCreateRefusesAFileThatAppears(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	err := durable.Create(path, func(f *os.File) error {
		return errors.Join(write("the new file")(f), os.WriteFile(path, []byte("the old file"), 0o600))
	})
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file that has appeared: %v", err)
	}
	wantOnly(t, path, "the old file")
}

// A link that leads nowhere counts as a file: Create does not write through the link.
func TestCreateRefusesALinkThatLeadsNowhere(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.Symlink("nowhere", path); err != nil {
		t.Skip(err)
	}
	if err := durable.Create(path, unexpected(t)); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
}

// Whichever step of a write fails, the old file stays, and the draft is removed.
func TestFailureKeepsTheOldFile(t *testing.T) {
	t.Parallel()
	failed := errors.New("fill failed")
	for name, fill := range map[string]func(*os.File) error{
		"fill fails at once":    func(*os.File) error { return failed },
		"fill fails half-way":   func(f *os.File) error { return errors.Join(write("half")(f), failed) },
		"fill closes the draft": func(f *os.File) error { return f.Close() }, // closes the draft, so that syncing fails
	} {
		path := filepath.Join(t.TempDir(), "file")
		if err := durable.Replace(path, write("the old file")); err != nil {
			t.Fatal(err)
		}
		if err := durable.Replace(path, fill); err == nil {
			t.Errorf("%s: no error", name)
		}
		wantOnly(t, path, "the old file")
	}
	// The name belongs to a folder, so the rename fails.
	path := filepath.Join(t.TempDir(), "file")
	if err := os.MkdirAll(filepath.Join(path, "something"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := durable.Replace(path, write("content")); err == nil {
		t.Error("a folder was replaced")
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestRemoveDrafts(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	long := time.Now().Add(-time.Hour)
	for name, age := range map[string]time.Time{
		".file.1.tmp": long, ".file.22.tmp": long, // drafts that killed processes left
		".file.3.tmp": time.Now(), ".other.1.tmp": long, "file": long, ".file.1": long, "file.1.tmp": long,
	} {
		path := filepath.Join(folder, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chtimes(path, age, age)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(folder, ".file.4.tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	durable.RemoveDrafts(filepath.Join(folder, "file"), time.Minute)
	durable.RemoveDrafts(filepath.Join(folder, "no", "such", "folder"), time.Minute)
	entries, err := os.ReadDir(folder)
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	want := []string{".file.1", ".file.3.tmp", ".file.4.tmp", ".other.1.tmp", "file", "file.1.tmp"}
	if err != nil || !slices.Equal(left, want) {
		t.Fatalf("left: %q, %v, want %q", left, err, want)
	}
}
