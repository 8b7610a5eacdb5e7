package store

import (
	"context"
	"time"
)

// Spend is the ordinary refresh of a session: the newest refresh token is spent. One
// conditional UPDATE checks the session and the user, and advances the generations.
type Spend struct {
	SessionID  string
	Generation int64  // of the token presented
	Audience   string // must be among the session's
	Grace      time.Duration
	Idle, Max  time.Duration // the session's lifetime without a refresh, and in all
}

// Spent is the session after the refresh, and the user's part of an access token.
type Spent struct {
	Session  Session // RefreshedAt is the time of the refresh
	Username string
	Roles    []string
	Version  int64
}

// Spend spends a refresh token, if the token is the newest of a live session and the
// user may refresh. Errors: ErrNotFound, with nothing changed, for any other token,
// whatever the reason; ErrUncertain; ErrUnavailable.
//
// After ErrUncertain a caller may call Spend again: a token spent before is ErrNotFound.
func (s *Store) Spend(ctx context.Context, spend *Spend) (*Spent, error) {
	return s.engine.spend(ctx, spend)
}

// Three statements spend a token: for SQLite, for a single refresh on PostgreSQL, and for
// a batch. They differ in three places:
//
//   - The clock. SQLite receives the time as an argument; PostgreSQL reads the
//     server's clock. Neither engine parses the clock of the other.
//   - The user. PostgreSQL joins the user for a single refresh: 30 µs of the server's
//     time, where four looks into users take 38 µs. SQLite's RETURNING knows no joined
//     table. In a batch, PostgreSQL without statistics might join all users first, and
//     visit every session of theirs.
//   - The arguments. A batch has one array for each argument, and returns the position
//     of the member. For thirty members PostgreSQL takes 40 µs each, and 80 µs for
//     thirty single statements in a pipeline.
//
// The columns set are the numbers of internal/session/generation.go, in advance:
//
//	column        becomes                                     line of advance
//	current       current + 1                                 next.Current = g.Current+1
//	spent         current                                     next.Spent = g.Current
//	spent_at      now                                         next.SpentAt = now
//	low           same span: low                              case 0: stays
//	              otherwise: current                          case 1, default: next.Low = g.Current
//	earlier_low   same span: earlier_low                      case 0: stays
//	              next span: low                              case 1: next.EarlierLow = g.Low
//	              otherwise: current                          default: next.EarlierLow = g.Current
//	late, late_at stay                                        next := g
//
// A span is a time divided by the grace, as in the function span there. The condition
// on current is the case presented == g.Current of present. The package comment names
// the tests that hold statements and code together.
//
// The other conditions are those of internal/session on a live session and its user.
// Access tokens count whole seconds, so a session's age ends with a whole second.

// $1 is the session, $2 the generation, $3 the audience in quotes, $4 idle, $5 max, $6
// grace, $7 now; durations and times are in microseconds.
const spendSQLite = `UPDATE sessions SET
		refreshed_at = $7, current = current + 1, spent = current, spent_at = $7,
		low = CASE WHEN $7 / $6 = spent_at / $6 THEN low ELSE current END,
		earlier_low = CASE $7 / $6 - spent_at / $6 WHEN 0 THEN earlier_low WHEN 1 THEN low ELSE current END
	WHERE id = $1 AND current = $2 AND ended_at IS NULL AND replace(audience, $3, '') <> audience
		AND refreshed_at + $4 > $7 AND (created_at + $5) / 1000000 * 1000000 > $7
		AND (SELECT u.deleted_at IS NULL AND NOT u.disabled AND u.revoked_below <= sessions.born_ver FROM users u WHERE u.id = sessions.user_id)
	RETURNING id, user_id, born_ver, audience, created_at, refreshed_at, ended_at,
		current, spent, spent_at, low, earlier_low, late, late_at,
		(SELECT u.username FROM users u WHERE u.id = sessions.user_id),
		(SELECT u.roles FROM users u WHERE u.id = sessions.user_id),
		(SELECT u.ver FROM users u WHERE u.id = sessions.user_id)`

// The arguments are those of spendSQLite, up to $6.
const spendPostgres = `UPDATE sessions AS s SET
		refreshed_at = clock.now, current = current + 1, spent = current, spent_at = clock.now,
		low = CASE WHEN clock.now / $6 = spent_at / $6 THEN low ELSE current END,
		earlier_low = CASE clock.now / $6 - spent_at / $6 WHEN 0 THEN earlier_low WHEN 1 THEN low ELSE current END
	FROM users u, (SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) AS now) AS clock
	WHERE s.id = $1 AND current = $2 AND ended_at IS NULL AND replace(s.audience, $3, '') <> s.audience
		AND refreshed_at + $4 > clock.now AND (s.created_at + $5) / 1000000 * 1000000 > clock.now
		AND u.id = s.user_id AND u.deleted_at IS NULL AND NOT u.disabled AND u.revoked_below <= s.born_ver
	RETURNING s.id, s.user_id, s.born_ver, s.audience, s.created_at, s.refreshed_at, s.ended_at,
		s.current, s.spent, s.spent_at, s.low, s.earlier_low, s.late, s.late_at, u.username, u.roles, u.ver`

// The arguments are arrays of those of spendPostgres. The last column is the member's
// position, from 1.
const spendPostgresBatch = `UPDATE sessions AS s SET
		refreshed_at = clock.now, current = current + 1, spent = current, spent_at = clock.now,
		low = CASE WHEN clock.now / m.grace = spent_at / m.grace THEN low ELSE current END,
		earlier_low = CASE clock.now / m.grace - spent_at / m.grace WHEN 0 THEN earlier_low WHEN 1 THEN low ELSE current END
	FROM unnest(CAST($1 AS TEXT[]), CAST($2 AS BIGINT[]), CAST($3 AS TEXT[]), CAST($4 AS BIGINT[]), CAST($5 AS BIGINT[]),
			CAST($6 AS BIGINT[])) WITH ORDINALITY AS m (id, generation, audience, idle, most, grace, position),
		(SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) AS now) AS clock
	WHERE s.id = m.id AND current = m.generation AND ended_at IS NULL AND replace(s.audience, m.audience, '') <> s.audience
		AND refreshed_at + m.idle > clock.now AND (s.created_at + m.most) / 1000000 * 1000000 > clock.now
		AND (SELECT u.deleted_at IS NULL AND NOT u.disabled AND u.revoked_below <= s.born_ver FROM users u WHERE u.id = s.user_id)
	RETURNING s.id, s.user_id, s.born_ver, s.audience, s.created_at, s.refreshed_at, s.ended_at,
		s.current, s.spent, s.spent_at, s.low, s.earlier_low, s.late, s.late_at,
		(SELECT u.username FROM users u WHERE u.id = s.user_id),
		(SELECT u.roles FROM users u WHERE u.id = s.user_id),
		(SELECT u.ver FROM users u WHERE u.id = s.user_id), m.position`

// args returns the arguments of a single statement, in order; SQLite adds the time.
func (s *Spend) args() []any {
	return []any{s.SessionID, s.Generation, s.quotedAudience(), s.Idle.Microseconds(), s.Max.Microseconds(), s.grace()}
}

// quotedAudience returns the audience as an element of the column's JSON array.
func (s *Spend) quotedAudience() string { return `"` + s.Audience + `"` }

// grace returns the length of a span in microseconds, at least 1, as span in
// internal/session does.
func (s *Spend) grace() int64 { return max(s.Grace.Microseconds(), 1) }

// columns returns where to scan the columns of RETURNING.
func (s *Spent) columns() []any {
	return append(s.Session.columns(), &s.Username, (*wordsColumn)(&s.Roles), &s.Version)
}
