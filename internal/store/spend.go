package store

import (
	"context"
	"strconv"
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
	low = CASE WHEN {now} / {grace} = spent_at / {grace} THEN low ELSE current END,
	earlier_low = CASE {now} / {grace} - spent_at / {grace} WHEN 0 THEN earlier_low WHEN 1 THEN low ELSE current END {from}
	WHERE sessions.id = {id} AND current = {generation} AND ended_at IS NULL AND replace(sessions.audience, {audience}, '') <> sessions.audience
		AND refreshed_at + {idle} > {now} AND (sessions.created_at + {most}) / 1000000 * 1000000 > {now} AND {good}
	RETURNING {sessions}, {username}, {roles}, {version}`

// spendBy fills the template in. user makes an expression about the session's user
// u one that can stand there; name makes of an argument its place, or the column of
// arrays that it has become.
func spendBy(now, from string, user func(string) string, name func(place int, name string) string) string {
	pairs := []string{
		"{now}", now, "{from}", from, "{sessions}", qualified("sessions", sessionColumns),
		"{good}", user("u.id = sessions.user_id AND u.deleted_at IS NULL AND NOT u.disabled AND u.revoked_below <= sessions.born_ver"),
		"{username}", user("u.username"), "{roles}", user("u.roles"), "{version}", user("u.ver"),
	}
	for i, argument := range []string{"id", "generation", "audience", "idle", "most", "grace"} {
		pairs = append(pairs, "{"+argument+"}", name(i+1, argument))
	}
	return strings.NewReplacer(pairs...).Replace(spendTemplate)
}

// looked is for a user that is looked up, and joined for one that stands in FROM.
func looked(expression string) string {
	return "(SELECT " + expression + " FROM users u WHERE u.id = sessions.user_id)"
}

func joined(expression string) string { return expression }

func argument(place int, _ string) string { return "$" + strconv.Itoa(place) }

// SQLite returns nothing of a table that is joined.
var spendSQLite = spendBy("$7", "", looked, argument)

// args are those that all statements have.
func (s *Spend) args() []any {
	return []any{
		s.SessionID, s.Generation, s.quoted(), s.Idle.Microseconds(), s.Max.Microseconds(), s.span(),
	}
}

// quoted is the audience as a column holds it.
func (s *Spend) quoted() string { return `"` + s.Audience + `"` }

// span is the grace, by which times are divided.
func (s *Spend) span() int64 { return max(s.Grace.Microseconds(), 1) }

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
		return tx.queryRow(spent.scan, spendSQLite, append(spend.args(), micros(tx.Now()))...)
	})
}
