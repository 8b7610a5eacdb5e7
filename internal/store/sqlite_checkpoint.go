package store

import (
	"sync"

	"modernc.org/sqlite"
)

// checkpointer moves committed pages from SQLite's write-ahead log into the database
// file, so that SQLite can write the log from the beginning again and the log stays
// short. SQLite itself would move the pages in the commit that finds the log long, and
// make every caller wait for two fsyncs and thousands of pages. So the checkpointer's
// own connection moves most pages while the writer works, and the writer moves the last
// few pages between two groups of writes. During many large writes the checkpointer's connection
// falls behind; in this case the writer waits for that connection, and moves the remaining pages
// itself.
type checkpointer struct {
	conn   *sqliteConn
	wake   chan struct{}
	tasks  sync.WaitGroup
	moving sync.Mutex // held while conn moves pages: SQLite lets one connection move pages at a time

	// Only the writer's goroutine uses these fields, all in frames, which hold a page each.
	limit   int // the length of the log above which pages are moved
	written int // what the writer has written into the log since afterCommit last asked for the length of the log
	near    int // the value of written from which afterCommit asks for the length of the log
}

const (
	// longLog is the length of the write-ahead log, in frames of a page, from which on a
	// checkpoint moves its pages into the database file.
	longLog = 1000
	// longestLog is the length of the write-ahead log, in frames, at which the writer moves every
	// page, and all callers wait. The last group of writes makes the log longer than longestLog. A
	// long read makes the log longer, too: while the read lasts, SQLite keeps the log.
	longestLog = 4 * longLog
	// fewFrames is the largest number of frames (pages in the log) that the writer moves itself
	// while callers wait for the next write: the writer moves fewFrames in about a millisecond.
	fewFrames = 64
	// askAfter is the number of frames, written by the writer, after which afterCommit asks for the
	// length of the log. Other processes write into the log too.
	askAfter = longLog / 4
)

func newCheckpointer(c *sqliteConn) *checkpointer {
	p := &checkpointer{conn: c, wake: make(chan struct{}, 1), limit: longLog}
	p.tasks.Go(func() {
		for range p.wake {
			// The error is ignored: the error comes from the disk, and the next commit gets the
			// same error.
			p.moving.Lock()
			_, _, _ = p.conn.checkpoint("PASSIVE")
			p.moving.Unlock()
		}
	})
	return p
}

func (p *checkpointer) close() {
	close(p.wake)
	p.tasks.Wait()
	p.conn.close()
}

// afterCommit checks the length of the log after a group of writes, and starts a checkpoint if the
// log is long. To ask SQLite for the length takes 20 µs, so afterCommit asks only when the log
// can have become long. Only the writer's goroutine calls afterCommit, with the writer's connection.
func (p *checkpointer) afterCommit(c *sqliteConn) {
	if p.written += c.pagesWritten(); p.written < p.near {
		return
	}
	frames, moved, err := c.checkpoint("NOOP")
	if err != nil {
		return
	}
	p.written, p.near = 0, min(askAfter, p.limit-frames)
	if frames < longLog {
		p.limit = longLog // SQLite writes the log from the beginning again
	}
	switch {
	case frames < p.limit:
	case frames-moved <= fewFrames && p.moving.TryLock():
		p.moveRest(c, frames)
	case frames >= p.limit-longLog+longestLog:
		p.moving.Lock()
		p.moveRest(c, frames)
	default:
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// moveRest moves every page that is left in the log, with the writer's connection, and unlocks
// p.moving. A long read keeps SQLite from writing the log from the beginning; the log may then
// grow by longLog before the next try.
func (p *checkpointer) moveRest(c *sqliteConn, frames int) {
	defer p.moving.Unlock()
	_, _, _ = c.checkpoint("PASSIVE")
	p.limit = frames + longLog
}

// pagesWritten returns the number of pages that the connection has written into the log since the
// last call of pagesWritten. After an error, pagesWritten returns askAfter, so that afterCommit asks
// for the length of the log.
func (c *sqliteConn) pagesWritten() (pages int) {
	err := c.c.Raw(func(driver any) (err error) {
		pages, _, err = driver.(sqlite.DBStatus).Status(sqlite.DBStatusCacheWrite, true)
		return err
	})
	if err != nil {
		return askAfter
	}
	return pages
}

// checkpoint runs a checkpoint of the given mode. checkpoint returns how many frames
// the log has, and how many of these frames are in the database file.
func (c *sqliteConn) checkpoint(mode string) (frames, moved int, err error) {
	var busy int
	err = c.query(into(&busy, &frames, &moved), "", `PRAGMA wal_checkpoint(`+mode+`)`)
	return frames, moved, err
}
