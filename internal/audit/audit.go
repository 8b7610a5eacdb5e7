// Package audit keeps the security record: what users, admins and the operator did, and
// which calls were refused. A record names the actor, the action, the user and the
// session concerned, the source address and the outcome. No record holds a secret.
//
// An action is recorded in the transaction of the action: action and record are committed
// together, or rolled back together. The line in the log follows the commit. Any client can cause
// refused calls without bound, so this package counts refused calls by kind (action, reason, users
// and source): one record for each kind and hour, and a bounded number of kinds. The kinds with the
// most calls have records of their own, the records are divided among networks and users, and
// calls that name a user compete for records only with calls that name a user; see [window].
//
// Every refused call is counted in exactly one record. While the hour lasts, the count of a
// kind with few calls can move from the record of the kind into a coarser record, for example
// of the same user and several sources. After such a move, the record of the kind is deleted.
//
// Repeats of a refresh token are counted as refused calls are, in a separate table in memory: an
// honest client on a bad network repeats too, and must take no record from refused calls.
//
// Delegations (a service has got a token to act for its caller) are counted as refused calls are,
// by service, audience and hour, in a separate table in memory.
//
// One user can cause events of the user's own, such as logins, without bound too. So these
// events have a bounded number of records an hour, in which each event is counted; see
// [countOwn].
//
// The name in a login is recorded only if a user has the name: the text may be a
// password, typed into the wrong field.
package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/store"
)

// Type names an action of the security record, done or refused.
type Type string

// An event of the security record has one of these types. Ordinary refreshes are too many for the
// security record: the session's row has the time of the latest refresh.
const (
	Login               Type = "login"
	Refresh             Type = "refresh"
	RefreshRepeated     Type = "refresh.repeated" // a client sent a used refresh token again, and got new tokens
	RefreshReused       Type = "refresh.reused"   // a client sent a used refresh token again, and the session has ended
	Logout              Type = "logout"
	SessionRevoked      Type = "session.revoked"
	UserSessionsRevoked Type = "user.sessions_revoked"
	UserCreated         Type = "user.created"
	UserUpdated         Type = "user.updated"
	UserDeleted         Type = "user.deleted"
	PasswordChanged     Type = "password.changed" // a user has changed the user's own password
	PasswordSet         Type = "password.set"     // an admin or the operator has set a user's password
	TokenDelegated      Type = "token.delegated"  // a service has got a token to act for its caller
	TokenExchanged      Type = "token.exchanged"  // a service account has signed in with an assertion
	KeyRotated          Type = "key.rotated"
	KeyRevoked          Type = "key.revoked"
	KeysResealed        Type = "keys.resealed"
	DatastoreRestored   Type = "datastore.restored" // every session ended and every key withdrawn, after a backup was restored
	DatastoreRekeyed    Type = "datastore.rekeyed"  // every session ended and every key replaced, after the master key was lost
	IssuerCreated       Type = "issuer.created"
	IssuerUpdated       Type = "issuer.updated"
	IssuerDeleted       Type = "issuer.deleted"
	BindingCreated      Type = "binding.created"
	BindingDeleted      Type = "binding.deleted"
	Call                Type = "call" // a refused call; the detail names the method
)

// types lists the types of events.
var types = []Type{
	Login, Refresh, RefreshRepeated, RefreshReused, Logout, SessionRevoked, UserSessionsRevoked,
	UserCreated, UserUpdated, UserDeleted, PasswordChanged, PasswordSet,
	KeyRotated, KeyRevoked, KeysResealed, DatastoreRestored, DatastoreRekeyed,
	IssuerCreated, IssuerUpdated, IssuerDeleted, BindingCreated, BindingDeleted, TokenExchanged, TokenDelegated, Call,
}

// ParseType returns the type with a name, for a filter. With a mistyped name, a filter would
// find nothing, which looks like a record without such an event. So an event type that only a
// newer program knows is an error too. Errors: an error that lists the types, and does not repeat
// the name.
func ParseType(name string) (Type, error) {
	if !slices.Contains(types, Type(name)) {
		return "", fmt.Errorf("unknown event type; the types are %s", strings.Trim(fmt.Sprint(types), "[]"))
	}
	return Type(name), nil
}

// Event describes an action for the security record. A field is empty if it is unknown
// or does not apply. The names are the usernames at the time of the event.
type Event struct {
	Type      Type
	Reason    string // why the call was refused, as in ErrorReason; empty for an action done
	ActorID   string // the acting user
	ActorName string
	UserID    string // the user concerned
	UserName  string // the name before the event, if the event changes the name
	SessionID string
	KID       string
	Detail    string // a text for people, such as "roles: admin writer"
}

func (e Event) namesUser() bool { return e.ActorID != "" || e.UserID != "" }

// Refusal is the error of a refused call, with the users and the session concerned as far as
// known. The edge of the server copies the users and the session into the security record.
type Refusal struct {
	ActorID, ActorName string
	UserID, UserName   string
	SessionID          string
	Detail             string // for people, why the call was refused; a fixed text, and no text of the client
	Err                error
}

// Error returns the text of the reason.
func (r Refusal) Error() string { return r.Err.Error() }

// Unwrap returns the reason.
func (r Refusal) Unwrap() error { return r.Err }

const (
	// pruneStep is the number of rows that Prune deletes in one transaction, which keeps
	// SQLite's one writer busy for about a millisecond.
	pruneStep = 500
	// scan bounds the records that one page reads if several filters are set: about 7 ms
	// on SQLite with the records in memory.
	scan = 2_000
)

// Log writes the security record. A Log is safe for concurrent use.
type Log struct {
	store  *store.Store
	logger *slog.Logger

	operator string // the actor of events without an actor; see ForOperator

	recorded      map[Type]*atomic.Uint64 // events in the record; the map never changes
	exchanges     exchanges
	failedFlushes atomic.Uint64

	flushing sync.Mutex // Flush holds flushing, and locks flushing before mu

	mu      sync.Mutex // guards the fields below
	current *window
	merged  uint64  // the number of kinds of refused calls that have lost their records, in earlier windows (hours)
	closing *window // the window of the hour before, until Flush has written the final counts; else nil
	// named, unnamed, repeated and delegated bound the log lines about new kinds of counted
	// calls: refused calls that name a user, other refused calls, repeats, and delegations.
	named, unnamed, repeated, delegated *rate.Limiter
}

// New returns a Log that writes records into a database and lines into a logger.
func New(s *store.Store, logger *slog.Logger) *Log {
	lines := func() *rate.Limiter { return rate.NewLimiter(lineRate, maxPlaces) }
	recorded := map[Type]*atomic.Uint64{}
	for _, t := range types {
		recorded[t] = new(atomic.Uint64)
	}
	return &Log{store: s, logger: logger, recorded: recorded, current: newWindow(time.Now()), named: lines(), unnamed: lines(), repeated: lines(), delegated: lines()}
}

// Record writes an event into the security record, in the transaction of the action. If
// the record cannot be written, the caller must return the error, so that the action is
// rolled back.
func (l *Log) Record(ctx context.Context, tx *store.Tx, e Event) error {
	if e.ActorID == "" && e.ActorName == "" {
		e.ActorName = l.operator
	}
	r := record(e, caller.SourceOf(ctx), 1)
	if err := l.insert(tx, r); err != nil {
		return err
	}
	tx.OnCommit(func() { // the log gets lines about committed actions alone
		if n := l.recorded[e.Type]; n != nil {
			n.Add(1)
		}
		l.log(ctx, r)
	})
	return nil
}

// insert inserts the record of an event, or counts the event in another record of the hour: see
// countOwn and exchanges.
func (l *Log) insert(tx *store.Tx, r *store.AuditRecord) error {
	if r.Type == string(TokenExchanged) {
		return l.exchanges.insert(tx, r)
	}
	counted, err := countOwn(tx, r)
	if err == nil && !counted {
		err = tx.InsertAudit(r)
	}
	return err
}

// record returns the row for an event. An event without a reason was successful.
func record(e Event, source caller.Source, count int64) *store.AuditRecord {
	return &store.AuditRecord{
		Type: string(e.Type), Success: e.Reason == "", Reason: e.Reason, ActorID: e.ActorID, ActorName: e.ActorName,
		UserID: e.UserID, UserName: e.UserName, SessionID: e.SessionID, KID: e.KID, Source: string(source), Detail: e.Detail, Count: count,
	}
}

// log writes a record as one line, without the empty fields.
func (l *Log) log(ctx context.Context, r *store.AuditRecord) {
	const most = 12 // type, success, count and the nine fields below
	attrs := append(make([]slog.Attr, 0, most), slog.String("type", r.Type), slog.Bool("success", r.Success))
	for _, field := range []struct{ name, value string }{
		{"reason", r.Reason}, {"actor_id", r.ActorID}, {"actor_name", r.ActorName}, {"user_id", r.UserID}, {"user_name", r.UserName},
		{"session_id", r.SessionID}, {"kid", r.KID}, {"source", r.Source}, {"detail", r.Detail},
	} {
		if field.value != "" {
			attrs = append(attrs, slog.String(field.name, field.value))
		}
	}
	l.logger.LogAttrs(ctx, slog.LevelInfo, "audit", append(attrs, slog.Int64("count", r.Count))...)
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

// maxNamesakes bounds the number of users that have or had one name, and so the queries for one
// page.
const maxNamesakes = 100

var (
	// ErrUnknownName means that no user ever had the name in a filter.
	ErrUnknownName = errors.New("no user ever had this name")
	// ErrNamesakes means that more than maxNamesakes users have had the name in a filter.
	ErrNamesakes = fmt.Errorf("more than %d users have had this name: name one of them by id", maxNamesakes)
)

// ListByName is like [List], for the records of every user that has or had a name: the name of a
// deleted user may belong to another user today.
//
// Errors: ErrUnknownName; ErrNamesakes; errors of the store.
func ListByName(ctx context.Context, s *store.Store, f store.AuditFilter, name string, limit int) (records []*store.AuditRecord, next string, err error) {
	err = s.Read(ctx, func(tx *store.Tx) error {
		ids, err := namesakes(tx, name)
		if err != nil {
			return err
		}
		records, next = nil, ""
		for _, id := range ids {
			f.UserID = id
			more, end, err := tx.Audit(f, limit, scan)
			if err != nil {
				return err
			}
			records, next = merge(records, more, limit), max(next, end)
		}
		// The record at next ends the page, since one user's list can have further records
		// after next.
		records = slices.DeleteFunc(records, func(r *store.AuditRecord) bool { return r.ID < next })
		if len(records) > limit {
			records = records[:limit]
			next = records[limit-1].ID
		}
		return nil
	})
	return records, next, err
}

// merge returns the newest records of two lists, each record once: one more than limit, which
// shows that there is a next page.
func merge(a, b []*store.AuditRecord, limit int) []*store.AuditRecord {
	all := slices.Concat(a, b)
	slices.SortFunc(all, func(x, y *store.AuditRecord) int { return strings.Compare(y.ID, x.ID) })
	all = slices.CompactFunc(all, func(x, y *store.AuditRecord) bool { return x.ID == y.ID })
	return all[:min(len(all), limit+1)]
}

// Prune deletes records of the security record older than maxAge (--audit-ttl), as
// [store.Tx.Aged] counts, in small steps.
func (l *Log) Prune(ctx context.Context, maxAge time.Duration) error {
	for {
		var n int64
		err := l.store.Write(ctx, func(tx *store.Tx) error {
			aged, err := tx.Aged(maxAge)
			if err == nil {
				n, err = tx.PruneAudit(aged, pruneStep)
			}
			return err
		})
		if err != nil || n < pruneStep {
			return err
		}
	}
}
