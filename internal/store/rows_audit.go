package store

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// AuditRecord is a row of the security record. Package audit says what the
// fields mean.
type AuditRecord struct {
	ID        string // made by InsertAudit; in order of time
	Type      string
	Success   bool
	Reason    string
	ActorID   string
	UserID    string
	SessionID string
	KID       string
	Source    string
	Detail    string
	Count     int64
}

const (
	auditTimeDigits = 16
	auditColumns    = `id, type, success, reason, actor_id, user_id, session_id, kid, source, detail, count`
)

// auditID is the lowest id of a moment.
func auditID(t time.Time) string { return fmt.Sprintf("%0*x", auditTimeDigits, max(0, t.UnixMicro())) }

// Time is when the record was made.
func (r *AuditRecord) Time() time.Time {
	us, err := strconv.ParseInt(r.ID[:min(auditTimeDigits, len(r.ID))], 16, 64)
	if err != nil { // no id of ours
		return time.Time{}
	}
	return fromMicros(us)
}

func (r *AuditRecord) scan(from row) error {
	return from.Scan(&r.ID, &r.Type, &r.Success, &r.Reason, &r.ActorID, &r.UserID, &r.SessionID, &r.KID, &r.Source, &r.Detail, &r.Count)
}

// InsertAudit adds a record as of now, and gives it its id.
func (tx *Tx) InsertAudit(r *AuditRecord) error {
	random := make([]byte, 6)
	rand.Read(random)
	r.ID = auditID(tx.Now()) + hex.EncodeToString(random)
	return tx.queueExec(`INSERT INTO audit (`+auditColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
		r.ID, r.Type, r.Success, r.Reason, r.ActorID, r.UserID, r.SessionID, r.KID, r.Source, r.Detail, r.Count)
}

// SetAuditCount says how many events a record stands for, and reports whether
// the record is still there.
func (tx *Tx) SetAuditCount(id string, count int64) (bool, error) {
	n, err := tx.exec(`UPDATE audit SET count = $2 WHERE id = $1`, id, count)
	return n == 1, err
}

// AuditFilter says which records are asked for. What is not set holds for all.
type AuditFilter struct {
	Type       string
	UserID     string // who did it, or to whom it was done
	SessionID  string
	Start, End time.Time
	Before     string // an id: records older than this one
}

// Audit lists up to limit records, the newest first, and says before which id
// to go on: empty, when the end was reached. It looks at no more than scan
// records, since only ids have an index: so a page may be short, or empty, with
// more to come.
func (tx *Tx) Audit(f AuditFilter, limit, scan int) (records []*AuditRecord, next string, err error) {
	before, floor := f.Before, ""
	if !f.Start.IsZero() {
		floor = auditID(f.Start)
	}
	if end := auditID(f.End); !f.End.IsZero() && (before == "" || end < before) {
		before = end
	}
	if before == "" {
		before = "g" // above every digit
	}
	err = tx.queryRows(func(r row) error {
		record := &AuditRecord{}
		records = append(records, record)
		return record.scan(r)
	}, `SELECT `+auditColumns+` FROM (SELECT `+auditColumns+` FROM audit WHERE id < $1 AND id >= $2 ORDER BY id DESC LIMIT $3) AS scanned
		WHERE ($4 = '' OR type = $4) AND ($5 = '' OR user_id = $5 OR actor_id = $5) AND ($6 = '' OR session_id = $6)
		ORDER BY id DESC LIMIT $7`, before, floor, scan, f.Type, f.UserID, f.SessionID, limit+1)
	if err != nil {
		return nil, "", err
	}
	if len(records) > limit {
		return records[:limit], records[limit-1].ID, nil
	}
	err = tx.queryRow(func(r row) error { return r.Scan(&next) },
		`SELECT id FROM audit WHERE id < $1 AND id >= $2 ORDER BY id DESC LIMIT 1 OFFSET $3`, before, floor, scan-1)
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	return records, next, err
}

// PruneAudit deletes up to limit records from before a moment, and reports how
// many.
func (tx *Tx) PruneAudit(before time.Time, limit int) (int64, error) {
	return tx.deleteFound(`DELETE FROM audit WHERE id = $1`,
		`SELECT id FROM audit WHERE id < $1 ORDER BY id LIMIT $2`, auditID(before), limit)
}
