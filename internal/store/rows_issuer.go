package store

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Issuer is a row of the table issuers: an issuer of tokens that are accepted as assertions.
// One of the fields Jwks, JwksURI and Discovery is set.
type Issuer struct {
	Name         string
	Issuer       string // the claim iss
	Jwks         string // a JSON Web Key Set (RFC 7517)
	JwksURI      string
	Discovery    bool   // true if the metadata of Issuer name the URL of the keys (RFC 8414)
	CAPEM        string // certificates of CAs for the connection to the issuer; empty: the CAs of the system
	MaxLifetime  time.Duration
	AllowPrivate bool // the keys may come from a private, loopback or link-local address
	CreatedAt    time.Time
	UpdatedAt    time.Time // later after each change of the row
}

const issuerColumns = `name, issuer, jwks, jwks_uri, discovery, ca_pem, max_lifetime, allow_private, created_at, updated_at`

// columns returns pointers to the fields, in the order of issuerColumns.
func (i *Issuer) columns() []any {
	return []any{&i.Name, &i.Issuer, &i.Jwks, &i.JwksURI, &i.Discovery, &i.CAPEM, (*durationColumn)(&i.MaxLifetime), &i.AllowPrivate,
		(*timeColumn)(&i.CreatedAt), (*timeColumn)(&i.UpdatedAt)}
}

// Issuer returns the issuer with a name. Errors: ErrNotFound.
func (tx *Tx) Issuer(name string) (*Issuer, error) {
	i := &Issuer{}
	return i, tx.queryRow(into(i.columns()...), `SELECT `+issuerColumns+` FROM issuers WHERE name = $1`, name)
}

// Issuers lists up to limit issuers in order of name, beginning after the name `after`.
func (tx *Tx) Issuers(after string, limit int) ([]*Issuer, error) {
	return queryAll(tx, (*Issuer).columns, `SELECT `+issuerColumns+` FROM issuers WHERE name > $1 ORDER BY name LIMIT $2`, after, limit)
}

// CountIssuers counts the rows of the table issuers. CountIssuers stops counting at limit.
func (tx *Tx) CountIssuers(limit int) (n int, err error) {
	return n, tx.queryRow(into(&n), `SELECT count(*) FROM (SELECT 1 FROM issuers LIMIT $1) AS counted`, limit)
}

// InsertIssuer adds an issuer. Errors: ErrExists if the name or the claim `iss` is taken.
// After ErrExists the transaction can continue.
func (tx *Tx) InsertIssuer(i *Issuer) error {
	inserted, err := queryColumn[string](tx, `INSERT INTO issuers (`+issuerColumns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING RETURNING name`,
		i.Name, i.Issuer, i.Jwks, i.JwksURI, i.Discovery, i.CAPEM, i.MaxLifetime.Microseconds(), i.AllowPrivate, micros(i.CreatedAt), micros(i.UpdatedAt))
	if err == nil && len(inserted) == 0 {
		return ErrExists
	}
	return err
}

// UpdateIssuer writes every column except name, issuer and created_at. The caller must have
// read the row in the same transaction, after [Tx.Exclusive].
func (tx *Tx) UpdateIssuer(i *Issuer) error {
	return tx.queueExec(`UPDATE issuers SET jwks = $2, jwks_uri = $3, discovery = $4, ca_pem = $5, max_lifetime = $6,
		allow_private = $7, updated_at = $8 WHERE name = $1`,
		i.Name, i.Jwks, i.JwksURI, i.Discovery, i.CAPEM, i.MaxLifetime.Microseconds(), i.AllowPrivate, micros(i.UpdatedAt))
}

// DeleteIssuer deletes a trusted issuer, and leaves the bindings of the issuer, which name the
// service account of each foreign subject.
func (tx *Tx) DeleteIssuer(name string) error {
	return tx.queueExec(`DELETE FROM issuers WHERE name = $1`, name)
}

// Binding is a row of the table bindings: a binding tells which service account signs in by an
// assertion of an issuer.
type Binding struct {
	ID        string
	Issuer    string // the name of the issuer
	Subject   string // the claim sub
	Claims    []BoundClaim
	UserID    string
	CreatedAt time.Time
}

// BoundClaim is a condition of a binding: a claim of the assertion must have a value.
type BoundClaim struct {
	Path  []string `json:"path"`  // the names of nested JSON objects, the outermost first, and then of the claim
	Value any      `json:"value"` // a string, a float64 or a bool
}

const bindingColumns = `id, issuer, subject, claims, user_id, created_at`

// columns returns pointers to the fields, in the order of bindingColumns.
func (b *Binding) columns() []any {
	return []any{&b.ID, &b.Issuer, &b.Subject, (*claimsColumn)(&b.Claims), &b.UserID, (*timeColumn)(&b.CreatedAt)}
}

// Binding returns the binding with an id. Errors: ErrNotFound.
func (tx *Tx) Binding(id string) (*Binding, error) {
	b := &Binding{}
	return b, tx.queryRow(into(b.columns()...), `SELECT `+bindingColumns+` FROM bindings WHERE id = $1`, id)
}

// BindingsOfSubject lists the bindings for a subject of the issuer with a name, at most
// limit.
func (tx *Tx) BindingsOfSubject(issuer, subject string, limit int) ([]*Binding, error) {
	return queryAll(tx, (*Binding).columns, `SELECT `+bindingColumns+` FROM bindings WHERE issuer = $1 AND subject = $2 LIMIT $3`,
		issuer, subject, limit)
}

// BindingFilter selects bindings. An empty field of BindingFilter excludes no binding.
type BindingFilter struct {
	Issuer string // the name of the issuer
	UserID string
}

// Bindings lists up to limit bindings in order of id, beginning after the id `after`.
func (tx *Tx) Bindings(f BindingFilter, after string, limit int) ([]*Binding, error) {
	const list = `SELECT ` + bindingColumns + ` FROM bindings WHERE `
	switch {
	case f.UserID != "" && f.Issuer != "":
		return queryAll(tx, (*Binding).columns, list+`user_id = $1 AND issuer = $2 AND id > $3 ORDER BY user_id, id LIMIT $4`, f.UserID, f.Issuer, after, limit)
	case f.UserID != "":
		return queryAll(tx, (*Binding).columns, list+`user_id = $1 AND id > $2 ORDER BY user_id, id LIMIT $3`, f.UserID, after, limit)
	case f.Issuer != "":
		return queryAll(tx, (*Binding).columns, list+`issuer = $1 AND id > $2 ORDER BY issuer, id LIMIT $3`, f.Issuer, after, limit)
	}
	return queryAll(tx, (*Binding).columns, list+`id > $1 ORDER BY id LIMIT $2`, after, limit)
}

// CountBindings counts the bindings that a filter with one set field selects. CountBindings
// stops counting at limit.
func (tx *Tx) CountBindings(f BindingFilter, limit int) (n int, err error) {
	if f.UserID != "" {
		return n, tx.queryRow(into(&n), `SELECT count(*) FROM (SELECT 1 FROM bindings WHERE user_id = $1 ORDER BY user_id, id LIMIT $2) AS counted`, f.UserID, limit)
	}
	return n, tx.queryRow(into(&n), `SELECT count(*) FROM (SELECT 1 FROM bindings WHERE issuer = $1 ORDER BY issuer, id LIMIT $2) AS counted`, f.Issuer, limit)
}

// InsertBinding adds a binding.
func (tx *Tx) InsertBinding(b *Binding) error {
	claims, err := json.Marshal(append([]BoundClaim{}, b.Claims...))
	if err != nil {
		return err
	}
	return tx.exec(`INSERT INTO bindings (`+bindingColumns+`) VALUES ($1, $2, $3, $4, $5, $6)`,
		b.ID, b.Issuer, b.Subject, string(claims), b.UserID, micros(b.CreatedAt))
}

// DeleteBinding deletes a binding.
func (tx *Tx) DeleteBinding(id string) error {
	return tx.queueExec(`DELETE FROM bindings WHERE id = $1`, id)
}

// UsersOfIssuer returns the ids of the users with bindings of an issuer, sorted.
func (tx *Tx) UsersOfIssuer(issuer string) ([]string, error) {
	ids, err := queryColumn[string](tx, `SELECT user_id FROM bindings WHERE issuer = $1 ORDER BY issuer, id`, issuer)
	slices.Sort(ids)
	return slices.Compact(ids), err
}

// durationColumn scans a column that holds microseconds.
type durationColumn time.Duration

// Scan implements sql.Scanner, for both drivers.
func (c *durationColumn) Scan(value any) error {
	us, ok := value.(int64)
	if !ok {
		return fmt.Errorf("a column should hold microseconds, and holds a %T", value)
	}
	*c = durationColumn(time.Duration(us) * time.Microsecond)
	return nil
}

// claimsColumn scans a column that holds a JSON array of bound claims.
type claimsColumn []BoundClaim

// Scan implements sql.Scanner, for both drivers.
func (c *claimsColumn) Scan(value any) error {
	array, ok := value.(string)
	if !ok {
		return fmt.Errorf("a column should hold a JSON array, and holds a %T", value)
	}
	claims := []BoundClaim{}
	if array == "[]" { // most bindings have no claims, and each exchange reads a binding
		*c = claims
		return nil
	}
	err := json.Unmarshal([]byte(array), &claims)
	*c = claims
	return err
}
