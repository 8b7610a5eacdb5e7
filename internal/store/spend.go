package store

import (
	"context"
	"strings"
	"time"
)

// Spend is the ordinary refresh of a session: its newest refresh token is spent.
// It is one conditional UPDATE, which looks at the session and its user at once.
type Spend struct {
	SessionID  string
	Generation int64  // the one presented
	Audience   string // one that the session must be for
	Grace      time.Duration
	Idle, Max  time.Duration
}

// Spent is the session behind the spending, and what of its user a token says.
type Spent struct {
	Session  Session
	Username string
	Roles    []string
	Version  int64
	Now      time.Time
}

// Spend spends a refresh token if it is the newest of a session that is alive,
// whose user may use it; ErrNotFound, with nothing changed, says that it is not
// so, and not why. What the numbers become is what package session's advance
// makes of them.
//
// To spend again what may have been spent, since the outcome is unknown, is
// ErrNotFound, and does no harm.
func (s *Store) Spend(ctx context.Context, spend *Spend) (*Spent, error) {
	return s.engine.spend(ctx, spend)
}

const spendTemplate = `UPDATE sessions SET refreshed_at = {now}, current = current + 1, spent = current, spent_at = {now},
	low = CASE WHEN {now} / $6 = spent_at / $6 THEN low ELSE current END,
	earlier_low = CASE {now} / $6 - spent_at / $6 WHEN 0 THEN earlier_low WHEN 1 THEN low ELSE current END {from}
	WHERE id = $1 AND current = $2 AND ended_at IS NULL AND replace(audience, $3, '') <> audience
		AND refreshed_at + $4 > {now} AND (created_at + $5) / 1000000 * 1000000 > {now}
		AND EXISTS (SELECT 1 FROM users u WHERE u.id = sessions.user_id AND u.deleted_at IS NULL AND NOT u.disabled
			AND u.revoked_below <= sessions.born_ver)
	RETURNING ` + sessionColumns + `, (SELECT username FROM users u WHERE u.id = sessions.user_id),
		(SELECT roles FROM users u WHERE u.id = sessions.user_id), (SELECT ver FROM users u WHERE u.id = sessions.user_id)`

var (
	spendSQLite   = strings.NewReplacer("{now}", "$7", "{from}", "").Replace(spendTemplate)
	spendPostgres = strings.NewReplacer("{now}", "clock.now", "{from}", "FROM (SELECT "+pgNow+" AS now) AS clock").Replace(spendTemplate)
)

// args are those that both engines have.
func (s *Spend) args() []any {
	return []any{
		s.SessionID, s.Generation, `"` + s.Audience + `"`, s.Idle.Microseconds(), s.Max.Microseconds(), max(s.Grace.Microseconds(), 1),
	}
}

func (s *Spent) scan(r row) error {
	into, finish := s.Session.columns()
	var roles string
	if err := r.Scan(append(into, &s.Username, &roles, &s.Version)...); err != nil {
		return err
	}
	err := finish()
	s.Roles, s.Now = strings.Fields(roles), s.Session.RefreshedAt
	return err
}

func (s *sqliteDB) spend(ctx context.Context, spend *Spend) (*Spent, error) {
	spent := &Spent{}
	return spent, s.write(ctx, func(tx *Tx) error {
		return tx.one(spent.scan, spendSQLite, append(spend.args(), micros(tx.Now()))...)
	})
}
