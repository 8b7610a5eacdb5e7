package federation

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// CreateBinding binds tokens of a trusted issuer to a service account.
//
// Errors: Invalid; ErrIssuerNotFound; user.ErrNotFound; errors of [caller.Caller.Check] and of
// the store.
func (r *Registry) CreateBinding(ctx context.Context, by caller.Caller, row store.Binding) (*store.Binding, error) {
	if err := checkBinding(&row); err != nil {
		return nil, err
	}
	err := r.write(ctx, by, func(tx *feed.Tx) error {
		if _, err := findIssuer(tx.Tx, row.Issuer); err != nil {
			return err
		}
		account, err := user.Find(tx.Tx, row.UserID)
		switch {
		case err != nil:
			return err
		case account.Kind != store.KindService:
			return invalid("user_id", "names a user: only a service account can be bound")
		}
		if err := r.checkPlace(tx.Tx, &row); err != nil {
			return err
		}
		row.ID, row.CreatedAt = user.NewID(), tx.Now()
		if err := tx.InsertBinding(&row); err != nil {
			return err
		}
		return r.audit.Record(ctx, tx.Tx, audit.OfBinding(audit.BindingCreated, by, &row, account.Username))
	})
	return &row, err
}

// checkPlace refuses a binding if an equal binding exists already, or if the subject, the
// issuer or the account has too many bindings.
func (r *Registry) checkPlace(tx *store.Tx, row *store.Binding) error {
	same, err := tx.BindingsOfSubject(row.Issuer, row.Subject, maxOfSubject)
	if err != nil {
		return err
	}
	for _, other := range same {
		if slices.EqualFunc(other.Claims, row.Claims, sameClaim) {
			return invalid("subject", "has the binding %s with the same claims already", other.ID)
		}
	}
	if len(same) >= maxOfSubject {
		return invalid("subject", "has %d bindings already", len(same))
	}
	if n, err := tx.CountBindings(store.BindingFilter{Issuer: row.Issuer}, maxOfIssuer); err != nil || n >= maxOfIssuer {
		return cmp.Or(err, invalid("issuer", "has %d bindings already", n))
	}
	if n, err := tx.CountBindings(store.BindingFilter{UserID: row.UserID}, maxOfUser); err != nil || n >= maxOfUser {
		return cmp.Or(err, invalid("user_id", "names an account with %d bindings already", n))
	}
	return nil
}

// Bindings returns up to limit bindings in order of id, beginning after the id `after`. next
// is the value of `after` for the next page; empty at the end.
func (r *Registry) Bindings(ctx context.Context, f store.BindingFilter, after string, limit int) (rows []*store.Binding, next string, err error) {
	err = r.store.Read(ctx, func(tx *store.Tx) (err error) {
		rows, err = tx.Bindings(f, after, limit+1)
		return err
	})
	if len(rows) > limit {
		return rows[:limit], rows[limit-1].ID, err
	}
	return rows, "", err
}

// DeleteBinding removes a binding, and revokes every token of the account.
//
// Errors: ErrBindingNotFound; errors of [caller.Caller.Check] and of the store.
func (r *Registry) DeleteBinding(ctx context.Context, by caller.Caller, id string) error {
	return r.write(ctx, by, func(tx *feed.Tx) error {
		b, err := tx.Binding(id)
		switch {
		case errors.Is(err, store.ErrNotFound):
			return ErrBindingNotFound
		case err != nil:
			return err
		}
		raised, err := user.RevokeEach(tx, []string{b.UserID})
		if err != nil {
			return err
		}
		username := ""
		if len(raised) > 0 {
			username = raised[0].Username
		}
		return r.remove(ctx, tx, by, b, username)
	})
}

// remove deletes a binding, and writes the removal into the security record.
func (r *Registry) remove(ctx context.Context, tx *feed.Tx, by caller.Caller, b *store.Binding, username string) error {
	if err := tx.DeleteBinding(b.ID); err != nil {
		return err
	}
	return r.audit.Record(ctx, tx.Tx, audit.OfBinding(audit.BindingDeleted, by, b, username))
}

func sameClaim(a, b store.BoundClaim) bool { return slices.Equal(a.Path, b.Path) && a.Value == b.Value }

// judged lists the claims that every exchange checks by fixed rules, so that no binding names
// such a claim.
var judged = []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti"}

// checkBinding checks the fields of a binding, and sorts the claims.
//
// Errors: Invalid.
func checkBinding(row *store.Binding) error {
	if err := checkText(row.Subject, maxTextLength); err != nil {
		return Invalid{"subject", err}
	}
	if len(row.Claims) > maxClaims {
		return invalid("claims", "must not be more than %d", maxClaims)
	}
	length := 0
	for _, claim := range row.Claims {
		n, err := checkClaim(claim)
		if err != nil {
			return Invalid{"claims", err}
		}
		length += n
	}
	if length > maxClaimsLength {
		return invalid("claims", "must not be longer than %d bytes together", maxClaimsLength)
	}
	row.Claims = slices.SortedFunc(slices.Values(row.Claims), func(a, b store.BoundClaim) int { return slices.Compare(a.Path, b.Path) })
	for i := 1; i < len(row.Claims); i++ {
		// In the sorted list, a path and the longer paths through its value are neighbors.
		before, path := row.Claims[i-1].Path, row.Claims[i].Path
		if len(before) <= len(path) && slices.Equal(before, path[:len(before)]) {
			return invalid("claims", "bind the claim %q twice, or a claim inside it", before)
		}
	}
	return nil
}

// checkClaim checks one bound claim, and returns the length of its texts.
func checkClaim(claim store.BoundClaim) (length int, err error) {
	switch {
	case len(claim.Path) == 0 || len(claim.Path) > maxPathLength:
		return 0, errors.New("must have a path of 1 to 8 names")
	case len(claim.Path) == 1 && slices.Contains(judged, claim.Path[0]):
		return 0, errors.New("must not bind iss, sub, aud, exp, nbf, iat or jti: every exchange judges these claims")
	}
	for _, name := range claim.Path {
		length += len(name)
		if err := checkText(name, maxClaimName); err != nil {
			return 0, invalid("a name of a path", "%w", err)
		}
	}
	switch value := claim.Value.(type) {
	case string:
		length += len(value)
		if err := checkText(value, maxTextLength); err != nil && value != "" {
			return 0, invalid("a value", "%w", err)
		}
	case float64:
		if !(math.Abs(value) <= maxExact) { // true for NaN too, which is no number
			return 0, errors.New("must not have a number beyond 2^53-1: programs read such a number as one of its neighbors")
		}
	case bool:
	default:
		return 0, errors.New("must have a value: a string, a number or a boolean")
	}
	return length, nil
}
