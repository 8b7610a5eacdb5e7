// Package audit keeps the security record: who did what, to whom, in which
// session, from where, and what came of it. It never holds a secret.
//
// What was done is recorded in the transaction that does it, so the one is never
// there without the other, and logged once that is durable. Refusals are another
// matter: strangers can cause them without bound, so they are counted by kind,
// and a count is one record in an hour, of which there is a bounded number.
package audit

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/store"
)

// Type says what was done, or was to be done.
type Type string

// The types of events. Of Refresh only the refusals are recorded.
const (
	Login               Type = "login"
	Refresh             Type = "refresh"
	RefreshReused       Type = "refresh.reused" // and the session has ended
	Logout              Type = "logout"
	SessionRevoked      Type = "session.revoked"
	UserSessionsRevoked Type = "user.sessions_revoked"
	UserCreated         Type = "user.created"
	UserUpdated         Type = "user.updated"
	UserDeleted         Type = "user.deleted"
	PasswordChanged     Type = "password.changed" // by the user
	PasswordSet         Type = "password.set"     // by somebody else
	KeyRotated          Type = "key.rotated"
	KeyRevoked          Type = "key.revoked"
	KeysResealed        Type = "keys.resealed"
	DatastoreRestored   Type = "datastore.restored" // every user raised, every key withdrawn
	Call                Type = "call"               // refused, of a method that the detail names
)

// Event is what is recorded. Empty fields don't apply, or aren't known.
type Event struct {
	Type      Type
	Reason    string // why it was refused, as in ErrorReason; empty: it was done
	ActorID   string // the user who did it
	UserID    string // the user to whom it was done
	SessionID string
	KID       string
	Detail    string // for people, as in "roles: admin writer"
}

// Refusal is the error of a refused call, with the user and the session that the
// call was about as far as they are known.
type Refusal struct {
	UserID, SessionID string
	Err               error
}

func (r Refusal) Error() string { return r.Err.Error() }

// Unwrap returns the reason of the refusal.
func (r Refusal) Unwrap() error { return r.Err }

// manySources stands for the sources of refusals that share one record.
const manySources caller.Source = "many"

const (
	// window is how long refusals of one kind share a record.
	window = time.Hour
	// maxKinds bounds the records of a window, besides one for each type and
	// reason: at 130 bytes each, what strangers cause takes 20 MB in 90 days.
	maxKinds = 64
	// flushEvery bounds how long a refusal is known to memory alone.
	flushEvery = time.Second
	// pruneStep is a number of rows: about a millisecond of the writer's time.
	pruneStep = 500
	// scan bounds how many records a page may cost: some tens of milliseconds.
	scan = 50_000
)

// Log writes the record. It is safe for concurrent use.
type Log struct {
	store  *store.Store
	logger *slog.Logger

	flushing sync.Mutex

	mu    sync.Mutex
	began time.Time // of the window
	kinds map[kind]*refusals
}

// kind is what refusals have in common that share a record.
type kind struct {
	event  Event
	source caller.Source
}

// refusals are a kind's, in this window.
type refusals struct {
	count   int64
	written int64  // how much of count the record says
	logged  int64  // and the log
	id      string // of the record; empty: there is none yet
}

// New makes a log into a database's table and a logger.
func New(s *store.Store, logger *slog.Logger) *Log {
	return &Log{store: s, logger: logger, kinds: map[kind]*refusals{}}
}

// Record records an event in the transaction that makes it happen.
func (l *Log) Record(ctx context.Context, tx *store.Tx, e Event) error {
	r := record(e, caller.SourceOf(ctx), 1)
	if err := tx.InsertAudit(r); err != nil {
		return err
	}
	tx.OnCommit(func() { l.log(ctx, r) })
	return nil
}

func record(e Event, source caller.Source, count int64) *store.AuditRecord {
	return &store.AuditRecord{
		Type: string(e.Type), Success: e.Reason == "", Reason: e.Reason, ActorID: e.ActorID, UserID: e.UserID,
		SessionID: e.SessionID, KID: e.KID, Source: string(source), Detail: e.Detail, Count: count,
	}
}

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

// Refused counts a refusal. Run writes it down within a second or so.
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

// Run writes refusals down until ctx ends, and then for the last time.
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
				l.logger.WarnContext(ctx, "refusals of the last second are not on record", "error", err)
			}
			return
		}
		if err != nil && ctx.Err() == nil {
			l.logger.WarnContext(ctx, "cannot record refusals; it will be tried again", "error", err)
		}
	}
}

// Flush writes refusals down.
func (l *Log) Flush(ctx context.Context) error {
	l.flushing.Lock()
	defer l.flushing.Unlock()
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

// change is what a flush writes of a kind.
type change struct {
	kind  kind
	row   *store.AuditRecord
	count int64
	id    string
}

// changed lists the kinds whose records are behind. When the window is over, its
// counts are final and the list holds all of them.
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

// settle notes what was written, and logs a kind when it is new and when its
// window is over.
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
			if r.count -= c.count; r.count > 0 { // since the list was made
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

// List lists up to limit records, the newest first, and says before which id to
// go on: empty, when there are no more. A page may be short, or empty, with more
// to come.
func List(ctx context.Context, s *store.Store, f store.AuditFilter, limit int) (records []*store.AuditRecord, next string, err error) {
	err = s.Read(ctx, func(tx *store.Tx) error {
		records, next, err = tx.Audit(f, limit, scan)
		return err
	})
	return records, next, err
}

// Prune forgets records older than maxAge, in small steps.
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
