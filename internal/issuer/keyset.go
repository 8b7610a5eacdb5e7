package issuer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
)

var (
	// ErrRolledBack means that the database holds an earlier key set than this process has read
	// before: a backup was restored, a standby was promoted that lacked a change, or an
	// attacker has put earlier rows back. After ErrRolledBack, the operator runs `watchword
	// datastore restored` ([Keyring.ReplaceAll]).
	ErrRolledBack = errors.New("the database holds an earlier set of signing keys than this process has seen")
	// errNoKey means that no signing key signs at the time of a call, since the clock was set
	// back, or rows of signing_keys were changed by hand. The call fails with INTERNAL.
	errNoKey = errors.New("no signing key signs now")
	// errOtherID means that the setting database_id has changed under a running process. The
	// tag (MAC) in each row of the signing keys depends on database_id, and a tag under one id
	// is refused under another id. With another id in the database, the process changes no key.
	errOtherID = errors.New("the id of the database was changed")
)

// KeySet holds the newest authentic set of signing keys that a process has read, and the keys
// that sign, decrypted. The process's own verifier accepts tokens of every key in a KeySet,
// since the feed publishes the rows that [KeySet.Read] returns. A KeySet is safe for concurrent
// use.
//
// A KeySet never goes back to an earlier key set. If the database holds an earlier set, a
// changed set or an unreadable set, the KeySet keeps its keys and logs an ERROR with what to
// do. A KeySet never uses a key again that it has seen withdrawn.
type KeySet struct {
	master *seal.Keys
	logger *slog.Logger

	mu         sync.RWMutex // guards all fields below
	databaseID string       // the id of the database at the first reading
	counter    int64        // the counter in the rows; each change of the key set raises the counter
	rows       []*store.SigningKey
	signers    []signer // the keys of rows that sign now or later; replaced as a whole
	withdrawn  []string // ids of the keys seen withdrawn, the latest last; at most maxRemembered
	problem    string   // the text of the latest alarm in the log
	problemAt  time.Time
	problems   uint64 // how often the process has read a key set that could not be used as it was
}

// maxRemembered bounds the ids of withdrawn keys in a process and in a trust state (what a
// verifier receives). At maxWithdrawn withdrawals an hour, an id is remembered for two days at
// least.
const maxRemembered = 1000

// signer is a signing key and the time in which the key signs. key is nil if the key cannot
// be opened, because of err.
type signer struct {
	kid         string
	from, until time.Time // until is zero if the key has no end yet
	key         *token.SigningKey
	err         error
}

// NewKeySet returns a KeySet that has not read the database yet. logger gets a line for each
// problem of the keys in the database.
func NewKeySet(master *seal.Keys, logger *slog.Logger) *KeySet {
	return &KeySet{master: master, logger: logger}
}

// Load reads the key set in a transaction of its own. Errors: those of [KeySet.Read].
func (k *KeySet) Load(ctx context.Context, s *store.Store) error {
	err := s.Read(ctx, func(tx *store.Tx) error {
		_, err := k.Read(ctx, tx)
		return err
	})
	if err != nil {
		err = fmt.Errorf("reading signing keys: %w", err)
	}
	return err
}

// Read reads the key set from the database, and returns the keys to publish. If the database
// holds no newer key set that can be used, Read logs the reason, and returns the keys of the
// earlier reading. Read is a function of the type [feed.Keys].
//
// Errors: errors of the store; at the first reading, seal.ErrWrongKey if the master key file
// lacks the master key of a signing key.
func (k *KeySet) Read(ctx context.Context, tx *store.Tx) (feed.KeySet, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	first := k.counter == 0
	a, err := k.authenticateLocked(tx)
	if a != nil {
		err = errors.Join(err, k.takeLocked(a))
	} else if !errors.Is(err, seal.ErrWrongKey) {
		return feed.KeySet{}, err
	}
	wrongKey := errors.Is(err, seal.ErrWrongKey)
	if first && wrongKey {
		return feed.KeySet{}, err
	}
	if err != nil {
		k.problems++
		k.alarmLocked(ctx, err)
	}
	return feed.KeySet{Rows: k.rows, Withdrawn: slices.Clone(k.withdrawn), Again: wrongKey}, nil
}

// authenticateLocked reads the rows of signing_keys and checks them under the database's id of
// the first reading. A key that this process has seen withdrawn is refused. k.mu must be held.
// Errors: those of [authenticate]; errOtherID, together with the rows, if the database has another id
// now.
func (k *KeySet) authenticateLocked(tx *store.Tx) (*authentic, error) {
	id, err := databaseID(tx)
	if err != nil {
		return nil, err
	}
	if k.databaseID == "" {
		k.databaseID = id
	}
	a, err := authenticate(tx, k.master, k.databaseID)
	if err != nil {
		return nil, err
	}
	a.rows = slices.DeleteFunc(a.rows, func(row *store.SigningKey) bool {
		returned := row.RevokedAt.IsZero() && slices.Contains(k.withdrawn, row.KID)
		if returned {
			a.refused = append(a.refused, refused{row, errReturned})
		}
		return returned
	})
	if id != k.databaseID {
		err = fmt.Errorf("%w: the setting database_id is %q, and was %q when this process started", errOtherID, id, k.databaseID)
	}
	return a, err
}

// authenticate reads the key set for a change of the key set. Errors: those of
// [KeySet.authenticateLocked]; ErrRolledBack.
func (k *KeySet) authenticate(tx *store.Tx) (*authentic, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	a, err := k.authenticateLocked(tx)
	if err == nil && a.counter < k.counter {
		err = ErrRolledBack
	}
	return a, err
}

// newest returns the counter of the newest key set that the process has read. Each change of the
// signing keys raises the counter in their rows.
func (k *KeySet) newest() int64 {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.counter
}

// takeLocked replaces the key set by a newer key set. takeLocked takes no rows of a key set
// with the same counter as the key set in memory: such a key set has no new key, and lacks the
// rows that somebody has changed in the database.
//
// takeLocked returns errors after taking every row that can be used. Errors: ErrRolledBack;
// seal.ErrWrongKey and other errors of a key that cannot be opened; the errors of refused rows.
func (k *KeySet) takeLocked(a *authentic) error {
	var errs []error
	for _, r := range a.refused {
		errs = append(errs, r)
	}
	switch {
	case a.counter > k.counter:
		k.counter, k.rows = a.counter, a.rows
		for _, row := range a.rows {
			if !row.RevokedAt.IsZero() && !slices.Contains(k.withdrawn, row.KID) {
				k.withdrawn = append(k.withdrawn, row.KID)
			}
		}
		k.withdrawn = slices.Delete(k.withdrawn, 0, max(0, len(k.withdrawn)-maxRemembered))
	case a.counter < k.counter && (len(a.rows) > 0 || len(a.refused) == 0):
		errs = append(errs, ErrRolledBack)
	}
	return errors.Join(append(errs, k.openLocked())...)
}

// openLocked decrypts the keys that are still sealed in memory: every key that signs now or
// later, and also the next key, so that an alarm about a wrong master key comes when the next
// key is published. openLocked also decrypts keys that sign no longer, since the clocks of two
// replicas can differ.
func (k *KeySet) openLocked() error {
	var signers []signer
	var errs []error
	for _, row := range k.rows {
		if !row.RevokedAt.IsZero() {
			continue
		}
		s := signer{kid: row.KID, from: row.SignsFrom, until: row.SignsUntil}
		if i := slices.IndexFunc(k.signers, func(s signer) bool { return s.kid == row.KID && s.key != nil }); i >= 0 {
			s.key = k.signers[i].key
		} else if s.key, s.err = open(row, k.master); s.err != nil {
			errs = append(errs, s.err)
		}
		signers = append(signers, s)
	}
	k.signers = signers
	return errors.Join(errs...)
}

// open decrypts the private half of a signing key. Errors: seal.ErrWrongKey.
func open(row *store.SigningKey, master *seal.Keys) (*token.SigningKey, error) {
	private, err := master.Open(purpose, row.KID, row.SealedKey)
	if err != nil {
		return nil, fmt.Errorf("signing key %s: %w", row.KID, err)
	}
	key, err := token.ParseSigningKey(private)
	if err == nil && key.Public().KID() != row.KID {
		err = errors.New("the private half is of another key")
	}
	if err != nil {
		return nil, fmt.Errorf("signing key %s: %w", row.KID, err)
	}
	return key, nil
}

// alarmLocked logs the reason why the KeySet does not use the key set of the database, or not
// every row. alarmLocked logs each problem once, and again after an hour. k.mu must be held.
func (k *KeySet) alarmLocked(ctx context.Context, problem error) {
	if problem.Error() == k.problem && time.Since(k.problemAt) < time.Hour {
		return
	}
	k.problem, k.problemAt = problem.Error(), time.Now()
	const restored = "`watchword datastore restored`, which replaces all keys and ends every session"
	remedy := "somebody has changed rows of signing_keys: find out which program or person can write the database; " +
		"`watchword key rotate` removes the refused rows; if the message stays, run " + restored
	switch {
	case errors.Is(problem, seal.ErrWrongKey):
		remedy = "add the missing master key to the master key file of this server, as on the machine where the key was made; " +
			"if the file is complete, somebody has changed rows of signing_keys: run " + restored
	case errors.Is(problem, errOtherID):
		remedy = "put the id back: UPDATE settings SET value = (the id when this process started) WHERE name = 'database_id'; " +
			"if that is impossible, restart every server, and then run " + restored
	case errors.Is(problem, ErrRolledBack):
		remedy = "run " + restored + "; if the message stays, the clock was set back: restart every server"
	case errors.Is(problem, errReturned):
		remedy = "somebody has put a withdrawn key back: find out which program or person can write the database; run " +
			"`watchword key revoke KID` for each key that was withdrawn before, or " + restored
	}
	k.logger.ErrorContext(ctx, "the signing keys in the database are not usable as they are; the server continues with the keys that it knows",
		"error", problem, "remedy", remedy)
}

// Signs returns the id of the signing key that signs at a time. Errors: an error that says why
// no key signs, or why the key cannot be opened.
func (k *KeySet) Signs(now time.Time) (kid string, err error) {
	key, err := k.signing(now)
	if err != nil {
		return "", err
	}
	return key.Public().KID(), nil
}

// signing returns the key that signs at the time now. If several keys sign at the time, signing
// returns the key that began last. If no key signs at the time, signing returns the key that
// begins next: now is the time of the transaction that granted the token, and the key that
// signed at that time may have been withdrawn since. The successor of the withdrawn key signs
// from a time shortly after now.
//
// Errors: errors of [KeySet.Signs].
func (k *KeySet) signing(now time.Time) (*token.SigningKey, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	var current, next signer
	for _, s := range k.signers {
		ended := !s.until.IsZero() && !s.until.After(now)
		switch {
		case s.from.IsZero():
		case s.from.After(now):
			if next.kid == "" || s.from.Before(next.from) {
				next = s
			}
		case !ended && (current.kid == "" || s.from.After(current.from)):
			current = s
		}
	}
	if current.kid == "" {
		current = next
	}
	if current.kid == "" {
		return nil, errNoKey
	}
	return current.key, current.err
}
