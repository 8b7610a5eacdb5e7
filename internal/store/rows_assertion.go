package store

import "time"

// IssuerStamp tells whether an issuer has changed: UpdatedAt is later after each change.
type IssuerStamp struct {
	Name      string
	Issuer    string // the claim iss
	UpdatedAt time.Time
}

// IssuerStamps lists the stamps of up to limit issuers in order of name. The keys in the rows
// are long, and change seldom.
func (tx *Tx) IssuerStamps(limit int) ([]*IssuerStamp, error) {
	return queryAll(tx, func(s *IssuerStamp) []any { return []any{&s.Name, &s.Issuer, (*timeColumn)(&s.UpdatedAt)} },
		`SELECT name, issuer, updated_at FROM issuers ORDER BY name LIMIT $1`, limit)
}

// BoundUser is a binding for a subject, with the bound account.
type BoundUser struct {
	Claims []BoundClaim
	User   User
}

var boundUsers = `SELECT b.claims, ` + qualified("u", userColumns) + `, ` + floorColumn + ` FROM bindings b JOIN users u ON u.id = b.user_id
	WHERE b.issuer = $1 AND b.subject = $2 AND EXISTS (SELECT 1 FROM issuers WHERE name = $1 AND updated_at = $3) LIMIT $4`

// BoundUsers lists up to limit bindings for a subject of an issuer, with the accounts as they
// are; none if the issuer is gone or has changed since the stamp.
//
// BoundUsers is one statement and locks nothing. So the bindings and the versions of the
// accounts belong together: whatever takes a binding away raises the version of the account,
// and verifiers refuse a token with the version from before.
func (tx *Tx) BoundUsers(of IssuerStamp, subject string, limit int) ([]*BoundUser, error) {
	return queryAll(tx, func(b *BoundUser) []any { return append([]any{(*claimsColumn)(&b.Claims)}, b.User.columns()...) },
		boundUsers, of.Name, subject, micros(of.UpdatedAt), limit)
}
