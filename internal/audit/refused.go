package audit

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/store"
)

const (
	// windowLength is how long refused calls of one kind are counted in one record.
	windowLength = time.Hour
	// flushEvery is the time between two writes of the counts. If the server is killed,
	// the counts of the last second are lost.
	flushEvery = time.Second
)

// lineRate bounds the rate of log lines about new kinds of refused calls, after the first
// maxPlaces lines: the number of kinds that come and go within an hour has no bound.
var lineRate = rate.Every(windowLength / maxPlaces)

// Refused counts a refused call. [Log.Run] writes the counts within about a second, so
// that refused calls need no transaction each, however many calls there are.
func (l *Log) Refused(ctx context.Context, e Event) {
	source := caller.SourceOf(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current.count(e, source)
}

// Repeated counts a repeat of a refresh token, as [Log.Refused] counts a refused call.
// The event's type is always [RefreshRepeated].
func (l *Log) Repeated(ctx context.Context, e Event) {
	e.Type = RefreshRepeated
	l.recorded[RefreshRepeated].Add(1)
	l.Refused(ctx, e)
}

// Delegated counts one delegated token: a service has got the token to call another service on a
// caller's behalf. Delegated counts as [Log.Refused] counts a refused call. The record names the
// service and the audience, and no caller: one record of an hour stands for all callers.
func (l *Log) Delegated(service caller.Caller, audience string) {
	l.recorded[TokenDelegated].Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current.countDelegation(Event{Type: TokenDelegated, ActorID: service.ID, ActorName: service.Name, Detail: "audience: " + audience})
}

// Run writes the counts of refused calls to the database until ctx ends, and once more
// after the end. Run also logs what commands on the database put on record.
func (l *Log) Run(ctx context.Context) {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	atDatabase := commands{log: l}
	atDatabase.look(ctx)
	for warned := false; ; {
		var err error
		select {
		case <-tick.C:
			err = l.Flush(ctx)
			atDatabase.look(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushEvery)
			defer cancel()
			if err := l.Flush(last); err != nil {
				l.logger.WarnContext(ctx, "the refused calls of the last second are missing in the security record", "error", err)
			}
			return
		}
		if err == nil {
			warned = false
		} else if !warned && ctx.Err() == nil && !errors.Is(err, store.ErrAway) { // the store logs outages
			warned = true
			l.logger.WarnContext(ctx, "cannot write the counts of refused calls into the security record; trying again every second", "error", err)
		}
	}
}

// Flush writes the counts of refused calls to the database now. After an error, the
// next Flush writes the same counts.
func (l *Log) Flush(ctx context.Context) error {
	l.flushing.Lock()
	defer l.flushing.Unlock() // two calls of Flush at once could write the same counts into two records
	changes, lost := l.changed()
	if len(changes)+len(lost) > 0 {
		err := l.store.Write(ctx, func(tx *store.Tx) error { return write(tx, changes, lost) })
		if err != nil {
			l.failedFlushes.Add(1)
			return err
		}
	}
	l.settle(ctx, changes, len(lost))
	return nil
}

// change holds what a [Log.Flush] writes about one kind of refused calls.
type change struct {
	tally *tally
	row   *store.AuditRecord
	id    string // the id of the kind's record; empty if the kind has no record yet
	count int64
	final bool // true if the hour has ended, so that the count grows no more
}

// changed lists the kinds with refused calls that are not written yet, the kinds with
// most calls first, and the ids of records to delete. At the end of a window, changed
// begins the next window, and lists all kinds of the window before until they are
// written, so that settle can log the final counts.
func (l *Log) changed() (changes []change, lost []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); l.closing == nil && now.Sub(l.current.began) >= windowLength {
		l.closing, l.current = l.current, newWindow(now)
		l.closing.lost, l.current.lost = nil, l.closing.lost
		l.merged += l.closing.merged
	}
	for _, w := range []*window{l.closing, l.current} {
		if w == nil {
			continue
		}
		for _, t := range w.tallies() {
			if final := w == l.closing; final || t.count > t.written {
				row := record(t.kind.event, t.kind.source, t.count)
				changes = append(changes, change{tally: t, row: row, id: t.id, count: t.count, final: final})
			}
		}
	}
	slices.SortFunc(changes, func(a, b change) int { return cmp.Compare(b.count, a.count) })
	return changes, slices.Clone(l.current.lost)
}

// write sets the count of each kind's record, and deletes the records with the ids in lost. If a
// kind has no record yet, or the pruning has deleted the record, write inserts a record.
func write(tx *store.Tx, changes []change, lost []string) error {
	for _, c := range changes {
		c.row.ID = c.id
		if c.id != "" {
			if there, err := tx.SetAuditCount(c.id, c.count); err != nil {
				return err
			} else if there {
				continue
			}
		}
		if err := tx.InsertAudit(c.row); err != nil {
			return err
		}
	}
	for _, id := range lost {
		if err := tx.DeleteAudit(id); err != nil {
			return err
		}
	}
	return nil
}

// settle notes in memory which counts are written and which records are deleted. settle logs
// each new kind of refused calls, and logs the kind again with the final count at the end of
// the window.
func (l *Log) settle(ctx context.Context, changes []change, deleted int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closing = nil
	l.current.lost = l.current.lost[deleted:]
	for _, c := range changes {
		t := c.tally
		if t.displaced && t.id != c.row.ID { // the kind was displaced during the flush, which has inserted the kind's record
			l.current.lost = append(l.current.lost, c.row.ID)
		}
		t.id, t.written = c.row.ID, c.count
		if c.final && t.logged < c.count || t.logged == 0 && l.mayLog(t.kind) {
			l.log(ctx, c.row)
			t.logged = c.count
		}
	}
}

// mayLog reports whether the log gets one more line about a new kind of refused calls. The
// totals (records of a type and reason alone) are few, and always get a line.
func (l *Log) mayLog(k kind) bool {
	switch {
	case k.source == manySources && !k.event.namesUser():
		return true
	case k.event.Type == RefreshRepeated:
		return l.repeated.Allow()
	case k.isDelegation():
		return l.delegated.Allow()
	case k.event.namesUser():
		return l.named.Allow()
	}
	return l.unnamed.Allow()
}
