package user

import (
	"context"
	"errors"
	"slices"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/store"
)

var (
	// ErrKind means that a change would give an account another kind.
	ErrKind = errors.New("the kind of an account never changes")
	// ErrService means that the call sets a password of a service account.
	ErrService = errors.New("a service account has no password")
	// ErrNotService means that the call sets audiences of a user.
	ErrNotService = errors.New("only a service account has audiences")
)

// Service describes a new service account.
type Service struct {
	Name        Name
	Roles       Roles
	Audiences   Audiences
	DelegatesTo Audiences
}

// CreateService makes a service account.
//
// Errors: ErrMalformed if the name mixes scripts; ErrExists; store.ErrUnfinished if programs
// that do not know service accounts can use the database; errors of [caller.Caller.Check] and of
// the store.
func (u *Users) CreateService(ctx context.Context, by caller.Caller, s Service) (row *store.User, err error) {
	if err := s.Name.checkScripts(); err != nil {
		return nil, err
	}
	err = u.writer.Write(ctx, func(tx *feed.Tx) error {
		if err := by.Check(tx.Tx); err != nil {
			return err
		}
		if err := tx.AllowServices(); err != nil {
			return err
		}
		row = &store.User{Kind: store.KindService, Username: string(s.Name), Roles: s.Roles, Audiences: s.Audiences, DelegatesTo: s.DelegatesTo}
		if err := insert(tx.Tx, row); err != nil {
			return err
		}
		return u.audit.Record(ctx, tx.Tx, Created(by, row))
	})
	return row, err
}

// scope puts the new audiences of a Change into the row of a service account.
//
// Errors: ErrNotService.
func (c *Change) scope(row *store.User) (e effect, err error) {
	for _, list := range []struct {
		next *Audiences
		of   *[]string
	}{{c.Audiences, &row.Audiences}, {c.DelegatesTo, &row.DelegatesTo}} {
		if list.next == nil || slices.Equal(*list.of, *list.next) {
			continue
		}
		if row.Kind != store.KindService {
			return unchanged, ErrNotService
		}
		*list.of, e = *list.next, stale
	}
	return e, nil
}
