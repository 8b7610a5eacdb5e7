// Package federation knows the trusted issuers and the bindings: which token of which issuer
// signs in which service account. Each change is in the security record. A change that takes
// trust away revokes every token of the bound accounts, in the transaction of the change.
package federation

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

var (
	// ErrIssuerNotFound means that no trusted issuer has the name.
	ErrIssuerNotFound = errors.New("no such trusted issuer")
	// ErrIssuerExists means that another trusted issuer has the name or the claim `iss`.
	ErrIssuerExists = errors.New("a trusted issuer with this name or this claim `iss` exists already")
	// ErrBindingNotFound means that no binding has the id.
	ErrBindingNotFound = errors.New("no such binding")
)

// Invalid is the error for a field of an issuer or a binding that breaks a rule.
type Invalid struct {
	Field string // the name of the field, as in the proto files
	Err   error  // the rule, as text for the admin
}

func (i Invalid) Error() string { return i.Field + " " + i.Err.Error() }

// Unwrap returns the rule that the field breaks.
func (i Invalid) Unwrap() error { return i.Err }

func invalid(field, format string, args ...any) error {
	return Invalid{field, fmt.Errorf(format, args...)}
}

// Registry administers the trusted issuers and the bindings. A Registry is safe for
// concurrent use.
type Registry struct {
	store  *store.Store
	writer feed.Writer
	audit  *audit.Log
}

// NewRegistry returns the administration of a database's issuers and bindings. w commits the
// changes.
func NewRegistry(s *store.Store, w feed.Writer, a *audit.Log) *Registry {
	return &Registry{store: s, writer: w, audit: a}
}

// write runs fn in a transaction, after checking the caller. One change runs at a time, at all
// replicas together: no binding is made for an issuer or an account that another change
// removes.
func (r *Registry) write(ctx context.Context, by caller.Caller, fn func(*feed.Tx) error) error {
	return r.writer.Write(ctx, func(tx *feed.Tx) error {
		if err := tx.Exclusive(); err != nil {
			return err
		}
		if err := by.Check(tx.Tx); err != nil {
			return err
		}
		return fn(tx)
	})
}

// CreateIssuer makes a trusted issuer. A MaxLifetime of zero means one day.
//
// Errors: Invalid; ErrIssuerExists; errors of [caller.Caller.Check] and of the store.
func (r *Registry) CreateIssuer(ctx context.Context, by caller.Caller, row store.Issuer) (*store.Issuer, error) {
	row.MaxLifetime = cmp.Or(row.MaxLifetime, defaultLifetime)
	if err := checkIssuer(&row); err != nil {
		return nil, err
	}
	err := r.write(ctx, by, func(tx *feed.Tx) error {
		if own, err := tx.Setting(store.OwnIssuer); err != nil {
			return err
		} else if row.Issuer == own {
			return invalid("issuer", "is this server's own issuer: the tokens of this server are no assertions")
		}
		if n, err := tx.CountIssuers(maxIssuers); err != nil {
			return err
		} else if n >= maxIssuers {
			return invalid("name", "is one too many: there are %d trusted issuers; remove one first", n)
		}
		row.CreatedAt, row.UpdatedAt = tx.Now(), tx.Now()
		if err := tx.InsertIssuer(&row); errors.Is(err, store.ErrExists) {
			return ErrIssuerExists
		} else if err != nil {
			return err
		}
		return r.audit.Record(ctx, tx.Tx, ofIssuer(audit.IssuerCreated, by, &row, ""))
	})
	return &row, err
}

// Issuer returns the trusted issuer with a name.
//
// Errors: ErrIssuerNotFound; errors of the store.
func (r *Registry) Issuer(ctx context.Context, name string) (row *store.Issuer, err error) {
	err = r.store.Read(ctx, func(tx *store.Tx) (err error) {
		row, err = findIssuer(tx, name)
		return err
	})
	return row, err
}

// findIssuer returns the trusted issuer with a name. Errors: ErrIssuerNotFound; errors of the
// store.
func findIssuer(tx *store.Tx, name string) (*store.Issuer, error) {
	row, err := tx.Issuer(name)
	if errors.Is(err, store.ErrNotFound) {
		return nil, ErrIssuerNotFound
	}
	return row, err
}

// Issuers returns up to limit issuers in order of name, beginning after the name `after`. next
// is the value of `after` for the next page; empty at the end. A page ends early if the
// documents of more issuers would not fit into a gRPC message.
func (r *Registry) Issuers(ctx context.Context, after string, limit int) (rows []*store.Issuer, next string, err error) {
	err = r.store.Read(ctx, func(tx *store.Tx) error {
		rows, next = nil, ""
		length, last := 0, after
		for {
			some, err := tx.Issuers(last, pageStep)
			for _, row := range some {
				if length += len(row.Jwks) + len(row.CAPEM); len(rows) == limit || len(rows) > 0 && length > maxPageLength {
					next = last
					return nil
				}
				rows, last = append(rows, row), row.Name
			}
			if err != nil || len(some) < pageStep {
				return err
			}
		}
	})
	return rows, next, err
}

// Change holds the new values for [Registry.UpdateIssuer]. If a field is nil, the issuer keeps
// the old value. Issuer is empty or the present claim `iss`: another value is refused.
type Change struct {
	Issuer       string
	Source       *KeySource
	CAPEM        *string
	MaxLifetime  *time.Duration
	AllowPrivate *bool
}

// KeySource says from where the keys of an issuer come; see [store.Issuer].
type KeySource struct {
	Jwks, JwksURI string
	Discovery     bool
}

// UpdateIssuer changes a trusted issuer. New keys, another URL and another CA revoke every token
// of the bound accounts: a token can come from an assertion that is no longer trusted.
//
// Errors: Invalid; ErrIssuerNotFound; errors of [caller.Caller.Check] and of the store.
func (r *Registry) UpdateIssuer(ctx context.Context, by caller.Caller, name string, change Change) (row *store.Issuer, err error) {
	err = r.write(ctx, by, func(tx *feed.Tx) error {
		if row, err = findIssuer(tx.Tx, name); err != nil {
			return err
		}
		if change.Issuer != "" && change.Issuer != row.Issuer {
			return invalid("issuer", "cannot be changed: create another issuer")
		}
		before := *row
		change.apply(row)
		if err := checkIssuer(row); err != nil {
			return err
		}
		if *row == before {
			return nil
		}
		row.UpdatedAt = tx.Now()
		if !row.UpdatedAt.After(before.UpdatedAt) { // the clock was set back, and UpdatedAt must still grow
			row.UpdatedAt = before.UpdatedAt.Add(time.Microsecond)
		}
		if err := tx.UpdateIssuer(row); err != nil {
			return err
		}
		consequence := ""
		if before.Jwks != row.Jwks || before.JwksURI != row.JwksURI || before.Discovery != row.Discovery || before.CAPEM != row.CAPEM {
			ended, err := revokeBound(tx, name)
			if err != nil {
				return err
			}
			consequence = fmt.Sprintf("; the tokens of %d service accounts are revoked", len(ended))
		}
		return r.audit.Record(ctx, tx.Tx, ofIssuer(audit.IssuerUpdated, by, row, consequence))
	})
	return row, err
}

// apply writes the new values into the row of an issuer.
func (c Change) apply(row *store.Issuer) {
	if c.Source != nil {
		row.Jwks, row.JwksURI, row.Discovery = c.Source.Jwks, c.Source.JwksURI, c.Source.Discovery
	}
	if c.CAPEM != nil {
		row.CAPEM = *c.CAPEM
	}
	if c.MaxLifetime != nil {
		row.MaxLifetime = cmp.Or(*c.MaxLifetime, defaultLifetime)
	}
	if c.AllowPrivate != nil {
		row.AllowPrivate = *c.AllowPrivate
	}
}

// DeleteIssuer removes a trusted issuer and its bindings, and revokes every token of the bound
// accounts.
//
// Errors: ErrIssuerNotFound; errors of [caller.Caller.Check] and of the store.
func (r *Registry) DeleteIssuer(ctx context.Context, by caller.Caller, name string) error {
	return r.write(ctx, by, func(tx *feed.Tx) error {
		row, err := findIssuer(tx.Tx, name)
		if err != nil {
			return err
		}
		bindings, err := tx.Bindings(store.BindingFilter{Issuer: name}, "", maxOfIssuer)
		if err != nil {
			return err
		}
		ended, err := revokeBound(tx, name)
		if err != nil {
			return err
		}
		consequence := fmt.Sprintf("; bindings removed: %d, service accounts with revoked tokens: %d", len(bindings), len(ended))
		if err := r.audit.Record(ctx, tx.Tx, ofIssuer(audit.IssuerDeleted, by, row, consequence)); err != nil {
			return err
		}
		for _, b := range bindings {
			if err := r.remove(ctx, tx, by, b, ended[b.UserID]); err != nil {
				return err
			}
		}
		return tx.DeleteIssuer(name)
	})
}

// revokeBound revokes every token of the accounts with bindings of an issuer, and returns the
// usernames by id.
func revokeBound(tx *feed.Tx, issuer string) (map[string]string, error) {
	ids, err := tx.UsersOfIssuer(issuer)
	if err != nil {
		return nil, err
	}
	raised, err := user.RevokeEach(tx, ids)
	names := map[string]string{}
	for _, r := range raised {
		names[r.UserID] = r.Username
	}
	return names, err
}

// ofIssuer returns the event of a changed issuer for the security record. consequence is a text
// that follows the description of the issuer.
func ofIssuer(what audit.Type, by caller.Caller, row *store.Issuer, consequence string) audit.Event {
	keys := "discovered"
	switch {
	case row.Jwks != "":
		keys = "a document"
	case row.JwksURI != "":
		keys = row.JwksURI
	}
	detail := fmt.Sprintf("name: %s, issuer: %s, keys: %s, own CA: %t, private addresses: %t, longest lifetime: %s",
		row.Name, row.Issuer, keys, row.CAPEM != "", row.AllowPrivate, row.MaxLifetime)
	return audit.Event{Type: what, ActorID: by.ID, ActorName: by.Name, Detail: detail + consequence}
}
