package store

import "sync"

// checkpointer moves committed pages from SQLite's write-ahead log into the database
// file, so that SQLite can write the log from the beginning again and the log stays
// short. SQLite itself would move the pages in the commit that finds the log long, and
// make every caller wait for two fsyncs and thousands of pages. So the checkpointer's
// own connection moves most pages while the writer works, and the writer moves the last
// few pages between two groups of writes.
type checkpointer struct {
	conn  *sqliteConn
	wake  chan struct{}
	tasks sync.WaitGroup
	limit int // the length of the log, in frames, above which pages are moved; only the writer's goroutine uses limit
}

const (
	// longLog is the length of the write-ahead log, in frames of 4 KiB, from which on a
	// checkpoint moves its pages into the database file.
	longLog = 1000
	// fewFrames is the number of frames that the writer moves itself, in about a
	// millisecond.
	fewFrames = 64
)

func newCheckpointer(c *sqliteConn) *checkpointer {
	p := &checkpointer{conn: c, wake: make(chan struct{}, 1), limit: longLog}
	p.tasks.Go(func() {
		for range p.wake {
			// The error is ignored: the error comes from the disk, and the next commit gets the
			// same error.
			_, _, _ = p.conn.checkpoint("PASSIVE")
		}
	})
	return p
}

func (p *checkpointer) close() {
	close(p.wake)
	p.tasks.Wait()
	p.conn.close()
}

// afterCommit checks the length of the log after a group of writes, and starts a
// checkpoint if the log is long. Only the writer's goroutine calls afterCommit, with
// the writer's connection.
func (p *checkpointer) afterCommit(c *sqliteConn) {
	frames, moved, err := c.checkpoint("NOOP")
	if err != nil {
		return
	}
	if frames < longLog {
		p.limit = longLog // SQLite writes the log from the beginning again
	}
	switch {
	case frames < p.limit:
	case frames-moved <= fewFrames:
		_, _, _ = c.checkpoint("PASSIVE")
		// A long read keeps SQLite from writing the log from the beginning. Then the
		// log may grow by longLog before the next try.
		p.limit = frames + longLog
	default:
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// checkpoint runs a checkpoint of the given mode. checkpoint returns how many frames
// the log has, and how many of these frames are in the database file.
func (c *sqliteConn) checkpoint(mode string) (frames, moved int, err error) {
	var busy int
	err = c.query(into(&busy, &frames, &moved), "", `PRAGMA wal_checkpoint(`+mode+`)`)
	return frames, moved, err
}
