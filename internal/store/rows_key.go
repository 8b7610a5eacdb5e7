package store

import "time"

// These constants name rows of the table settings.
const (
	// DatabaseID names the setting with the random id of the database.
	DatabaseID = "database_id"
	// OwnIssuer names the setting with the issuer of this installation, which all replicas
	// share. The first start of a server sets OwnIssuer.
	OwnIssuer = "issuer"
)

// SigningKey is a row of the table signing_keys. A field with a time is zero until the time is
// decided.
type SigningKey struct {
	KID           string
	Algorithm     string
	PublicKey     []byte // the public half, in PKIX form
	SealedKey     []byte // the private key in PKCS 8 form, sealed under a master key; empty for a withdrawn key
	PublishedAt   time.Time
	SignsFrom     time.Time
	SignsUntil    time.Time
	VerifiesUntil time.Time
	RevokedAt     time.Time
	Counter       int64  // a number that every row of the key set has, and that each change of the key set raises
	Tag           []byte // a MAC of the row, by which package issuer detects a forged row
}

const keyColumns = `kid, algorithm, public_key, sealed_key, published_at, signs_from, signs_until, verifies_until, revoked_at, counter, tag`

// columns returns pointers to the fields, in the order of keyColumns.
func (k *SigningKey) columns() []any {
	return []any{&k.KID, &k.Algorithm, &k.PublicKey, &k.SealedKey, (*timeColumn)(&k.PublishedAt), (*timeColumn)(&k.SignsFrom),
		(*timeColumn)(&k.SignsUntil), (*timeColumn)(&k.VerifiesUntil), (*timeColumn)(&k.RevokedAt), &k.Counter, &k.Tag}
}

// SigningKeys lists all signing keys, the oldest first. A person with write access to the
// database may have changed or added any row: package issuer checks the field Tag of each key.
func (tx *Tx) SigningKeys() ([]*SigningKey, error) {
	return queryAll(tx, (*SigningKey).columns, `SELECT `+keyColumns+` FROM signing_keys ORDER BY published_at, kid`)
}

// InsertSigningKey adds a signing key.
func (tx *Tx) InsertSigningKey(k *SigningKey) error {
	return tx.exec(`INSERT INTO signing_keys (`+keyColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
		k.KID, k.Algorithm, k.PublicKey, notNull(k.SealedKey), micros(k.PublishedAt),
		nullMicros(k.SignsFrom), nullMicros(k.SignsUntil), nullMicros(k.VerifiesUntil), nullMicros(k.RevokedAt), k.Counter, k.Tag)
}

// UpdateSigningKey writes every column that can change: SealedKey, every time except
// PublishedAt, Counter and Tag. The caller must have read the row in the same transaction.
func (tx *Tx) UpdateSigningKey(k *SigningKey) error {
	return tx.exec(`UPDATE signing_keys SET sealed_key = $2, signs_from = $3, signs_until = $4, verifies_until = $5, revoked_at = $6,
		counter = $7, tag = $8 WHERE kid = $1`,
		k.KID, notNull(k.SealedKey), nullMicros(k.SignsFrom), nullMicros(k.SignsUntil), nullMicros(k.VerifiesUntil), nullMicros(k.RevokedAt),
		k.Counter, k.Tag)
}

// notNull returns the bytes of b, and an empty slice for nil, for a column that refuses NULL: the
// SQLite driver reads empty bytes as nil, and a driver writes nil as NULL.
func notNull(b []byte) []byte { return append([]byte{}, b...) }

// DeleteSigningKey deletes a signing key.
func (tx *Tx) DeleteSigningKey(kid string) error {
	return tx.exec(`DELETE FROM signing_keys WHERE kid = $1`, kid)
}

// MACKey is a row of the table mac_keys. A MAC key makes and checks the MAC (message
// authentication code) in refresh tokens.
type MACKey struct {
	ID        int64
	SealedKey []byte
	CreatedAt time.Time
}

func (k *MACKey) columns() []any { return []any{&k.ID, &k.SealedKey, (*timeColumn)(&k.CreatedAt)} }

// MACKeys lists all MAC keys, the oldest first.
func (tx *Tx) MACKeys() ([]*MACKey, error) {
	return queryAll(tx, (*MACKey).columns, `SELECT id, sealed_key, created_at FROM mac_keys ORDER BY id`)
}

// InsertMACKey adds a MAC key.
func (tx *Tx) InsertMACKey(k *MACKey) error {
	return tx.exec(`INSERT INTO mac_keys (id, sealed_key, created_at) VALUES ($1, $2, $3)`, k.ID, k.SealedKey, micros(k.CreatedAt))
}

// DeleteMACKeys deletes every MAC key.
func (tx *Tx) DeleteMACKeys() error { return tx.exec(`DELETE FROM mac_keys`) }

// ResealMACKey replaces the column sealed_key of a MAC key, after the master key has
// changed.
func (tx *Tx) ResealMACKey(id int64, sealed []byte) error {
	return tx.exec(`UPDATE mac_keys SET sealed_key = $2 WHERE id = $1`, id, sealed)
}

// Setting returns a setting that all replicas share, and "" for a setting that was
// never set.
func (tx *Tx) Setting(name string) (string, error) {
	var value string
	err := tx.queryRows(into(&value), `SELECT value FROM settings WHERE name = $1`, name)
	return value, err
}

// SetSetting stores a setting that all replicas share.
func (tx *Tx) SetSetting(name, value string) error {
	return tx.queueExec(`INSERT INTO settings (name, value) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value`, name, value)
}
