// Package audit keeps the security record: what users, admins and the operator did, and
// which calls were refused. A record names the actor, the action, the user and the
// session concerned, the source address and the outcome. No record holds a secret.
//
// An action is recorded in the transaction of the action, so neither exists without the
// other. The line in the log follows the commit. Any client can cause refused calls
// without bound, so this package counts refused calls by kind (action, reason, user and
// source): one record for each kind and hour, and a bounded number of kinds.
package audit

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/store"
)

// Type names an action of the security record, done or refused.
type Type string

// The types of events. A successful refresh is not recorded: there are too many, and
// the session's row has the time of the latest.
const (
	Login               Type = "login"
	Refresh             Type = "refresh"
	RefreshReused       Type = "refresh.reused" // a spent refresh token came again, and the session has ended
	Logout              Type = "logout"
	SessionRevoked      Type = "session.revoked"
	UserSessionsRevoked Type = "user.sessions_revoked"
	UserCreated         Type = "user.created"
	UserUpdated         Type = "user.updated"
	UserDeleted         Type = "user.deleted"
	PasswordChanged     Type = "password.changed" // by the user
	PasswordSet         Type = "password.set"     // by an admin or the operator
	KeyRotated          Type = "key.rotated"
	KeyRevoked          Type = "key.revoked"
	KeysResealed        Type = "keys.resealed"
	DatastoreRestored   Type = "datastore.restored" // every session ended and every key withdrawn, after a backup was restored
	Call                Type = "call"               // a refused call; the detail names the method
)

// Event describes an action for the security record. A field is empty if it is unknown
// or does not apply.
type Event struct {
	Type      Type
	Reason    string // why the call was refused, as in ErrorReason; empty for an action done
	ActorID   string // the acting user
	UserID    string // the user concerned
	SessionID string
	KID       string
	Detail    string // for people, as in "roles: admin writer"
}

// Refusal is the error of a refused call, with the user and the session concerned, as
// far as they are known. The edge of the server copies both into the security record.
type Refusal struct {
	UserID, SessionID string
	Err               error
}

// Error returns the text of the reason.
func (r Refusal) Error() string { return r.Err.Error() }

// Unwrap returns the reason.
func (r Refusal) Unwrap() error { return r.Err }

// manySources is the source in a record that counts refused calls of several sources.
const manySources caller.Source = "many"

const (
	// window is how long refused calls of one kind are counted in one record.
	window = time.Hour
	// maxKinds bounds the records of a window. When it is reached, a refused call of a
	// new kind is counted in one record for each type and reason, without user and
	// source. At 130 bytes each, records of refused calls take 20 MB in 90 days.
	maxKinds = 64
	// flushEvery is the time between two writes of the counts. If the server is killed,
	// the counts of the last second are lost.
	flushEvery = time.Second
	// pruneStep is the number of rows deleted in one transaction: about a millisecond
	// of SQLite's one writer.
	pruneStep = 500
	// scan bounds the records that one page reads if several filters are set: about 7 ms
	// on SQLite with the records in memory.
	scan = 2_000
)

// Log writes the security record. A Log is safe for concurrent use.
type Log struct {
	store  *store.Store
	logger *slog.Logger

	flushing sync.Mutex // held by Flush, before mu

	mu    sync.Mutex // guards the fields below
	began time.Time  // of the present window
	kinds map[kind]*refusals
}

// kind identifies the refused calls that share a record.
type kind struct {
	event  Event
	source caller.Source
}

// refusals counts the refused calls of one kind in this window.
type refusals struct {
	count   int64
	written int64  // the part of count in the record
	logged  int64  // the part of count in the log
	id      string // of the record; empty before the first flush
}

// New returns a Log that writes records into a database and lines into a logger.
func New(s *store.Store, logger *slog.Logger) *Log {
	return &Log{store: s, logger: logger, kinds: map[kind]*refusals{}}
}

// Record writes an event into the security record, in the transaction of the action. If
// the record cannot be written, the caller must return the error, so that the action is
// rolled back.
func (l *Log) Record(ctx context.Context, tx *store.Tx, e Event) error {
	r := record(e, caller.SourceOf(ctx), 1)
	if err := tx.InsertAudit(r); err != nil {
		return err
	}
	tx.OnCommit(func() { l.log(ctx, r) }) // a line about an action that was rolled back would be wrong
	return nil
}

// record returns the row for an event. An event without a reason was successful.
func record(e Event, source caller.Source, count int64) *store.AuditRecord {
	return &store.AuditRecord{
		Type: string(e.Type), Success: e.Reason == "", Reason: e.Reason, ActorID: e.ActorID, UserID: e.UserID,
		SessionID: e.SessionID, KID: e.KID, Source: string(source), Detail: e.Detail, Count: count,
	}
}

// log writes a record as one line, without the empty fields.
func (l *Log) log(ctx context.Context, r *store.AuditRecord) {
	attrs := []slog.Attr{slog.String("type", r.Type), slog.Bool("success", r.Success)}
	for _, field := range []struct{ name, value string }{
		{"reason", r.Reason}, {"actor_id", r.ActorID}, {"user_id", r.UserID}, {"session_id", r.SessionID},
		{"kid", r.KID}, {"source", r.Source}, {"detail", r.Detail},
	} {
		if field.value != "" {
			attrs = append(attrs, slog.String(field.name, field.value))
		}
	}
	l.logger.LogAttrs(ctx, slog.LevelInfo, "audit", append(attrs, slog.Int64("count", r.Count))...)
}

// Refused counts a refused call. [Log.Run] writes the count within about a second, so
// that a flood of refused calls costs no transaction each.
func (l *Log) Refused(ctx context.Context, e Event) {
	k := kind{e, caller.SourceOf(ctx)}
	l.mu.Lock()
	defer l.mu.Unlock()
	r, known := l.kinds[k]
	if !known && len(l.kinds) >= maxKinds {
		k = kind{Event{Type: e.Type, Reason: e.Reason}, manySources}
		r, known = l.kinds[k]
	}
	if !known {
		r = &refusals{}
		l.kinds[k] = r
	}
	r.count++
}

// Run writes the counts of refused calls to the database until ctx ends, and once more
// after the end.
func (l *Log) Run(ctx context.Context) {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		var err error
		select {
		case <-tick.C:
			err = l.Flush(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushEvery)
			defer cancel()
			if err := l.Flush(last); err != nil {
				l.logger.WarnContext(ctx, "the refused calls of the last second are missing in the security record", "error", err)
			}
			return
		}
		if err != nil && ctx.Err() == nil {
			l.logger.WarnContext(ctx, "cannot write the counts of refused calls into the security record; trying again in a second", "error", err)
		}
	}
}

// Flush writes the counts of refused calls to the database now. After an error, the
// next Flush writes the same counts.
func (l *Log) Flush(ctx context.Context) error {
	l.flushing.Lock()
	defer l.flushing.Unlock() // two flushes at once could write the same counts into two records
	changed, over := l.changed()
	if len(changed) > 0 {
		err := l.store.Write(ctx, func(tx *store.Tx) error {
			for i := range changed {
				if err := changed[i].write(tx); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	l.settle(ctx, changed, over)
	return nil
}

// change is the part of a [Log.Flush] for one kind of refused calls.
type change struct {
	kind  kind
	row   *store.AuditRecord
	count int64
	id    string
}

// changed lists the kinds with refused calls that are not written yet, and reports
// whether the window is over. At the end of a window the list holds all kinds, so that
// settle can log the final counts.
func (l *Log) changed() (changed []change, over bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.began.IsZero() {
		l.began = now
	}
	over = now.Sub(l.began) >= window
	for k, r := range l.kinds {
		if over || r.count > r.written {
			changed = append(changed, change{kind: k, count: r.count, id: r.id})
		}
	}
	return changed, over
}

// write sets the count of the kind's record. If there is no record yet, or the pruning
// has deleted it, write inserts one.
func (c *change) write(tx *store.Tx) error {
	c.row = record(c.kind.event, c.kind.source, c.count)
	c.row.ID = c.id
	if c.id != "" {
		if there, err := tx.SetAuditCount(c.id, c.count); err != nil || there {
			return err
		}
	}
	return tx.InsertAudit(c.row)
}

// settle stores in memory which counts are written. settle logs a kind when it is new,
// and again at the end of the window with the final count. At the end of the window,
// the next window begins without kinds.
func (l *Log) settle(ctx context.Context, changed []change, over bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range changed {
		r := l.kinds[c.kind]
		if r.id == "" || over && r.logged < c.count {
			l.log(ctx, c.row)
			r.logged = c.count
		}
		r.id, r.written = c.row.ID, c.count
		if over {
			if r.count -= c.count; r.count > 0 { // calls refused during the flush belong to the next window
				*r = refusals{count: r.count}
			} else {
				delete(l.kinds, c.kind)
			}
		}
	}
	if over {
		l.began = time.Now()
	}
}

// List returns up to limit records of the security record, the newest first. next is
// the id before which the next page begins; empty at the end. A page may be short or
// empty although more pages follow.
func List(ctx context.Context, s *store.Store, f store.AuditFilter, limit int) (records []*store.AuditRecord, next string, err error) {
	err = s.Read(ctx, func(tx *store.Tx) error {
		records, next, err = tx.Audit(f, limit, scan)
		return err
	})
	return records, next, err
}

// Prune deletes records of the security record older than maxAge (--audit-ttl), in
// small steps.
func (l *Log) Prune(ctx context.Context, maxAge time.Duration) error {
	for {
		var n int64
		err := l.store.Write(ctx, func(tx *store.Tx) (err error) {
			n, err = tx.PruneAudit(tx.Now().Add(-maxAge), pruneStep)
			return err
		})
		if err != nil || n < pruneStep {
			return err
		}
	}
}
