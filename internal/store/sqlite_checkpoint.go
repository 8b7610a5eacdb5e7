package store

import "sync"

// checkpointer moves committed pages from the write-ahead log into the database
// file, so that the log starts again and stays short. SQLite itself would do so in
// the commit that finds the log long, and make every caller wait for two fsyncs and
// thousands of pages. So the checkpointer's own connection moves most pages beside
// the writer, and the writer moves the last few between two groups.
type checkpointer struct {
	conn  *sqliteConn
	wake  chan struct{}
	tasks sync.WaitGroup
	limit int // frames; only the writer's goroutine reads and sets limit
}

const (
	// longLog is in frames of 4 KiB. A log as long is moved.
	longLog = 1000
	// fewFrames take the writer about a millisecond to move.
	fewFrames = 64
)

func newCheckpointer(c *sqliteConn) *checkpointer {
	p := &checkpointer{conn: c, wake: make(chan struct{}, 1), limit: longLog}
	p.tasks.Go(func() {
		for range p.wake {
			// An error comes from the disk, and the next commit meets the error too.
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

// afterCommit checks the length of the log after a group of writes. The writer's
// goroutine calls afterCommit with the writer's connection.
func (p *checkpointer) afterCommit(c *sqliteConn) {
	frames, moved, err := c.checkpoint("NOOP")
	if err != nil {
		return
	}
	if frames < longLog {
		p.limit = longLog // the log has started again
	}
	switch {
	case frames < p.limit:
	case frames-moved <= fewFrames:
		_, _, _ = c.checkpoint("PASSIVE")
		// A reader of old pages keeps the log from starting again: let the log grow.
		p.limit = frames + longLog
	default:
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// checkpoint returns how many frames the log has, and how many of them have been
// moved.
func (c *sqliteConn) checkpoint(mode string) (frames, moved int, err error) {
	var busy int
	err = c.query(into(&busy, &frames, &moved), "", `PRAGMA wal_checkpoint(`+mode+`)`)
	return frames, moved, err
}
