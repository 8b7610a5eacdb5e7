package issuer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
)

// ErrNotFound says that there is no such signing key.
var ErrNotFound = errors.New("no such signing key")

// settingMaxAge holds how long a cache may keep the key set: a key must have
// been published for so long before it signs.
const settingMaxAge = "jwks_max_age"

// settle is how much longer than a cache's age a key must have been published: a
// replica may serve the key set of a moment ago, and HTTP counts whole seconds.
const settle = time.Second

// SetMaxAge notes how long a cache may keep the key set from now on.
func SetMaxAge(tx *store.Tx, age time.Duration) error {
	return tx.SetSetting(settingMaxAge, strconv.FormatInt(age.Microseconds(), 10))
}

func maxAge(tx *store.Tx) (time.Duration, error) {
	value, err := tx.Setting(settingMaxAge)
	if err != nil || value == "" {
		return 0, err
	}
	us, err := strconv.ParseInt(value, 10, 64)
	return time.Duration(us) * time.Microsecond, err
}

// Keyring rotates and withdraws signing keys. It is safe for concurrent use.
//
// The keys that have signed, sign or shall sign form a chain: each signs until
// the next one begins, and verifies until the last token that it can have signed
// has expired. Besides the chain there is one key that signs next, published and
// without a date.
type Keyring struct {
	store  *store.Store
	writer feed.Writer
	master *seal.Keys
	audit  *audit.Log
}

// NewKeyring makes the keyring of a database.
func NewKeyring(s *store.Store, w feed.Writer, master *seal.Keys, a *audit.Log) *Keyring {
	return &Keyring{store: s, writer: w, master: master, audit: a}
}

// chain is the rows that are not withdrawn.
type chain struct {
	last *store.SigningKey // signs now, or shall: the one without an end
	next *store.SigningKey // published, and not dated
}

func readChain(tx *store.Tx) (c chain, rows []*store.SigningKey, err error) {
	rows, err = tx.SigningKeys()
	for _, row := range rows {
		switch {
		case !row.RevokedAt.IsZero():
		case row.SignsFrom.IsZero():
			c.next = row
		case row.SignsUntil.IsZero():
			c.last = row
		}
	}
	if err == nil && (c.last == nil || c.next == nil) {
		err = errNoKey
	}
	return c, rows, err
}

// Rotate dates the key that signs next: at once, or as soon as it has been
// published for the age of the caches. Another one is published in its place. A
// rotation that is under way already is not begun again. alg is the algorithm of
// the key that shall sign, empty: as it is. It may return the caller's errors.
func (k *Keyring) Rotate(ctx context.Context, by caller.Caller, alg token.Algorithm) (Key, error) {
	return k.rotate(ctx, by, alg, func(*store.SigningKey, time.Time) bool { return true })
}

// RotateOld rotates if the key that signs has done so for the given time. Any
// number of replicas may ask at once.
func (k *Keyring) RotateOld(ctx context.Context, ttl time.Duration) error {
	old := func(key *store.SigningKey, now time.Time) bool { return !now.Before(key.SignsFrom.Add(ttl)) }
	err := k.store.Read(ctx, func(tx *store.Tx) error {
		c, _, err := readChain(tx)
		if err == nil && !old(c.last, tx.Now()) {
			err = errYoung
		}
		return err
	})
	if err == nil {
		_, err = k.rotate(ctx, caller.AtCommandLine, "", old)
	}
	if errors.Is(err, errYoung) {
		return nil
	}
	return err
}

// errYoung says that a key needs no rotation yet.
var errYoung = errors.New("key is not old enough")

// rotate rotates if it is due by the key that signs, or shall.
func (k *Keyring) rotate(ctx context.Context, by caller.Caller, alg token.Algorithm, due func(*store.SigningKey, time.Time) bool) (Key, error) {
	spares, err := k.spares(ctx, alg)
	if err != nil {
		return Key{}, err
	}
	var rotated Key
	err = k.writer.Write(ctx, func(events *feed.Tx) error {
		tx := events.Tx
		if err := errors.Join(by.Check(tx), tx.Exclusive()); err != nil {
			return err
		}
		c, rows, err := readChain(tx)
		if err != nil {
			return err
		}
		if !due(c.last, tx.Now()) {
			return errYoung
		}
		if c.last.SignsFrom.After(tx.Now()) && (alg == "" || c.last.Algorithm == string(alg)) {
			rotated = newKey(c.last, tx.Now())
			return nil
		}
		if c.next.Algorithm != spares[0].Algorithm {
			if err := replace(tx, c.next, spares[1]); err != nil {
				return err
			}
			c.next = spares[1]
		}
		if err := promote(tx, c); err != nil {
			return err
		}
		rotated = newKey(c.next, tx.Now())
		record := audit.Event{Type: audit.KeyRotated, ActorID: by.ID, KID: rotated.KID,
			Detail: fmt.Sprintf("%s, signs from %s", rotated.Algorithm, rotated.SignsFrom.Format(time.RFC3339))}
		return errors.Join(publish(tx, spares[0]), forget(tx, rows), k.audit.Record(ctx, tx, record), events.KeysChanged())
	})
	return rotated, err
}

// spares makes the keys that a rotation may need, before its transaction, since
// an RSA key takes a while.
func (k *Keyring) spares(ctx context.Context, alg token.Algorithm) (spares [2]*store.SigningKey, err error) {
	if alg == "" {
		err = k.store.Read(ctx, func(tx *store.Tx) error {
			c, _, err := readChain(tx)
			if err == nil {
				alg = token.Algorithm(c.last.Algorithm)
			}
			return err
		})
	}
	for i := range spares {
		if err == nil {
			spares[i], err = generate(k.master, alg)
		}
	}
	return spares, err
}

// promote dates the next key and the end of the last one, which signs for a
// moment at least: without it two keys would begin at once, and none would be
// before the other.
func promote(tx *store.Tx, c chain) error {
	age, err := maxAge(tx)
	if err != nil {
		return err
	}
	longest, err := tx.MaxLifetime()
	if err != nil {
		return err
	}
	if age > 0 {
		age += settle
	}
	from := latest(tx.Now(), c.next.PublishedAt.Add(age), c.last.SignsFrom.Add(time.Microsecond))
	c.next.SignsFrom, c.last.SignsUntil = from, from
	c.last.VerifiesUntil = from.Add(longest + feed.Margin)
	return errors.Join(tx.UpdateSigningKey(c.last), tx.UpdateSigningKey(c.next))
}

// Revoke withdraws a key: what it signed passes nowhere any more, once the
// bundle has arrived. If it signs, or shall, the next key signs at once; whoever
// reads the key set from a cache may refuse its tokens for the cache's age. It
// returns the key that signs now. It may return ErrNotFound, or the caller's
// errors.
func (k *Keyring) Revoke(ctx context.Context, by caller.Caller, kid string) (Key, error) {
	spares, err := k.spares(ctx, "")
	if err != nil {
		return Key{}, err
	}
	var signing Key
	err = k.writer.Write(ctx, func(events *feed.Tx) error {
		tx := events.Tx
		if err := errors.Join(by.Check(tx), tx.Exclusive()); err != nil {
			return err
		}
		c, rows, err := readChain(tx)
		if err != nil {
			return err
		}
		leaked := find(rows, kid)
		if leaked == nil {
			return ErrNotFound
		}
		if leaked.RevokedAt.IsZero() {
			leaked.RevokedAt = tx.Now()
			if err := errors.Join(tx.UpdateSigningKey(leaked), bridge(tx, c, rows, leaked, spares[0])); err != nil {
				return err
			}
			record := audit.Event{Type: audit.KeyRevoked, ActorID: by.ID, KID: kid}
			if err := errors.Join(k.audit.Record(ctx, tx, record), events.KeysChanged()); err != nil {
				return err
			}
		}
		signing = newKey(signingNow(rows, tx.Now()), tx.Now())
		return nil
	})
	return signing, err
}

// ReplaceAll withdraws every key, those that have not signed among them, since in
// a history that was lost they may have, and lets a new one sign at once. why is
// recorded with it. It returns the key that signs now. Who reads the key set from a
// cache may refuse new tokens for the cache's age.
func (k *Keyring) ReplaceAll(ctx context.Context, why audit.Event) (Key, error) {
	spares, err := k.spares(ctx, "")
	if err != nil {
		return Key{}, err
	}
	err = k.writer.Write(ctx, func(events *feed.Tx) error {
		tx := events.Tx
		if err := tx.Exclusive(); err != nil {
			return err
		}
		rows, err := tx.SigningKeys()
		if err != nil {
			return err
		}
		for _, row := range rows {
			if row.RevokedAt.IsZero() {
				row.RevokedAt = tx.Now()
				err = errors.Join(err, tx.UpdateSigningKey(row))
			}
		}
		spares[0].SignsFrom = tx.Now()
		why.KID = spares[0].KID
		return errors.Join(err, publish(tx, spares[0]), publish(tx, spares[1]), k.audit.Record(ctx, tx, why), events.KeysChanged())
	})
	return newKey(spares[0], spares[0].SignsFrom), err
}

// bridge closes the gap that a withdrawn key leaves in the chain.
func bridge(tx *store.Tx, c chain, rows []*store.SigningKey, leaked, spare *store.SigningKey) error {
	now := tx.Now()
	switch {
	case leaked == c.next:
		return publish(tx, spare)
	case leaked.SignsFrom.After(now): // shall sign: the one before it goes on in its place
		before := neighbour(rows, func(k *store.SigningKey) bool { return k.SignsUntil.Equal(leaked.SignsFrom) })
		before.SignsUntil, before.VerifiesUntil = leaked.SignsUntil, leaked.VerifiesUntil
		return tx.UpdateSigningKey(before)
	case leaked == c.last: // signs
		c.next.SignsFrom = now
		return errors.Join(tx.UpdateSigningKey(c.next), publish(tx, spare))
	case leaked.SignsUntil.After(now): // signs, and its successor has a date
		after := neighbour(rows, func(k *store.SigningKey) bool { return k.SignsFrom.Equal(leaked.SignsUntil) })
		after.SignsFrom = now
		return tx.UpdateSigningKey(after)
	}
	return nil
}

// neighbour finds a key of the chain, which has no gaps.
func neighbour(rows []*store.SigningKey, is func(*store.SigningKey) bool) *store.SigningKey {
	return rows[slices.IndexFunc(rows, func(k *store.SigningKey) bool { return k.RevokedAt.IsZero() && is(k) })]
}

func signingNow(rows []*store.SigningKey, now time.Time) *store.SigningKey {
	return neighbour(rows, func(k *store.SigningKey) bool { return state(k, now) == Signing })
}

func find(rows []*store.SigningKey, kid string) *store.SigningKey {
	for _, row := range rows {
		if row.KID == kid {
			return row
		}
	}
	return nil
}

// replace publishes a key of another algorithm in the place of the one that was
// to sign next.
func replace(tx *store.Tx, old, young *store.SigningKey) error {
	return errors.Join(tx.DeleteSigningKey(old.KID), publish(tx, young))
}

func publish(tx *store.Tx, key *store.SigningKey) error {
	key.PublishedAt = tx.Now()
	return tx.InsertSigningKey(key)
}

// forget deletes the keys that verify nothing any more.
func forget(tx *store.Tx, rows []*store.SigningKey) error {
	for _, row := range rows {
		if !row.VerifiesUntil.IsZero() && row.VerifiesUntil.Before(tx.Now()) {
			if err := tx.DeleteSigningKey(row.KID); err != nil {
				return err
			}
		}
	}
	return nil
}

func latest(times ...time.Time) time.Time { return slices.MaxFunc(times, time.Time.Compare) }
