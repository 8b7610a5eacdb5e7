package feed

import (
	"crypto/rand"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

// Margin is how long past the last possible expiry of the tokens it concerns
// an event is kept: for slow transactions, and for clocks that disagree.
const Margin = 5 * time.Minute

// tagSize is the length of an event's tag in bytes: enough that two histories
// never draw the same one for the same number.
const tagSize = 8

// RaiseMaxLifetime notes that access tokens live this long from now on, and
// tells every verifier. The longest ever is what counts, since longer ones may
// still be out.
func RaiseMaxLifetime(tx *store.Tx, ttl time.Duration) error {
	longest, err := tx.MaxLifetime()
	if err != nil || ttl <= longest {
		return err
	}
	if err := tx.SetMaxLifetime(ttl); err != nil {
		return err
	}
	return KeysChanged(tx)
}

// SessionEnded appends that a session has ended. Appending takes the lock that
// all appenders queue for, so it comes last in a transaction.
func SessionEnded(tx *store.Tx, sessionID string) error {
	return appendEvent(tx, &store.Event{Kind: store.SessionEnded, Subject: sessionID})
}

// VersionRaised appends that a user's tokens below version are stale, or
// revoked. It comes last in a transaction.
func VersionRaised(tx *store.Tx, userID string, version int64, revoked bool) error {
	kind := store.VersionStale
	if revoked {
		kind = store.VersionRevoked
	}
	return appendEvent(tx, &store.Event{Kind: kind, Subject: userID, Version: version})
}

// KeysChanged appends that the signing keys must be read again. It comes last
// in a transaction.
func KeysChanged(tx *store.Tx) error {
	return appendEvent(tx, &store.Event{Kind: store.KeysChanged})
}

func appendEvent(tx *store.Tx, e *store.Event) error {
	e.ExpiresAt = tx.Now().Add(Margin) // and the longest lifetime of a token
	e.Tag = make([]byte, tagSize)
	rand.Read(e.Tag)
	return tx.AppendEvent(e)
}
