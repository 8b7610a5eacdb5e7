package store

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"
)

// AuditRecord is a row of the table audit, the security record. Package audit describes
// the fields.
type AuditRecord struct {
	ID        string // set by InsertAudit; the order of the ids is the order of time
	Type      string
	Success   bool
	Reason    string
	ActorID   string
	ActorName string
	UserID    string
	UserName  string
	SessionID string
	KID       string
	Source    string
	Detail    string
	Count     int64
}

const (
	auditTimeDigits = 16
	auditColumns    = `id, type, success, reason, actor_id, actor_name, user_id, user_name, session_id, kid, source, detail, count`
)

// auditID returns the lowest id that a record of the time t can have. For the zero
// time, auditID returns the lowest id of all.
func auditID(t time.Time) string { return fmt.Sprintf("%0*x", auditTimeDigits, max(0, t.UnixMicro())) }

// Time returns the time of the record, read from the id. For an id that InsertAudit did
// not make, Time returns the zero time.
func (r *AuditRecord) Time() time.Time {
	us, err := strconv.ParseInt(r.ID[:min(auditTimeDigits, len(r.ID))], 16, 64)
	if err != nil { // InsertAudit did not make the id
		return time.Time{}
	}
	return fromMicros(us)
}

// columns returns pointers to the fields, in the order of auditColumns.
func (r *AuditRecord) columns() []any {
	return []any{&r.ID, &r.Type, &r.Success, &r.Reason, &r.ActorID, &r.ActorName, &r.UserID, &r.UserName,
		&r.SessionID, &r.KID, &r.Source, &r.Detail, &r.Count}
}

// InsertAudit adds a record as of now, and sets r.ID.
func (tx *Tx) InsertAudit(r *AuditRecord) error {
	random := make([]byte, 6)
	rand.Read(random)
	r.ID = auditID(tx.Now()) + hex.EncodeToString(random)
	return tx.queueExec(tx.run.audit().insert,
		r.ID, r.Type, r.Success, r.Reason, r.ActorID, r.ActorName, r.UserID, r.UserName, r.SessionID, r.KID, r.Source, r.Detail, r.Count)
}

// SetAuditCount sets the number of events that a record stands for, and reports whether
// the record still exists: the pruning may have deleted the record.
func (tx *Tx) SetAuditCount(id string, count int64) (bool, error) {
	updated, err := queryColumn[string](tx, tx.run.audit().setCount, id, count)
	return len(updated) == 1, err
}

// RaiseAuditCount adds one to the number of events that a record stands for. The caller must
// have read the record in the same transaction.
func (tx *Tx) RaiseAuditCount(id string) error {
	return tx.queueExec(tx.run.audit().raiseCount, id)
}

// RaiseAuditCountIfThere is like [Tx.RaiseAuditCount] for a record that may be gone, and
// reports whether the record was there.
func (tx *Tx) RaiseAuditCountIfThere(id string) (bool, error) {
	there, err := queryColumn[string](tx, `UPDATE audit SET count = count + 1 WHERE id = $1 RETURNING id`, id)
	return len(there) > 0, err
}

// DeleteAudit deletes a record, if the record still exists.
func (tx *Tx) DeleteAudit(id string) error {
	return tx.queueExec(`DELETE FROM audit WHERE id = $1`, id)
}

// AuditFilter selects records of the security record. An empty field of AuditFilter excludes no
// record.
type AuditFilter struct {
	Type       string
	UserID     string // the id of the acting user, or of the user that the record concerns
	SessionID  string
	Start, End time.Time
	Before     string // the id of a record: [Tx.Audit] lists only older records
}

// Each filter of the security record has a query that finds the records through an index
// of the filter's column and the id. $1 and $2 are the ids between which the records lie,
// $3 is the largest number of records, and $4 is the value of the filter.
//
// The queries compare and order pairs of column and id. With `column = $4` and ORDER BY id,
// PostgreSQL might read the table in order of id, and pass over the records with other values of
// the column. A comparison with the empty text, as of session_id, repeats the condition of
// the index: without the comparison neither engine uses the index.
const (
	auditFrom = `SELECT ` + auditColumns + ` FROM audit WHERE `

	auditAll       = auditFrom + `id < $1 AND id >= $2 ORDER BY id DESC LIMIT $3`
	auditOfType    = auditFrom + `(type, id) < ($4, $1) AND (type, id) >= ($4, $2) ORDER BY type DESC, id DESC LIMIT $3`
	auditOfSession = auditFrom + `session_id <> '' AND (session_id, id) < ($4, $1) AND (session_id, id) >= ($4, $2)
		ORDER BY session_id DESC, id DESC LIMIT $3`
	auditConcerning = auditFrom + `user_id <> '' AND (user_id, id) < ($4, $1) AND (user_id, id) >= ($4, $2)
		ORDER BY user_id DESC, id DESC LIMIT $3`
	auditActing = auditFrom + `actor_id <> '' AND actor_id <> user_id AND (actor_id, id) < ($4, $1) AND (actor_id, id) >= ($4, $2)
		ORDER BY actor_id DESC, id DESC LIMIT $3`
	auditOfUser = `SELECT ` + auditColumns + ` FROM (` + auditConcerning + `) AS concerning
		UNION ALL SELECT ` + auditColumns + ` FROM (` + auditActing + `) AS acting ORDER BY id DESC LIMIT $3`
)

// query returns the SQL of one condition of f, the condition that is likely to select the
// fewest records, and the arguments of the SQL. If f has further conditions, query returns
// more = true, and the caller checks each record by [AuditFilter.matches].
func (f *AuditFilter) query() (query string, value []any, more bool) {
	switch {
	case f.SessionID != "":
		return auditOfSession, []any{f.SessionID}, f.UserID != "" || f.Type != ""
	case f.UserID != "":
		return auditOfUser, []any{f.UserID}, f.Type != ""
	case f.Type != "":
		return auditOfType, []any{f.Type}, false
	}
	return auditAll, nil, false
}

// Selects reports whether a record matches the filter, without regard to End and Before.
func (f *AuditFilter) Selects(r *AuditRecord) bool { return f.matches(r) && r.ID >= auditID(f.Start) }

func (f *AuditFilter) matches(r *AuditRecord) bool {
	return (f.Type == "" || f.Type == r.Type) && (f.SessionID == "" || f.SessionID == r.SessionID) &&
		(f.UserID == "" || f.UserID == r.UserID || f.UserID == r.ActorID)
}

// Audit lists up to limit records, the newest first. next is the value of [AuditFilter].Before
// for the next page, and empty at the end. If f has only one of Type, UserID and SessionID,
// Audit reads the records of the page alone. If f has two or three of these fields, Audit reads at
// most scan records: a page can be short or empty although more pages follow.
func (tx *Tx) Audit(f AuditFilter, limit, scan int) (records []*AuditRecord, next string, err error) {
	before, floor := cmp.Or(f.Before, "g"), auditID(f.Start) // "g" sorts after every hexadecimal digit
	if !f.End.IsZero() {
		before = min(before, auditID(f.End))
	}
	query, value, more := f.query()
	n := limit + 1 // a record more than limit shows that there is a next page
	if more {
		n = max(n, scan)
	}
	found, err := queryAll(tx, (*AuditRecord).columns, query, append([]any{before, floor, n}, value...)...)
	if err != nil {
		return nil, "", err
	}
	for _, r := range found {
		if !f.matches(r) {
			continue
		}
		if len(records) == limit {
			return records, records[limit-1].ID, nil
		}
		records = append(records, r)
	}
	if len(found) == n {
		next = found[n-1].ID
	}
	return records, next, nil
}

// OwnAudit holds how many records of one kind a user has; see [Tx.OwnAudit].
type OwnAudit struct {
	Single int               // the number of records with another detail than the argument detail
	Shared map[string]string // the id of the newest record with the argument detail, by source
	More   bool              // the user may have older records that OwnAudit has not read
}

// OwnAudit finds the records of r's user since a time that have r's type, outcome and actor, by one
// statement. OwnAudit returns the newest record with the given detail for each source, and the
// number of records with another detail. OwnAudit reads the newest scan records of the user alone:
// so the record that the caller has just written is among the read records.
func (tx *Tx) OwnAudit(r *AuditRecord, since time.Time, detail string, scan int) (OwnAudit, error) {
	own, read := OwnAudit{Shared: map[string]string{}}, 0
	err := tx.queryRows(func(row row) error {
		var same, shared bool
		var source, newest string
		var n int
		err := row.Scan(&same, &shared, &source, &newest, &n)
		read += n
		switch {
		case same && shared:
			own.Shared[source] = newest
		case same:
			own.Single += n
		}
		return err
	}, `SELECT same, shared, source, max(id), count(*) FROM (
			SELECT id, type = $3 AND success = $4 AND actor_id = $5 AS same, detail = $6 AS shared, CASE WHEN detail = $6 THEN source ELSE '' END AS source
			FROM audit WHERE user_id <> '' AND (user_id, id) < ($1, 'g') AND (user_id, id) >= ($1, $2) ORDER BY user_id DESC, id DESC LIMIT $7) AS recent
		GROUP BY same, shared, source`, r.UserID, auditID(since), r.Type, r.Success, r.ActorID, detail, scan)
	own.More = read >= scan
	return own, err
}
