package audit

import (
	"context"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

const (
	// followStep bounds the records that one call of [Follow] reads, and so the memory of one
	// reader: some 100 KiB.
	followStep = 200
	// markEvery is the least time between two marks while records are written, however many
	// readers there are. A mark is a row that says up to which record the readers can read. A
	// mark costs one commit.
	markEvery = 200 * time.Millisecond
	// clocksDiffer is more than the difference between the clocks of two PostgreSQL servers. If
	// the database does not know the mark of a reader, the reader goes on from the last mark
	// that was made clocksDiffer before the reader's mark.
	clocksDiffer = time.Minute
)

// Place says up to which record of the security record a reader of [Follow] has read. The zero
// Place stands for a reader that has read nothing.
type Place struct {
	After store.AuditPlace
	Mark  store.AuditMark // a mark in the record, not before After; zero for a reader that begins
	Told  int64           // the highest number of a deleted record that the reader was told of
}

// Gap tells why records of the security record can be missing in what [Follow] returns.
type Gap int

// A [Gap] has one of these values.
const (
	NoGap        Gap = iota
	Deleted          // Prune has deleted records that the reader has not read
	OtherHistory     // the database has lost the mark of the reader
)

// Part holds the records that one call of [Follow] has read, and where the next call goes on.
type Part struct {
	Records []*store.AuditRecord
	Next    Place
	Gap     Gap           // why records that come before Records may be missing
	More    bool          // further records can be read at once
	Delay   time.Duration // for how long a transaction of PostgreSQL has kept records back
	Now     time.Time     // the present time by the database's clock
}

// Following selects the records that a reader of [Follow] wants.
type Following struct {
	Filter      store.AuditFilter // without End and Before
	Name        string            // the name of a user, or empty; see [ListByName]
	CommandLine bool              // only records of the command line
}

// Latest returns the place behind every record that the database holds now, for a reader that
// wants only later records. Errors: those of [Follow].
func Latest(ctx context.Context, s *store.Store, of Following) (p Place, err error) {
	err = s.Write(ctx, func(tx *store.Tx) error {
		if _, err := wantedIDs(tx, of.Name); err != nil {
			return err
		}
		p.Mark, err = tx.MarkAudit()
		return err
	})
	p.After = p.Mark.Place()
	return p, err
}

// Follow returns the next records after a place, in the order of writing; see
// internal/store/rows_auditorder.go. A record comes again after its count has changed. A reader
// that calls Follow with the Next of the earlier call gets every committed record, on every
// server of the database, after any pause; or a Gap.
//
// Follow reads the records up to the newest mark, and makes another mark if there are later
// records. So the newest records can come with the next call.
//
// Errors: those of ListByName; errors of the store.
func Follow(ctx context.Context, s *store.Store, of Following, from Place) (part Part, err error) {
	mark := false
	err = s.Read(ctx, func(tx *store.Tx) error {
		part, mark, err = of.read(tx, from)
		return err
	})
	if err != nil || !mark {
		return part, err
	}
	part.More = true
	return part, s.Write(ctx, func(tx *store.Tx) error { _, err := tx.MarkAudit(); return err })
}

// read reads the next records for [Follow]. mark tells that the caller must make a mark (see
// markEvery).
func (of Following) read(tx *store.Tx, from Place) (part Part, mark bool, err error) {
	state, err := tx.AuditState(from.Mark, of.CommandLine)
	if err != nil {
		return part, false, err
	}
	part = Part{Next: from, Now: tx.Now()}
	if err := part.findGap(tx, state, from); err != nil {
		return part, false, err
	}
	wanted, err := wantedIDs(tx, of.Name)
	if err != nil {
		return part, false, err
	}
	if next := &part.Next; state.Settled.Tag != 0 && less(next.After, state.Settled.Place()) {
		rows, last, err := tx.AuditAfter(next.After, state.Settled.Seq, followStep, of.CommandLine)
		if err != nil {
			return part, false, err
		}
		for _, r := range rows {
			if of.Filter.Selects(r) && (wanted == nil || wanted[r.UserID] || wanted[r.ActorID]) {
				part.Records = append(part.Records, r)
			}
		}
		next.After, next.Mark = last, state.Settled
		if part.More = len(rows) == followStep; !part.More {
			next.After = state.Settled.Place()
		}
	}
	if !state.Waiting.IsZero() {
		part.Delay = max(0, part.Now.Sub(state.Waiting))
	}
	mark = state.More && state.Waiting.IsZero() && (state.Newest.Tag == 0 || part.Now.Sub(state.Newest.At).Abs() >= markEvery)
	return part, mark, nil
}

func less(a, b store.AuditPlace) bool { return a.Seq < b.Seq || a.Seq == b.Seq && a.ID < b.ID }

// findGap finds out whether the database lacks records after `from`, the place of the reader, and
// from which place the reader goes on.
func (p *Part) findGap(tx *store.Tx, state store.AuditState, from Place) (err error) {
	unknown := from.Mark.Tag != 0 && !state.Known
	switch {
	case from.After.Seq < state.Pruned && from.Told < state.Pruned && from.Mark.Tag != 0:
		p.Gap = Deleted
	case unknown:
		p.Gap = OtherHistory
	}
	p.Next.Told = state.Pruned
	if unknown {
		p.Next.Mark, err = tx.AuditMarkBefore(from.Mark.At.Add(-clocksDiffer), state.Settled)
		p.Next.After = p.Next.Mark.Place()
	}
	return err
}

// wantedIDs returns the ids of the users that have or had a name; nil for no name. Errors:
// ErrUnknownName; ErrNamesakes; errors of the store.
func wantedIDs(tx *store.Tx, name string) (map[string]bool, error) {
	if name == "" {
		return nil, nil
	}
	ids, err := namesakes(tx, name)
	wanted := map[string]bool{}
	for _, id := range ids {
		wanted[id] = true
	}
	return wanted, err
}

// namesakes returns the ids of the users that have or had a name. Errors: those of wantedIDs.
func namesakes(tx *store.Tx, name string) ([]string, error) {
	ids, err := tx.UserIDs(name, maxNamesakes+1)
	switch {
	case err != nil:
	case len(ids) == 0:
		err = ErrUnknownName
	case len(ids) > maxNamesakes:
		err = ErrNamesakes
	}
	return ids, err
}
