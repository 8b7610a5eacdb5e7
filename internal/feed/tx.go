package feed

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/watchword-auth/watchword/internal/hub"
	"github.com/watchword-auth/watchword/internal/store"
)

// Margin is how long an event is kept after the last token that the event concerns has expired:
// for slow transactions, and for clocks that disagree.
const Margin = 5 * time.Minute

// Tx holds a transaction that can append events. Append events after all other statements of
// the transaction: appending locks the head row, and every other transaction with an event
// waits for the lock until the commit.
type Tx struct{ *store.Tx }

// A Writer runs fn in a transaction that is durable when Write returns nil. The function fn can
// run more than once, as in [store.Store.Write].
type Writer interface {
	Write(ctx context.Context, fn func(*Tx) error) error
}

// Direct returns a Writer for a process without a verifier of its own, such as a
// command: Write waits for no verifier. A server that shares the database finds the
// events by polling.
func Direct(s *store.Store) Writer { return direct{s} }

type direct struct{ store *store.Store }

func (d direct) Write(ctx context.Context, fn func(*Tx) error) error {
	return d.store.Write(ctx, func(tx *store.Tx) error { return fn(&Tx{tx}) })
}

// SessionEnded appends the event that a session has ended. By the event, verifiers refuse the
// session's tokens as TOKEN_REVOKED.
func (tx *Tx) SessionEnded(sessionID string) error {
	return tx.append(&store.Event{Kind: store.SessionEnded, Subject: sessionID})
}

// VersionRaised appends the event that the version of a user's rights was raised to
// version. By the event, verifiers refuse the user's tokens with a lower version: as
// TOKEN_REVOKED if revoked is true, and as TOKEN_STALE otherwise.
func (tx *Tx) VersionRaised(userID string, version int64, revoked bool) error {
	kind := store.VersionStale
	if revoked {
		kind = store.VersionRevoked
	}
	return tx.append(&store.Event{Kind: kind, Subject: userID, Version: version})
}

// KeysChanged appends the event that the signing keys have changed. By the event, every feed
// reads the keys again.
func (tx *Tx) KeysChanged() error {
	return tx.append(&store.Event{Kind: store.KeysChanged})
}

// commitTime is longer than nearly any transaction takes between reading the clock and the
// commit: the store gives a caller five seconds (statementTime in package store).
const commitTime = 10 * time.Second

// EndDelegated makes every delegated token minted so far invalid. A withdrawal of a key calls
// EndDelegated: a token that the leaked key signed may have been exchanged for a delegated token,
// and the delegated token has the signature of another key. The caller also calls [Tx.KeysChanged].
//
// A replica that reads the database before the commit of this transaction may mint a delegated
// token afterwards, by a later clock than tx.Now. So EndDelegated adds commitTime to the stored
// moment, and a token minted within commitTime has its time of issue set ahead: see
// issuer.Subject. If the commit takes longer than commitTime, as while a synchronous standby is
// away, the feed calls EndDelegated once more: see [Feed.noteMoment].
//
// A claim `iat` has whole seconds, and so has the stored moment. Each new moment is at least a
// second after the earlier moment, since tokens with the earlier moment as time of issue may exist
// already. The stored moment never falls, even if the clock is set back.
func (tx *Tx) EndDelegated() error {
	before, err := tx.DelegatedNotBefore()
	if err != nil {
		return err
	}
	next := tx.Now().Add(commitTime).Truncate(time.Second)
	if next.Before(before) {
		next = before
	}
	return tx.RaiseDelegatedNotBefore(next.Add(time.Second))
}

// RaiseMaxLifetime stores ttl, the lifetime of new access tokens, as the longest
// lifetime of a token, and tells every verifier. If the stored lifetime is at least
// ttl, RaiseMaxLifetime changes nothing: tokens with the stored lifetime may still be
// in use.
func (tx *Tx) RaiseMaxLifetime(ttl time.Duration) error {
	longest, err := tx.MaxLifetime()
	if err != nil || ttl <= longest {
		return err
	}
	if err := tx.SetMaxLifetime(ttl); err != nil {
		return err
	}
	return tx.KeysChanged()
}

// RaiseFloor raises the floor for versions, below which no new token has a version, to the
// clock's seconds since 1970, and at least to known, the greatest version known of the database
// and of a history that the database has lost. The floor never falls.
func (tx *Tx) RaiseFloor(known int64) error {
	return tx.Tx.RaiseFloor(max(known, tx.Now().Unix()))
}

func (tx *Tx) append(e *store.Event) error {
	e.ExpiresAt = tx.Now().Add(Margin) // [store.Tx.AppendEvent] adds the longest lifetime of a token
	var tag hub.Tag
	rand.Read(tag[:])
	e.Tag = tag[:]
	return tx.AppendEvent(e)
}
