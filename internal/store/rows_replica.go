package store

import (
	"errors"
	"slices"
	"time"
)

// Replica is a row of the table replicas: what a server process tells the other server
// processes about its watchers (the services that receive events from the process).
type Replica struct {
	ID        int64
	Address   string
	Answered  time.Time // the time of the newest question that Summary answers; see [Tx.AskReplicas]
	WrittenAt time.Time // set by [Tx.WriteReplica]
	Summary   []byte    // the watchers, encoded by package roster; nil in the result of [Tx.ReplicaAnswers]
}

// watchersAsked names the setting with the time of the newest [Tx.AskReplicas], in microseconds
// since 1970.
const watchersAsked = "watchers_asked"

// AskReplicas asks every replica to write its watchers into the table replicas, and returns the
// time of the question. Every replica gets a hint, as after an event: see [Store.Hints].
func (tx *Tx) AskReplicas() (time.Time, error) {
	now := tx.Now()
	tx.run.hint()
	return now, tx.SetDurationSetting(watchersAsked, time.Duration(micros(now))*time.Microsecond)
}

// WriteReplica inserts or replaces the row of a replica.
func (tx *Tx) WriteReplica(r *Replica) error {
	return tx.queueExec(`INSERT INTO replicas (id, address, answered, written_at, summary, program) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (id) DO UPDATE SET address = excluded.address, answered = excluded.answered,
			written_at = excluded.written_at, summary = excluded.summary, program = excluded.program`,
		r.ID, r.Address, micros(r.Answered), micros(tx.Now()), r.Summary, program)
}

// DeleteReplica deletes the row of a replica, if the table replicas has the row.
func (tx *Tx) DeleteReplica(id int64) error {
	return tx.queueExec(`DELETE FROM replicas WHERE id = $1`, id)
}

// DeleteSupersededReplicas deletes the rows of an address that were written before a time: the rows
// of killed servers that had the address earlier.
func (tx *Tx) DeleteSupersededReplicas(address string, before time.Time) error {
	return tx.queueExec(`DELETE FROM replicas WHERE address = $1 AND written_at < $2`, address, micros(before))
}

// Replicas returns every row of the table replicas, in the order of the ids.
func (tx *Tx) Replicas() ([]*Replica, error) {
	return queryAll(tx, func(r *Replica) []any {
		return []any{&r.ID, &r.Address, (*timeColumn)(&r.Answered), (*timeColumn)(&r.WrittenAt), &r.Summary}
	}, `SELECT id, address, answered, written_at, summary FROM replicas ORDER BY id`)
}

// ReplicaAnswers is like [Tx.Replicas], and leaves out the summaries.
func (tx *Tx) ReplicaAnswers() ([]*Replica, error) {
	return queryAll(tx, func(r *Replica) []any {
		return []any{&r.ID, &r.Address, (*timeColumn)(&r.Answered), (*timeColumn)(&r.WrittenAt)}
	}, `SELECT id, address, answered, written_at FROM replicas ORDER BY id`)
}

// PruneReplicas deletes the rows written before a time. Every server writes its row again
// within seconds.
func (tx *Tx) PruneReplicas(before time.Time) error {
	return tx.queueExec(`DELETE FROM replicas WHERE written_at < $1`, micros(before))
}

// WatcherCertificate is a row of the table watcher_certificates: the name in a client
// certificate, and the time at which a watcher with the certificate was seen last.
type WatcherCertificate struct {
	Name   []byte
	SeenAt time.Time
}

// SawCertificates stores that watchers with certificates of these names are connected now.
// names must be sorted: several replicas may write the same names at the same time, and in one
// order no two transactions wait for each other in a circle.
func (tx *Tx) SawCertificates(names []string) error {
	if !slices.IsSorted(names) {
		return errors.New("SawCertificates: the names are not sorted")
	}
	for _, name := range names {
		err := tx.queueExec(`INSERT INTO watcher_certificates (certificate, seen_at) VALUES ($1, $2)
			ON CONFLICT (certificate) DO UPDATE SET seen_at = excluded.seen_at`, []byte(name), micros(tx.Now()))
		if err != nil {
			return err
		}
	}
	return nil
}

// WatcherCertificates returns up to limit certificates that were seen after a time, the latest
// first.
func (tx *Tx) WatcherCertificates(after time.Time, limit int) ([]*WatcherCertificate, error) {
	return queryAll(tx, func(c *WatcherCertificate) []any {
		return []any{&c.Name, (*timeColumn)(&c.SeenAt)}
	}, `SELECT certificate, seen_at FROM watcher_certificates WHERE seen_at > $1 ORDER BY seen_at DESC, certificate LIMIT $2`, micros(after), limit)
}

// PruneWatcherCertificates deletes the certificates that were last seen before the time before,
// and every certificate that is not among the `keep` certificates seen latest.
func (tx *Tx) PruneWatcherCertificates(before time.Time, keep int) error {
	_, err := tx.deleteFound(`DELETE FROM watcher_certificates WHERE certificate = $1`,
		`SELECT certificate FROM watcher_certificates WHERE seen_at < $1
			UNION SELECT certificate FROM (SELECT certificate FROM watcher_certificates ORDER BY seen_at DESC, certificate LIMIT 1000 OFFSET $2) AS surplus`,
		micros(before), keep)
	return err
}
