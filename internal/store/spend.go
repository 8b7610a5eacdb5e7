package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/watchword-auth/watchword/internal/spans"
)

// Spend is the request for the ordinary refresh of a session: the client presents the newest
// refresh token. One conditional UPDATE checks the session and the user, and advances the
// session's generations (the numbers of its refresh tokens).
type Spend struct {
	SessionID  string
	Generation int64  // the generation of the presented refresh token
	Audience   string // must be in the audience of the session
	Grace      time.Duration
	Idle, Max  time.Duration // the longest time between two refreshes, and the longest life of the session
}

// Spent holds what the new tokens of a session need, and no more: each column of a statement
// costs every refresh about half a microsecond.
type Spent struct {
	UserID      string
	Audience    []string
	CreatedAt   time.Time
	RefreshedAt time.Time // the time of the refresh
	Username    string
	Roles       []string
	Version     int64
	Floor       int64 // the floor for versions (see [Tx.HoldFloor]) at the refresh
}

// TokenVersion returns the version for the new access token, as [User.TokenVersion] does.
func (s *Spent) TokenVersion() int64 { return max(s.Version, s.Floor) }

// Spend uses up a refresh token, if the token is the newest of a live session and the user is
// allowed to refresh. Errors: ErrNotFound for any other token, whatever the reason, and then
// nothing has changed; ErrUncertain; ErrUnavailable.
//
// Spend calls prepare, which makes the new tokens, in the goroutine of the caller. On SQLite,
// Spend calls prepare while the commit is written. Spend calls prepare again if the statement has
// to run again. So a caller uses the result of the last call of prepare, and only after Spend has
// returned nil: until then, the refresh can still fail.
//
// After ErrUncertain a caller may call Spend again: if the first call has spent the
// token, the second call returns ErrNotFound.
func (s *Store) Spend(ctx context.Context, spend *Spend, prepare func(*Spent)) error {
	ctx, spending := s.startSpan(ctx, "store.refresh")
	began := time.Now()
	var prepared *Spent
	spent, err := s.engine.spend(ctx, spend, func(row *Spent) { prepared = row; prepare(row) })
	s.spends.Add(time.Since(began))
	spans.End(spending, errors.Is(err, ErrUnavailable))
	if err == nil && spent != prepared {
		prepare(spent)
	}
	return s.outage.note(ctx, began, err)
}

// Three statements spend a token: one for SQLite, one for a single refresh on
// PostgreSQL, and one for a batch on PostgreSQL. The statements differ in four places:
//
//  - The clock: SQLite receives the time as an argument, and PostgreSQL reads the clock of
//    PostgreSQL's server.
//  - The user: for a single refresh PostgreSQL joins the table users, which takes 30 µs of the
//    server's time; four subqueries on users take 38 µs. SQLite's RETURNING cannot use a
//    joined table, and each subquery on users takes SQLite 2 to 3 µs. So SQLite's statement has
//    one subquery for three columns, as the three lines of a text. The statement for a batch has
//    the same subquery, since PostgreSQL without statistics might join all users first, and read
//    every session of these users. A subquery for each column takes PostgreSQL a tenth more.
//  - The floor for versions: for a single refresh PostgreSQL joins the row of the floor, which
//    takes 8 µs less than a subquery. The statement for a batch reads the floor once.
//  - The arguments: the statement for a batch takes one array for each argument, and returns for
//    each refresh the position in the arrays. In a batch of thirty refreshes PostgreSQL takes
//    40 µs for each refresh; as thirty single statements in a pipeline, 80 µs for each.
//
// The statements set the columns of a session as the function advance in
// internal/session/generation.go sets the fields of Generations:
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
//	repeated, run stay                                        next := g
//
// A span is a time divided by the refresh grace, as in the function span of
// internal/session/generation.go. The condition on the column current is the case presented ==
// g.Current of the function present. The comment of package store names the tests that compare
// these statements with the Go code of package session.
//
// The conditions on times and on the user are the rules of package session for a live session
// and its user. The times in access tokens are whole seconds, so a session's longest life ends
// with a whole second.

// Arguments: $1 the session's id, $2 the generation, $3 the audience in quotes, $4 the
// longest time between two refreshes (idle), $5 the longest life (max), $6 the refresh
// grace, $7 now, $8 the number of the session's row (see [SessionRow]). Durations and times are in
// microseconds.
//
// spendSQLiteByID takes no $8, and finds the sessions in other rows: an earlier program or a VACUUM has
// chosen the number of the row.
const (
	spendSQLite     = spendSQLiteSet + ` WHERE rowid = $8 AND id = $1 ` + spendSQLiteIf
	spendSQLiteByID = spendSQLiteSet + ` WHERE id = $1 ` + spendSQLiteIf
)

const spendSQLiteSet = `UPDATE sessions SET
		refreshed_at = $7, current = current + 1, spent = current, spent_at = $7,
		low = CASE WHEN $7 / $6 = spent_at / $6 THEN low ELSE current END,
		earlier_low = CASE $7 / $6 - spent_at / $6 WHEN 0 THEN earlier_low WHEN 1 THEN low ELSE current END`

const spendSQLiteIf = `AND current = $2 AND ended_at IS NULL AND replace(audience, $3, '') <> audience
		AND refreshed_at + $4 > $7 AND (created_at + $5) / 1000000 * 1000000 > $7
		AND (SELECT u.deleted_at IS NULL AND NOT u.disabled AND u.revoked_below <= sessions.born_ver FROM users u WHERE u.id = sessions.user_id)
	RETURNING user_id, audience, created_at, refreshed_at,
		(SELECT u.username || char(10) || u.roles || char(10) || u.ver FROM users u WHERE u.id = sessions.user_id), ` + floorColumn

// spendPostgres takes the arguments of spendSQLite, from $1 to $6.
const spendPostgres = `UPDATE sessions AS s SET
		refreshed_at = clock.now, current = current + 1, spent = current, spent_at = clock.now,
		low = CASE WHEN clock.now / $6 = spent_at / $6 THEN low ELSE current END,
		earlier_low = CASE clock.now / $6 - spent_at / $6 WHEN 0 THEN earlier_low WHEN 1 THEN low ELSE current END
	FROM users u LEFT JOIN settings f ON f.name = '` + versionFloor + `',
		(SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) AS now) AS clock
	WHERE s.id = $1 AND current = $2 AND ended_at IS NULL AND replace(s.audience, $3, '') <> s.audience
		AND refreshed_at + $4 > clock.now AND (s.created_at + $5) / 1000000 * 1000000 > clock.now
		AND u.id = s.user_id AND u.deleted_at IS NULL AND NOT u.disabled AND u.revoked_below <= s.born_ver
	RETURNING s.user_id, s.audience, s.created_at, s.refreshed_at,
		u.username, u.roles, u.ver, COALESCE(CAST(f.value AS BIGINT), 0)`

// spendPostgresBatch takes an array for each argument of spendPostgres. The last
// column of a row of the result is the position, from 1, of the refresh token in the arrays.
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
	RETURNING s.user_id, s.audience, s.created_at, s.refreshed_at,
		(SELECT u.username || chr(10) || u.roles || chr(10) || u.ver FROM users u WHERE u.id = s.user_id), ` + floorColumn + `, m.position`

// args returns the arguments $1 to $6 of the statement for one refresh, in order. SQLite also
// needs the time, as $7.
func (s *Spend) args() []any {
	return []any{s.SessionID, s.Generation, s.quotedAudience(), s.Idle.Microseconds(), s.Max.Microseconds(), s.grace()}
}

// quotedAudience returns the audience as the JSON array in the column audience holds
// it.
func (s *Spend) quotedAudience() string { return `"` + s.Audience + `"` }

// grace returns the refresh grace in microseconds, at least 1, since the statements
// divide by the grace. The function span in internal/session also uses at least 1.
func (s *Spend) grace() int64 { return max(s.Grace.Microseconds(), 1) }

// columnsWithLines returns pointers to the fields, in the order of RETURNING in spendSQLite and
// spendPostgresBatch.
func (s *Spent) columnsWithLines() []any {
	return []any{&s.UserID, (*stringsColumn)(&s.Audience), (*timeColumn)(&s.CreatedAt), (*timeColumn)(&s.RefreshedAt),
		(*userLines)(s), &s.Floor}
}

// userLines scans a text of three lines: the username, the roles and the version of a user. No
// username (RFC 8265) and no role has a line break.
type userLines Spent

// Scan implements sql.Scanner, for both drivers.
func (u *userLines) Scan(value any) error {
	text, ok := value.(string)
	if !ok {
		return fmt.Errorf("a column should hold the lines of a user, and holds a %T", value)
	}
	lines := strings.Split(text, "\n")
	if len(lines) != 3 {
		return fmt.Errorf("a column should hold three lines (username, roles and version), and holds %d", len(lines))
	}
	u.Username = lines[0]
	var err error
	if u.Version, err = strconv.ParseInt(lines[2], 10, 64); err != nil {
		return errors.New("a column should hold a version in the third line, and holds another text")
	}
	return (*wordsColumn)(&u.Roles).Scan(lines[1])
}

// columns returns pointers to the fields, in the order of RETURNING in spendPostgres.
func (s *Spent) columns() []any {
	return []any{&s.UserID, (*stringsColumn)(&s.Audience), (*timeColumn)(&s.CreatedAt), (*timeColumn)(&s.RefreshedAt),
		&s.Username, (*wordsColumn)(&s.Roles), &s.Version, &s.Floor}
}
