package store

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"time"
)

// The records of the security record have an order, for a reader such as `watchword audit
// --follow`, which must see each record, and which can stop and go on later.
//
// A record takes the next number (column seq) when the record is written, and again when the
// count of the record changes. On SQLite one transaction writes after the other, so numbers are
// in the order of the commits. On PostgreSQL the number comes from a sequence, so that no login
// waits for another login. So on PostgreSQL a transaction with a low number may commit after a
// transaction with a higher number.
//
// A mark (a row of the table audit_marks) tells a reader up to which number the reader is
// allowed to read. A mark is settled if every record with a number up to the mark's number is
// committed, and no other record can get such a number. On PostgreSQL a transaction has its id
// before it takes a number (the default of the column audit.seq). [Tx.MarkAudit] first reads
// the highest number, and then gets its own transaction id. So every transaction with a number
// up to the mark's number has a lower id, and the mark is settled when pg_snapshot_xmin is
// above the id in the mark. Only after the mark is settled, a reader passes the numbers up to
// the mark.
//
// A mark is committed after everything that the mark covers. PostgreSQL's standbys and backups, and
// SQLite's backups, are states that the database once had. So a database with a certain mark
// has every record up to the mark, and gives higher numbers to new records. A reader keeps the
// number and the random tag of a mark at or above the reader's place. A database without the kept
// mark has lost records, and may give the numbers of the lost records to new records.

// AuditMark is a row of the table audit_marks. The zero value stands for a mark below every
// record.
type AuditMark struct {
	Seq int64
	Tag int64 // random, not 0
	At  time.Time
}

// AuditState describes how far a reader of the security record is allowed to read, see
// [Tx.AuditState].
type AuditState struct {
	Settled AuditMark // the newest settled mark
	Newest  AuditMark // the newest mark, settled or not
	Waiting time.Time // the time of the oldest mark that is not settled; zero without such a mark
	Known   bool      // true if the mark that the reader knows is in the table audit_marks
	Pruned  int64     // the highest number of a record that PruneAudit has deleted
	More    bool      // true if records are above Newest, or the numbers of records begin again: the reader calls MarkAudit
}

// auditStatements holds the statements about the security record that differ between SQLite and
// PostgreSQL.
type auditStatements struct {
	insert, setCount, raiseCount string
	highest                      string // returns the highest number that a record may have
	raiseHighest                 string // raises the highest number to $1
	mark                         string // inserts a mark
	state, stateOfCommandLine    string
}

// newAuditStatements builds the statements from SQL expressions of an engine. next is the
// expression for the next number of a record, xid for the id of the transaction, and settled for
// the condition that a mark is settled.
func newAuditStatements(next, highest, raiseHighest, xid, settled string) *auditStatements {
	state := func(of string) string {
		return `WITH settled AS (SELECT seq, tag, at FROM audit_marks WHERE ` + settled + ` ORDER BY seq DESC LIMIT 1)
			SELECT COALESCE((SELECT seq FROM settled), 0), COALESCE((SELECT tag FROM settled), 0), COALESCE((SELECT at FROM settled), 0),
				COALESCE((SELECT max(seq) FROM audit_marks), 0), COALESCE((SELECT tag FROM audit_marks ORDER BY seq DESC LIMIT 1), 0),
				COALESCE((SELECT at FROM audit_marks ORDER BY seq DESC LIMIT 1), 0),
				(SELECT at FROM audit_marks WHERE seq > COALESCE((SELECT seq FROM settled), -1) ORDER BY seq LIMIT 1),
				EXISTS (SELECT 1 FROM audit_marks WHERE seq = $1 AND tag = $2),
				COALESCE((SELECT CAST(value AS BIGINT) FROM settings WHERE name = $3), 0),
				COALESCE((SELECT max(seq) FROM audit` + of + `), -1) > COALESCE((SELECT max(seq) FROM audit_marks), -1)
					OR (SELECT ` + highest + `) < COALESCE((SELECT max(seq) FROM audit_marks), -1)`
	}
	return &auditStatements{
		insert:             `INSERT INTO audit (` + auditColumns + `, seq) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, ` + next + `)`,
		setCount:           `UPDATE audit SET count = $2, seq = ` + next + ` WHERE id = $1 RETURNING id`,
		raiseCount:         `UPDATE audit SET count = count + 1, seq = ` + next + ` WHERE id = $1`,
		highest:            `SELECT ` + highest,
		raiseHighest:       raiseHighest,
		mark:               `INSERT INTO audit_marks (seq, tag, at, xid) VALUES ($1, $2, $3, ` + xid + `)`,
		state:              state(``),
		stateOfCommandLine: state(` WHERE source = 'cli'`),
	}
}

// On SQLite the next number of a record is above every record and every mark. If the newest
// record is deleted before a mark covers the record, a later record gets the number of the deleted
// record; the repetition does no harm, since no reader has seen the number.
var sqliteAudit = newAuditStatements(
	`(SELECT `+sqliteHighest+` + 1)`, sqliteHighest, `SELECT $1`, `0`, `true`)

const sqliteHighest = `max(COALESCE((SELECT max(seq) FROM audit), 0), COALESCE((SELECT max(seq) FROM audit_marks), 0))`

// On PostgreSQL a mark with a transaction id above every transaction of the server was made on
// another server, and came here by pg_dump, for example. Such a mark is settled: a dump holds
// whole transactions alone.
var pgAudit = newAuditStatements(
	`DEFAULT`, `CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM audit_numbers`,
	`SELECT setval('audit_numbers', GREATEST($1, (SELECT max(seq) FROM audit)))`,
	`CAST(CAST(pg_current_xact_id() AS TEXT) AS BIGINT)`,
	`(xid < CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS TEXT) AS BIGINT) OR xid >= CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS TEXT) AS BIGINT))`)

func (sqliteTx) audit() *auditStatements { return sqliteAudit }
func (*pgTx) audit() *auditStatements    { return pgAudit }

// auditPruned names the setting with the highest number of a record that was deleted because of
// its age.
const auditPruned = "audit_pruned"

// AuditState returns how far a reader of the security record is allowed to read, and whether
// the mark that the reader knows still exists. If commandLine is true, only records of the
// command line make [AuditState].More true.
func (tx *Tx) AuditState(known AuditMark, commandLine bool) (s AuditState, err error) {
	query := tx.run.audit().state
	if commandLine {
		query = tx.run.audit().stateOfCommandLine
	}
	return s, tx.queryRow(into(&s.Settled.Seq, &s.Settled.Tag, (*timeColumn)(&s.Settled.At), &s.Newest.Seq, &s.Newest.Tag, (*timeColumn)(&s.Newest.At),
		(*timeColumn)(&s.Waiting), &s.Known, &s.Pruned, &s.More), query, known.Seq, known.Tag, auditPruned)
}

// MarkAudit makes a mark at the highest number of a record, and returns the mark. If the newest
// mark has the same number, MarkAudit returns the newest mark. A transaction must not write
// before it calls MarkAudit.
//
// If the numbers of PostgreSQL's sequence begin again, as after a migration by logical
// replication, MarkAudit raises the sequence and deletes every mark: each reader then learns
// that records may be missing.
func (tx *Tx) MarkAudit() (m AuditMark, err error) {
	var highest int64
	if err := tx.queryRow(into(&highest), tx.run.audit().highest); err != nil { // before the first write of the transaction, which gives the transaction its id
		return m, err
	}
	if err := tx.Exclusive(); err != nil {
		return m, err
	}
	m, err = tx.auditMark(`ORDER BY seq DESC LIMIT 1`)
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return m, err
	case m.Seq > highest:
		if err := tx.queryRow(into(&highest), tx.run.audit().raiseHighest, m.Seq); err != nil {
			return m, err
		}
		if err := tx.queueExec(`DELETE FROM audit_marks`); err != nil {
			return m, err
		}
	case m.Seq == highest:
		return m, nil
	}
	m = AuditMark{Seq: highest, Tag: randomTag(), At: tx.Now()}
	return m, tx.queueExec(tx.run.audit().mark, m.Seq, m.Tag, micros(m.At))
}

func randomTag() int64 {
	var tag [8]byte
	rand.Read(tag[:])
	return int64(binary.BigEndian.Uint64(tag[:])>>1 | 1)
}

// AuditMarkBefore returns the newest mark that was made at the time `at` or earlier, and that is at
// or below the mark `settled`. If there is no such mark, AuditMarkBefore returns the zero mark.
func (tx *Tx) AuditMarkBefore(at time.Time, settled AuditMark) (AuditMark, error) {
	m, err := tx.auditMark(`WHERE at <= $1 AND seq <= $2 ORDER BY seq DESC LIMIT 1`, micros(at), settled.Seq)
	if errors.Is(err, ErrNotFound) {
		return AuditMark{}, nil
	}
	return m, err
}

func (tx *Tx) auditMark(where string, args ...any) (m AuditMark, err error) {
	return m, tx.queryRow(into(&m.Seq, &m.Tag, (*timeColumn)(&m.At)), `SELECT seq, tag, at FROM audit_marks `+where, args...)
}

// AuditPlace is a place in the order of the records: behind the record with this number and id.
type AuditPlace struct {
	Seq int64
	ID  string
}

// lastID is above the id of every record, see [auditID].
const lastID = "g"

// Place returns the place behind every record up to a mark.
func (m AuditMark) Place() AuditPlace {
	if m.Tag == 0 {
		return AuditPlace{}
	}
	return AuditPlace{m.Seq, lastID}
}

// NewestAudit returns the place behind every record that the transaction sees.
func (tx *Tx) NewestAudit() (AuditPlace, error) {
	p := AuditPlace{ID: lastID}
	err := tx.queryRow(into(&p.Seq), `SELECT COALESCE(max(seq), 0) FROM audit`)
	return p, err
}

// orderedAudit holds a record, and the record's number in the order of records.
type orderedAudit struct {
	AuditRecord
	seq int64
}

func (r *orderedAudit) columns() []any { return append(r.AuditRecord.columns(), &r.seq) }

// AuditAfter lists up to limit records after a place, in order, with numbers up to upTo. next is
// the place of the last listed record. If commandLine is true, AuditAfter lists only records of the
// command line.
func (tx *Tx) AuditAfter(after AuditPlace, upTo int64, limit int, commandLine bool) (records []*AuditRecord, next AuditPlace, err error) {
	const ordered = `SELECT ` + auditColumns + `, seq FROM audit WHERE (seq, id) > ($1, $2) AND seq <= $3`
	query := ordered + ` ORDER BY seq, id LIMIT $4`
	if commandLine {
		query = ordered + ` AND source = 'cli' ORDER BY seq, id LIMIT $4`
	}
	rows, err := queryAll(tx, (*orderedAudit).columns, query, after.Seq, after.ID, upTo, limit)
	next = after
	for _, r := range rows {
		records, next = append(records, &r.AuditRecord), AuditPlace{r.seq, r.ID}
	}
	return records, next, err
}

// PruneAudit deletes up to limit records older than the time before, and returns the
// number of deleted records. PruneAudit remembers the highest number of these records, and
// deletes the marks below that number except the newest mark.
func (tx *Tx) PruneAudit(before time.Time, limit int) (int64, error) {
	type old struct {
		id  string
		seq int64
	}
	rows, err := queryAll(tx, func(r *old) []any { return []any{&r.id, &r.seq} },
		`SELECT id, seq FROM audit WHERE id < $1 ORDER BY id LIMIT $2`, auditID(before), limit)
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	highest := int64(0)
	for _, r := range rows {
		highest = max(highest, r.seq)
		if err := tx.DeleteAudit(r.id); err != nil {
			return 0, err
		}
	}
	if err := tx.raiseSetting(auditPruned, highest); err != nil {
		return 0, err
	}
	_, err = tx.deleteFound(`DELETE FROM audit_marks WHERE seq = $1`,
		`SELECT seq FROM audit_marks WHERE seq < $1 AND seq < (SELECT max(seq) FROM audit_marks) ORDER BY seq LIMIT $2`, highest, limit)
	return int64(len(rows)), err
}
