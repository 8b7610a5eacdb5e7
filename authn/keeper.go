package authn

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/watchword-auth/watchword/internal/durable"
)

const (
	// keepEvery is the time between two writes of the snapshot file while heartbeats come. So
	// the file of a killed process is at most keepEvery old, much less than the default maximal
	// staleness of a minute.
	keepEvery = 15 * time.Second
	// keepPause is the pause after each write of the snapshot file, so that keys that change
	// again and again do not keep a disk busy.
	keepPause = time.Second
	// keepRate limits how fast a large file is written on average, in bytes a second: a file
	// with a million revocations is written every seven minutes, and when the keys change.
	keepRate = 100_000
	// leftBehind is the age from which the half-written file of a killed process is deleted.
	// Writing a file takes seconds.
	leftBehind = time.Minute
)

// A keeper writes the trust bundle into the snapshot file: soon after the first complete
// bundle and after every change of keys, every keepEvery otherwise, and when the feed has
// ended.
//
// One goroutine writes the file. The file is replaced as a whole, by rename: a reader finds the
// old file or the new file, and never half of a file.
type keeper struct {
	path    string
	bundle  *bundle
	done    chan struct{}         // closed when run has returned
	problem atomic.Pointer[error] // the error of loading the file, or of the latest write

	// Only the goroutine that writes uses the fields below.
	written version // the version of the bundle that the file has
	failing bool    // true if the latest write failed
}

// openBundle returns a trust bundle and the keeper of its snapshot file; the keeper is nil
// if c names no file. The bundle comes from the file if the file is good, and is empty
// otherwise. The caller must start the keeper by run.
//
// Errors: an error about the folder or the file, if the file could never be used at its path.
func openBundle(c *config) (*bundle, *keeper, error) {
	b := newBundle(c.log, c.leeway, c.stale)
	if c.snapshot == nil {
		return b, nil, nil
	}
	_ = os.Mkdir(filepath.Dir(*c.snapshot), 0o700) // fails if the folder exists; if the folder is missing, load or write returns the reason
	err := mend(*c.snapshot)
	if err == nil {
		err = checkForever(*c.snapshot)
	}
	if err != nil && !errors.Is(err, errMended) {
		return nil, nil, fmt.Errorf("WithSnapshotFile: %w", err)
	}
	durable.RemoveDrafts(*c.snapshot, leftBehind)
	if err == nil {
		err = b.load(*c.snapshot)
	}
	switch {
	case err == nil:
		c.log.Info("using the snapshot of the trust bundle until the server answers", "file", *c.snapshot, "age", b.fresh.age())
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	default:
		c.log.Warn("ignoring the snapshot of the trust bundle", "error", err)
		b = newBundle(c.log, c.leeway, c.stale) // a new bundle, since a failed load leaves a part of the file in the bundle
	}
	k := &keeper{path: *c.snapshot, bundle: b, done: make(chan struct{})}
	k.problem.Store(&err)
	k.written, _ = b.version()
	return b, k, nil
}

// errMended means that other users were able to write to the snapshot file or to its folder
// until now. Other users may have written the content, so the content is not used.
var errMended = errors.New("other users were able to write, and the content is not used; the mode is mended")

// mend removes the rights that other users have to a snapshot file and to the folder of the
// file, if the user of this process owns file and folder. Kubernetes gives a group rights to
// everything in a volume (fsGroup). If another user had the right to write the file, mend
// deletes the file and returns errMended.
//
// Errors: errMended; errors of the file system.
func mend(path string) error {
	folder := filepath.Dir(path)
	var found error
	if info, err := os.Stat(folder); err == nil && widened(info, checkFolder) {
		if err := os.Chmod(folder, info.Mode()&^0o022); err != nil {
			return err
		}
		found = fmt.Errorf("%s had mode %04o: %w", folder, info.Mode().Perm(), errMended)
	}
	info, err := os.Lstat(path)
	if err == nil && info.Mode().IsRegular() && (found != nil || widened(info, checkOurs)) {
		if err := os.Remove(path); err != nil {
			return err
		}
		found = cmp.Or(found, fmt.Errorf("%s had mode %04o: %w", path, info.Mode().Perm(), errMended))
	}
	return found
}

// checkForever returns an error if a snapshot file could never be read or written at path. A
// missing folder is no error, since the folder may be created later.
func checkForever(path string) error {
	if err := checkPlace(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w; name a file in a folder that only this program may write to, such as %s",
			err, filepath.Join(filepath.Dir(path), "verifier", filepath.Base(path)))
	}
	info, err := os.Lstat(path)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file", path) // such as /dev/null, used by other programs
	case errors.Is(err, fs.ErrNotExist):
		return durable.CheckUsable(filepath.Dir(path))
	}
	return nil // no error: a file in a read-only folder can still be read
}

// load fills an empty bundle from the file at path. load follows no symbolic link, and returns
// an error if another user can write or replace the file: the keys in the file decide which
// tokens are accepted. After an error the caller must not use the bundle.
//
// Errors: fs.ErrNotExist without a file or its folder, and then the bundle is still empty;
// otherwise the fault of the file.
func (b *bundle) load(path string) error {
	if err := checkPlace(path); err != nil {
		return err
	}
	named, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !named.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	f, err := openOurs(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(named, info) {
		return fmt.Errorf("%s was replaced while it was opened", path)
	}
	if err := checkOurs(info); err != nil {
		return fmt.Errorf("%s %w", path, err)
	}
	if err := b.readSnapshot(f, info.Size()); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// checkPlace returns an error if other users are able to replace files in the folder of path.
func checkPlace(path string) error {
	folder := filepath.Dir(path)
	info, err := os.Stat(folder)
	if err != nil {
		return err
	}
	if err := checkFolder(info); err != nil {
		return fmt.Errorf("%s %w", folder, err)
	}
	return nil
}

// run writes the file again and again until the feed has ended, and then a last time: after the
// end of the feed the bundle stays as it is.
func (k *keeper) run(feedDone <-chan struct{}) {
	defer close(k.done)
	defer k.writeNews()
	pause := keepEvery
	for {
		select {
		case <-k.bundle.keysChanged:
		case <-time.After(pause):
		case <-feedDone:
			return
		}
		pause = max(keepEvery, time.Duration(k.writeNews()/keepRate)*time.Second)
		if !sleep(feedDone, keepPause) {
			return
		}
	}
}

// sleep waits for d, and returns false at once when done is closed.
func sleep(done <-chan struct{}, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-done:
		return false
	}
}

// writeNews writes the file if the bundle has changed since the latest write, and returns the
// number of bytes written. The log gets a line when writes begin to fail, and a line when
// writes succeed again.
func (k *keeper) writeNews() int {
	now, complete := k.bundle.version()
	if !complete || now == k.written {
		return 0
	}
	size, err := k.write()
	if err == nil {
		k.written = now
	}
	k.problem.Store(&err)
	switch {
	case err != nil && !k.failing:
		k.bundle.log.Warn("cannot write the snapshot of the trust bundle; trying again", "error", err)
	case err == nil && k.failing:
		k.bundle.log.Info("writing the snapshot of the trust bundle works again", "file", k.path)
	}
	k.failing = err != nil
	return size
}

// write replaces the snapshot file. write returns the number of bytes written, even with an
// error.
func (k *keeper) write() (size int, err error) {
	if err := mend(k.path); err != nil && !errors.Is(err, errMended) {
		return 0, err
	}
	if err := checkPlace(k.path); err != nil {
		return 0, err // load would ignore the file that write makes
	}
	if info, err := os.Lstat(k.path); err == nil && !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file", k.path) // such as /dev/null, used by other programs
	}
	err = durable.Replace(k.path, func(f *os.File) (err error) {
		size, err = k.bundle.writeSnapshot(f)
		return err
	})
	return size, err
}
