package store

import "sync"

// A checkpointer moves what has been committed from the write-ahead log into the
// database file, so that the log starts again and stays small. SQLite would do it
// in whichever commit finds the log long, and with it let everybody wait for two
// fsyncs and thousands of pages. So a connection of its own does the bulk of it
// beside the writer, and the writer moves the few pages that were added meanwhile
// between two groups.
type checkpointer struct {
	conn  *conn
	wake  chan struct{}
	tasks sync.WaitGroup
	limit int // frames, the writer's: what is done when the log is as long
}

const (
	// longLog is in frames of 4 KiB.
	longLog = 1000
	// fewFrames are moved in about a millisecond.
	fewFrames = 64
)

func newCheckpointer(c *conn) *checkpointer {
	p := &checkpointer{conn: c, wake: make(chan struct{}, 1), limit: longLog}
	p.tasks.Go(func() {
		for range p.wake {
			// Its errors are the disk's, and the commits will meet them too.
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

// after looks at the log behind a group of writes; c is the writer's connection.
func (p *checkpointer) after(c *conn) {
	frames, moved, err := c.checkpoint("NOOP")
	if err != nil {
		return
	}
	if frames < longLog {
		p.limit = longLog // it has started again
	}
	switch {
	case frames < p.limit:
	case frames-moved <= fewFrames:
		_, _, _ = c.checkpoint("PASSIVE")
		// Readers may keep it from starting again: it grows then for a while.
		p.limit = frames + longLog
	default:
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// checkpoint says how many frames the log has and how many of them have been moved.
func (c *conn) checkpoint(mode string) (frames, moved int, err error) {
	stmt, err := c.prepare(`PRAGMA wal_checkpoint(` + mode + `)`)
	if err != nil {
		return 0, 0, err
	}
	var busy int
	err = stmt.QueryRow().Scan(&busy, &frames, &moved)
	return frames, moved, err
}
