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
	ID        string // made by InsertAudit; sorts by time
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

// columns returns where to scan auditColumns.
func (r *AuditRecord) columns() []any {
	return []any{&r.ID, &r.Type, &r.Success, &r.Reason, &r.ActorID, &r.ActorName, &r.UserID, &r.UserName,
		&r.SessionID, &r.KID, &r.Source, &r.Detail, &r.Count}
}

// InsertAudit adds a record as of now, and sets r.ID.
func (tx *Tx) InsertAudit(r *AuditRecord) error {
	random := make([]byte, 6)
	rand.Read(random)
	r.ID = auditID(tx.Now()) + hex.EncodeToString(random)
	return tx.queueExec(`INSERT INTO audit (`+auditColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
		r.ID, r.Type, r.Success, r.Reason, r.ActorID, r.ActorName, r.UserID, r.UserName, r.SessionID, r.KID, r.Source, r.Detail, r.Count)
}

// SetAuditCount sets the number of events that a record stands for, and reports whether
// the record still exists: the pruning may have deleted the record.
func (tx *Tx) SetAuditCount(id string, count int64) (bool, error) {
	updated, err := queryColumn[string](tx, `UPDATE audit SET count = $2 WHERE id = $1 RETURNING id`, id, count)
	return len(updated) == 1, err
}

// DeleteAudit deletes a record, if the record still exists.
func (tx *Tx) DeleteAudit(id string) error {
	return tx.queueExec(`DELETE FROM audit WHERE id = $1`, id)
}

// AuditFilter selects records of the security record. An empty field selects all
// records.
type AuditFilter struct {
	Type       string
	UserID     string // the acting user, or the user concerned
	SessionID  string
	Start, End time.Time
	Before     string // the id of a record: only older records
}

// Audit lists up to limit records, the newest first. next is the value of
// [AuditFilter].Before for the next page, and empty at the end. Audit reads at most
// scan rows, since only ids have an index: a page may be short or empty although more
// pages follow.
func (tx *Tx) Audit(f AuditFilter, limit, scan int) (records []*AuditRecord, next string, err error) {
	before, floor := cmp.Or(f.Before, "g"), auditID(f.Start) // "g" sorts after every hexadecimal digit
	if !f.End.IsZero() {
		before = min(before, auditID(f.End))
	}
	records, err = queryAll(tx, (*AuditRecord).columns, `SELECT `+auditColumns+`
		FROM (SELECT `+auditColumns+` FROM audit WHERE id < $1 AND id >= $2 ORDER BY id DESC LIMIT $3) AS scanned
		WHERE ($4 = '' OR type = $4) AND ($5 = '' OR user_id = $5 OR actor_id = $5) AND ($6 = '' OR session_id = $6)
		ORDER BY id DESC LIMIT $7`, before, floor, scan, f.Type, f.UserID, f.SessionID, limit+1)
	if err != nil {
		return nil, "", err
	}
	if len(records) > limit {
		return records[:limit], records[limit-1].ID, nil
	}
	err = tx.queryRows(into(&next),
		`SELECT id FROM audit WHERE id < $1 AND id >= $2 ORDER BY id DESC LIMIT 1 OFFSET $3`, before, floor, scan-1)
	return records, next, err
}

// PruneAudit deletes up to limit records older than the time before, and returns the
// number of deleted records.
func (tx *Tx) PruneAudit(before time.Time, limit int) (int64, error) {
	return tx.deleteFound(`DELETE FROM audit WHERE id = $1`,
		`SELECT id FROM audit WHERE id < $1 ORDER BY id LIMIT $2`, auditID(before), limit)
}
