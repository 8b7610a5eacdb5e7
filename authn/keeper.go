package authn

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/watchword-auth/watchword/internal/durable"
)

const (
	// keepEvery is how often the file is written while heartbeats come: what a
	// process that is killed has lost is at most as old, within a minute's default
	// staleness.
	keepEvery = 15 * time.Second
	// keepPause comes after each time, so that keys that change and change again
	// don't keep a disk busy.
	keepPause = time.Second
	// keepRate bounds what a large file costs a disk, in bytes a second: a million
	// revocations are written every seven minutes, and when keys change.
	keepRate = 100_000
	// leftBehind is how old a file that a killed process was writing must be to be
	// removed. Writing takes seconds.
	leftBehind = time.Minute
)

// A keeper writes a bundle into a file, in a goroutine of its own: soon after the
// first bundle and after every change of keys, now and then otherwise, and when it
// is stopped.
//
// The file is replaced whole, by rename. Nobody ever finds half of it, and what
// reads it while it is replaced reads the one before.
type keeper struct {
	path   string
	bundle *bundle
	cancel context.CancelFunc
	done   chan struct{} // closed when the goroutine has ended

	kept    mark // what the file has; the goroutine's own
	failing bool // the last time; the goroutine's own

	mu  sync.Mutex
	err error // why it could not be read, or not be written the last time
}

// loadBundle makes a bundle of what the file at path has, if the file is there and
// is good. Otherwise it makes an empty one, and the error says what is wrong.
func loadBundle(c *config) (*bundle, error) {
	b := newBundle(c.log, c.leeway, c.stale)
	if c.snapshot == nil {
		return b, nil
	}
	durable.RemoveDrafts(*c.snapshot, leftBehind)
	err := b.load(*c.snapshot)
	switch {
	case err == nil:
		c.log.Info("going on from the snapshot of the trust bundle, until the server is heard", "file", *c.snapshot, "age", b.age())
		return b, nil
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	default:
		c.log.Warn("the snapshot of the trust bundle is ignored", "error", err)
	}
	b.close() // what it may have begun to know counts for nothing
	return newBundle(c.log, c.leeway, c.stale), err
}

// load reads the file. It does not follow a link, and wants a file that nobody but
// ourselves could have written, or put there: who writes it says whom to trust.
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

// checkPlace looks at the folder of a file.
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

// startKeeper begins to keep a bundle. It comes before the feed, so that the file
// has what the bundle has. err is why it could not be read.
func startKeeper(path string, b *bundle, err error) *keeper {
	ctx, cancel := context.WithCancel(context.Background())
	k := &keeper{path: path, bundle: b, cancel: cancel, done: make(chan struct{}), err: err}
	k.kept, _ = b.mark()
	go k.run(ctx)
	return k
}

// stop writes what is new, ends the goroutine and waits for it. The bundle must
// not change any more.
func (k *keeper) stop() {
	k.cancel()
	<-k.done
}

func (k *keeper) run(ctx context.Context) {
	defer close(k.done)
	defer k.keep()
	pause := keepEvery
	for {
		next := time.After(pause)
		select {
		case <-k.bundle.keysChanged:
		case <-next:
		case <-ctx.Done():
			return
		}
		pause = max(keepEvery, time.Duration(k.keep()/keepRate)*time.Second)
		select {
		case <-time.After(keepPause):
		case <-ctx.Done():
			return
		}
	}
}

// keep writes the file if there is anything new, and returns how much it wrote. A
// failure is logged when it begins and when it ends.
func (k *keeper) keep() int64 {
	now, ok := k.bundle.mark()
	if !ok || now == k.kept {
		return 0
	}
	size, err := k.write()
	if err == nil {
		k.kept = now
	}
	k.mu.Lock()
	k.err = err
	k.mu.Unlock()
	switch failed := k.failing; {
	case err != nil && !failed:
		k.bundle.log.Warn("the snapshot of the trust bundle cannot be written; trying again", "error", err)
	case err == nil && failed:
		k.bundle.log.Info("the snapshot of the trust bundle is written again", "file", k.path)
	}
	k.failing = err != nil
	return size
}

// lastError says what is wrong with the file.
func (k *keeper) lastError() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err
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
