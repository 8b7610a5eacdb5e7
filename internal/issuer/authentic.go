package issuer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
)

// Each row of the table signing_keys has a tag: a message authentication code, under the master
// key, of every other column and of the database's id. An attacker with write access to the
// database therefore also needs the master key to add or change a key.
//
// All rows of one key set have the same counter. Each change of the key set writes every row
// again with a higher counter, so a row with a lower counter than other rows is refused. A
// KeySet remembers the highest counter that it has read, and so refuses an earlier key set,
// even if an attacker has put back every row.

// tagPurpose separates the tags from other uses of the master key: see [seal.Keys.MAC].
const tagPurpose = "row of signing_keys"

// errOldRow means that a row of signing_keys is authentic, and belongs to an earlier key set
// than other rows.
var errOldRow = errors.New("belongs to an earlier key set")

// errReturned means that a row of signing_keys is authentic, but that this process knows the
// key as withdrawn.
var errReturned = errors.New("was withdrawn before")

// refused describes a row of signing_keys that is not trusted, and the reason.
type refused struct {
	row *store.SigningKey
	why error
}

func (r refused) Error() string { return fmt.Sprintf("signing key %s: %v", r.row.KID, r.why) }

// Is makes errors.Is compare only the reason of a refused row, and not the errors that the
// reason wraps. A refused row that wraps seal.ErrWrongKey does not match seal.ErrWrongKey,
// since one row under an unknown master key must leave the other rows usable.
func (r refused) Is(target error) bool { return r.why == target }

// authentic holds the rows of the table signing_keys after the check of the tags: rows with a
// right tag, and refused rows.
type authentic struct {
	databaseID string              // the id of the database, which every tag authenticates
	rows       []*store.SigningKey // the key set, the oldest key first
	counter    int64               // the counter in every row of the key set; 0 if the key set has no row
	refused    []refused
}

// authenticate reads all rows of signing_keys, and checks the tags.
//
// Errors: seal.ErrWrongKey if a master key made the tags of the rows, and the master key
// file lacks that key; errors of the store.
func authenticate(tx *store.Tx, master *seal.Keys, databaseID string) (*authentic, error) {
	rows, err := tx.SigningKeys()
	if err != nil {
		return nil, err
	}
	a := &authentic{databaseID: databaseID}
	var good []*store.SigningKey
	var wrongKey error
	for _, row := range rows {
		why := master.CheckMAC(tagPurpose, message(row, databaseID), row.Tag)
		if why == nil {
			good = append(good, row)
			a.counter = max(a.counter, row.Counter)
			continue
		}
		a.refused = append(a.refused, refused{row, why})
		if errors.Is(why, seal.ErrWrongKey) {
			wrongKey = fmt.Errorf("signing key %s: %w", row.KID, why)
		}
	}
	if len(good) == 0 && wrongKey != nil {
		return nil, wrongKey
	}
	for _, row := range good {
		if row.Counter == a.counter {
			a.rows = append(a.rows, row)
		} else {
			a.refused = append(a.refused, refused{row, errOldRow})
		}
	}
	return a, nil
}

// databaseID returns the id of the database, and "" before the first start.
func databaseID(tx *store.Tx) (string, error) { return tx.Setting(store.DatabaseID) }

// tag sets the tag (the MAC) of a row of signing_keys, after all other columns are set.
func tag(row *store.SigningKey, master *seal.Keys, databaseID string) (err error) {
	row.Tag, err = master.MAC(tagPurpose, message(row, databaseID))
	return err
}

// message returns the bytes of a signing key's row that the row's tag (a MAC) authenticates.
// The length of each value stands before the value, so that two different rows never have the
// same bytes.
func message(row *store.SigningKey, databaseID string) []byte {
	var m []byte
	for _, value := range [][]byte{[]byte(databaseID), []byte(row.KID), []byte(row.Algorithm), row.PublicKey, row.SealedKey} {
		m = binary.BigEndian.AppendUint64(m, uint64(len(value)))
		m = append(m, value...)
	}
	for _, at := range []time.Time{row.PublishedAt, row.SignsFrom, row.SignsUntil, row.VerifiesUntil, row.RevokedAt} {
		decided := byte(1)
		if at.IsZero() {
			decided, at = 0, time.UnixMicro(0)
		}
		m = binary.BigEndian.AppendUint64(append(m, decided), uint64(at.UnixMicro()))
	}
	return binary.BigEndian.AppendUint64(m, uint64(row.Counter))
}

// nextCounter returns the counter of the key set after a change: above the counter before the
// change, and at least the clock's microseconds since 1970. With the clock in the counter, a
// change after the restore of a backup has a higher counter than every change that the restore
// has lost.
func nextCounter(before int64, now time.Time) int64 { return max(before+1, now.UnixMicro()) }
