package authn

import (
	"context"
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
	// keepEvery is the time between two writings while heartbeats come: a killed process
	// has lost at most so much, well within the default staleness of a minute.
	keepEvery = 15 * time.Second
	// keepPause follows each writing, so that keys which change again and again do not
	// keep a disk busy.
	keepPause = time.Second
	// keepRate bounds the work of a disk with a large file, in bytes a second: a million
	// revocations are written every seven minutes, and when the keys change.
	keepRate = 100_000
	// leftBehind is how old a file that a killed process was writing must be to be
	// removed. Writing takes seconds.
	leftBehind = time.Minute
)

// A keeper writes a bundle into a file: soon after the first bundle and after every
// change of keys, every keepEvery otherwise, and at stop.
//
// One goroutine does the writing. The file is replaced whole, by rename: a reader finds
// the old file or the new one, and never half of one.
type keeper struct {
	path    string
	bundle  *bundle
	cancel  context.CancelFunc
	done    chan struct{}         // closed when the goroutine has ended
	problem atomic.Pointer[error] // of reading at the start, or of the last writing

	// Of the goroutine alone.
	written version // in the file
	failing bool    // the last writing failed
}

// loadBundle makes a bundle from the snapshot file, where the configuration names one and
// the file is good, and an empty bundle otherwise.
//
// Errors: why the file cannot be used. The bundle is made all the same; a missing file is
// no error.
func loadBundle(c *config) (*bundle, error) {
	b := newBundle(c.log, c.leeway, c.stale)
	if c.snapshot == nil {
		return b, nil
	}
	durable.RemoveDrafts(*c.snapshot, leftBehind)
	err := b.load(*c.snapshot)
	if err == nil {
		c.log.Info("going on from the snapshot of the trust bundle, until the server is heard", "file", *c.snapshot, "age", b.fresh.age())
		return b, nil
	}
	b = newBundle(c.log, c.leeway, c.stale)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	c.log.Warn("the snapshot of the trust bundle is ignored", "error", err)
	return b, err
}

// load reads the file. A symbolic link is not followed, and no other user may be able to
// write the file or to replace it: the content of the file decides about every caller.
func (b *bundle) load(path string) error {
	if err := checkPlace(path); err != nil {
		return err
	}
	named, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !named.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file", path)
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

// checkPlace returns an error if other users may replace files in the folder of path.
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

// startKeeper starts to keep b in the file at path. b must be as it was loaded: nothing
// may have been applied since. problem is the error of loading, nil if there was none.
func startKeeper(path string, b *bundle, problem error) *keeper {
	ctx, cancel := context.WithCancel(context.Background())
	k := &keeper{path: path, bundle: b, cancel: cancel, done: make(chan struct{})}
	k.problem.Store(&problem)
	k.written, _ = b.version()
	go k.run(ctx)
	return k
}

// stop writes a last time if there is anything new, ends the goroutine and waits for its
// end. The bundle must not change any more.
func (k *keeper) stop() {
	k.cancel()
	<-k.done
}

func (k *keeper) run(ctx context.Context) {
	defer close(k.done)
	defer k.writeNews()
	pause := keepEvery
	for {
		select {
		case <-k.bundle.keysChanged:
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pause = max(keepEvery, time.Duration(k.writeNews()/keepRate)*time.Second)
		if !sleep(ctx, keepPause) {
			return
		}
	}
}

// sleep waits for d, and returns false at once when ctx ends.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// writeNews writes the file if the bundle has changed since the last writing, and returns
// the number of bytes written. A failure is logged when failures begin and when they end.
func (k *keeper) writeNews() int64 {
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
		k.bundle.log.Warn("the snapshot of the trust bundle cannot be written; trying again", "error", err)
	case err == nil && k.failing:
		k.bundle.log.Info("the snapshot of the trust bundle is written again", "file", k.path)
	}
	k.failing = err != nil
	return size
}

// write replaces the file, and returns how much it wrote, also in vain.
func (k *keeper) write() (size int64, err error) {
	if err := checkPlace(k.path); err != nil {
		return 0, err // what is written there would not be read
	}
	if info, err := os.Lstat(k.path); err == nil && !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is no regular file", k.path) // such as /dev/null, which others need
	}
	err = durable.Replace(k.path, func(f *os.File) (err error) {
		size, err = k.bundle.writeSnapshot(f)
		return err
	})
	return size, err
}
