package store

import "time"

// IssuerStamp tells whether an issuer has changed: UpdatedAt is later after each change.
type IssuerStamp struct {
	Name      string
	Issuer    string // the claim iss
	UpdatedAt time.Time
}

// IssuerStamps lists the stamps of up to limit issuers in order of name. A stamp is short: the
// caller reads the long keys of an issuer only after the stamp has changed.
func (tx *Tx) IssuerStamps(limit int) ([]*IssuerStamp, error) {
	return queryAll(tx, func(s *IssuerStamp) []any { return []any{&s.Name, &s.Issuer, (*timeColumn)(&s.UpdatedAt)} },
		`SELECT name, issuer, updated_at FROM issuers ORDER BY name LIMIT $1`, limit)
}

// BoundUser is a binding for a subject of an issuer, and the account to which the binding
// leads.
type BoundUser struct {
	Claims []BoundClaim
	User   User // only ID, Username, Roles, Disabled, Version and Floor are set
}

func (b *BoundUser) columns() []any {
	u := &b.User
	return []any{(*claimsColumn)(&b.Claims), &u.ID, &u.Username, (*wordsColumn)(&u.Roles), &u.Disabled, &u.Version, &u.Floor}
}

const boundUsers = `SELECT b.claims, u.id, u.username, u.roles, u.disabled, u.ver, ` + floorColumn + `
	FROM bindings b JOIN users u ON u.id = b.user_id AND u.kind = 'SERVICE' AND u.deleted_at IS NULL
	WHERE b.issuer = $1 AND b.subject = $2 AND EXISTS (SELECT 1 FROM issuers WHERE name = $1 AND updated_at = $3) LIMIT $4`

// BoundUsers lists up to limit bindings for a subject of an issuer, with the current rows of
// the bound accounts. BoundUsers leaves out a binding of a deleted account. The list is empty if
// the issuer was deleted or has changed since the stamp.
//
// BoundUsers is one statement and locks nothing. So the bindings and the versions of the
// accounts belong to the same moment: a change that deletes a binding raises the version of the
// account, and verifiers refuse a token with the earlier version.
func (tx *Tx) BoundUsers(of IssuerStamp, subject string, limit int) ([]*BoundUser, error) {
	return queryAll(tx, (*BoundUser).columns, boundUsers, of.Name, subject, micros(of.UpdatedAt), limit)
}
