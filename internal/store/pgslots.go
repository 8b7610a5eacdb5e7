package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// PostgreSQL may give a replica fewer connections than the pool could hold: other replicas or
// other programs have taken the connections, or the replica's role has a limit. Then the
// callers share the connections that the replica has, and wait for their turn.

const (
	// growAfter is the time after which the pool tries again to make a connection that
	// PostgreSQL has refused. A random time of up to growAfter/2 is added. Each try costs
	// PostgreSQL a process, and a line in its log.
	growAfter = 15 * time.Second
	// reportAfter is the time between a refused connection and the log line with the number of
	// open connections. After reportAfter, PostgreSQL has made or refused the other connections
	// that were being made.
	reportAfter = time.Second
	// closingTime is the time for which PostgreSQL may still count a connection that was
	// closed.
	closingTime = 50 * time.Millisecond
)

// slots bounds the callers that use or make a connection at a time. A caller takes a slot
// before the caller asks the pool for a connection. If the database refuses the connection, and
// the replica has another one, the caller's slot is withheld for growAfter, and the caller
// waits for another slot. So the number of slots that are not withheld becomes the number of
// connections. At least one slot is not withheld.
//
// A slots is safe for concurrent use.
type slots struct {
	free   chan struct{}
	open   func() (idle, all int) // returns the number of idle connections, and of all connections, in the pool
	logger *slog.Logger

	mu        sync.Mutex
	withheld  int
	reported  int   // the number of connections in the latest log line; zero: all connections were open after the line
	reporting bool  // a timer is running that calls report
	cause     error // the error of the latest refused connection
}

func newSlots(size int, open func() (idle, all int), logger *slog.Logger) *slots {
	s := &slots{free: make(chan struct{}, size), open: open, logger: logger}
	for range size {
		s.give()
	}
	return s
}

// take takes a slot. If no slot is free, take waits until ctx ends, or returns errDown if wait
// is false: every slot belongs to a caller that waits for the database.
func (s *slots) take(ctx context.Context, wait bool) error {
	select {
	case <-s.free:
		return nil
	default:
	}
	if !wait {
		return errDown
	}
	select {
	case <-s.free:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *slots) give() { s.free <- struct{}{} }

// refused gives back or withholds the slot of a caller that got the error err instead of a
// connection. refused returns shared == true if the replica has another connection, or if
// another caller is making one: then the caller waits for its turn.
func (s *slots) refused(err error) (shared bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	idle, _ := s.open()
	const own = 1
	shared = cap(s.free)-len(s.free)-s.withheld-own+idle > 0
	if !shared || s.withheld == cap(s.free)-1 {
		s.give()
		return shared
	}
	s.withheld++
	time.AfterFunc(growAfter+rand.N(growAfter/2), func() { s.restore(1) })
	if state := sqlState(err); state != "" && state != startingUp { // without an SQL state, no server has answered, so no server refuses
		s.reportLaterLocked(err)
	}
	return true
}

// restore gives back n of the withheld slots, or all of them if fewer than n are withheld.
func (s *slots) restore(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; n > 0 && s.withheld > 0; n-- {
		s.withheld--
		s.give()
	}
}

func (s *slots) restoreAll() { s.restore(cap(s.free)) }

func (s *slots) reportLaterLocked(cause error) {
	s.cause = cause
	if !s.reporting {
		s.reporting = true
		time.AfterFunc(reportAfter, s.report)
	}
}

// report logs how many connections PostgreSQL lets this replica open, if the number is lower
// than in the latest log line. After all configured connections were open, report logs the next
// shortage again, whatever the number.
func (s *slots) report() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reporting = false
	_, n := s.open()
	switch {
	case n == cap(s.free):
		s.reported = 0
	case s.withheld == 0 || n == 0: // no line: the database was away a moment ago, or is away now
	case s.reported == 0 || n < s.reported:
		s.reported = n
		s.logger.Warn("PostgreSQL gives this replica fewer connections than configured: calls wait for their turn",
			"connections", n, "configured", cap(s.free), "error", s.cause)
	}
}

// acquire lends a connection of the pool until [pgDB.release]. If the database refuses a
// further connection, acquire waits for one of the connections that the replica has. Errors:
// errDown; errNotSent, and the breaker trips if the replica has no connection.
func (p *pgDB) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	for failed := 0; ; {
		trying, err := p.breaker.allow()
		if err != nil {
			return nil, err
		}
		if err := p.slots.take(ctx, !trying); err != nil {
			if trying {
				return nil, p.breaker.err()
			}
			return nil, unavailable(fmt.Errorf("%w: every connection is in use: %w", errNotSent, err))
		}
		if !trying && p.breaker.tripped() { // the breaker has tripped while take waited
			p.slots.give()
			continue
		}
		began := time.Now()
		conn, err := p.pool.Acquire(ctx)
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			p.slots.give()
			p.breaker.unanswered(began, err)
			return nil, unavailable(errors.Join(errNotSent, err))
		}
		if !p.slots.refused(err) {
			if failed++; failed > 3 || sqlState(err) != tooManyConnections {
				p.breaker.trip(err)
				return nil, unavailable(errors.Join(errNotSent, err))
			}
			// A caller needs a connection more than the listener for hints does. PostgreSQL may
			// also still count connections that were closed.
			p.listener.yield()
		}
		pause(ctx, rand.N(closingTime))
	}
}

func (p *pgDB) release(conn *pgxpool.Conn) {
	conn.Release()
	p.slots.give()
}
