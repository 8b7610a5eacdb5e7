package feed

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/hub"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
)

// reading stands for one read of the tail of the events (all events after the last published
// event), and holds the error of the read.
type reading struct {
	done chan struct{}
	err  error // the error of the read; valid after done is closed
}

func newReading() *reading { return &reading{done: make(chan struct{})} }

// refresh waits until the feed has read the newest events from the database once more; the read
// begins after the call of refresh. One read serves all callers that wait at the time. Errors:
// those of the read and of ctx.
func (f *Feed) refresh(ctx context.Context) error {
	next := f.next.Load()
	if !f.failing.Load() { // while the database fails, only Run's ticker decides when the database is tried again
		f.nudge()
	}
	select {
	case <-next.done:
		return next.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// readTail publishes all events of the database after the position f.at. Only one goroutine is
// allowed to call readTail.
func (f *Feed) readTail(ctx context.Context) error {
	r := f.next.Swap(newReading())
	r.err = f.readToEnd(ctx)
	if failed := f.failing.Swap(r.err != nil); failed && r.err == nil {
		f.countNow() // the database answers again, so count a tick that was missed
	}
	if r.err != nil && ctx.Err() == nil {
		f.stats.failedReadings.Add(1)
	}
	close(r.done)
	return r.err
}

// readToEnd reads and publishes batch after batch of events, up to the newest event. The
// function of the type [Keys] gives the signing keys to the issuer before the hub publishes the
// trust state (the public keys): so the issuer stops signing with a withdrawn key before any
// verifier refuses the key.
func (f *Feed) readToEnd(ctx context.Context) error {
	for {
		var b batch
		asked := f.hub.Elapsed()
		err := f.store.Read(ctx, func(tx *store.Tx) (err error) {
			b, err = f.readBatch(ctx, tx)
			return err
		})
		if err != nil {
			return err
		}
		if b.forked {
			f.stats.forks.Add(1)
			if err := f.outrank(ctx, 0); err != nil {
				return err
			}
			// The other history may have other keys, even if no event says that the keys have
			// changed.
			f.logger.WarnContext(ctx, "the database is not the one that it was: a backup was restored, or a standby was promoted "+
				"that lacked the newest commits. Reading all events again; revoked tokens stay revoked", "event", f.at.Seq)
			f.at, f.trustUnread = hub.Position{}, true
			f.hub.Fork()
			continue
		}
		if claimed := f.hub.Claimed(); b.last && claimed > f.greatest {
			f.stats.forks.Add(1)
			f.logger.WarnContext(ctx, "a verifier knows versions that the database has lost: a backup was restored, or a standby was "+
				"promoted that lacked the newest commits. New tokens get a higher version", "version", claimed)
			if err := f.outrank(ctx, claimed); err != nil {
				return err
			}
		}
		b.update.Greatest, b.update.Time.Asked = f.greatest, asked
		if set := f.hub.Publish(&b.update); set != 0 {
			f.stats.clockSet.Add(1)
			f.logger.WarnContext(ctx, "the database's clock was set; access tokens and verifiers follow the clock", "by", set)
			f.hub.Beat() // tells the verifiers the new time at once
			f.countNow() // a tick at once, so that the table ticks has the new time
		}
		f.at = b.update.At
		if b.last {
			f.trustUnread = false
			return nil
		}
	}
}

// outrank raises the floor for versions (the least version of new access tokens) to the greater
// of f.greatest and claimed. The version in a new token is then not below any version that
// verifiers know from events that the database has lost.
func (f *Feed) outrank(ctx context.Context, claimed int64) error {
	greatest := max(f.greatest, claimed)
	if err := Direct(f.store).Write(ctx, func(tx *Tx) error { return tx.RaiseFloor(greatest) }); err != nil {
		return fmt.Errorf("raising the floor for versions: %w", err)
	}
	f.greatest = greatest
	return nil
}

// batch holds the events that one transaction has read from the tail. At most tailBatch events
// are in one batch, so that a long tail neither fills memory nor makes a message too large.
type batch struct {
	forked bool // true if the database has another history of events than the one with the position f.at; the other fields are then empty
	last   bool // the batch ends with the newest event
	update hub.Update
}

// readBatch reads the events after the position f.at. The batch that ends with the newest event
// also has the trust state (the public keys), read in the same transaction. So a watcher gets
// keys only together with all events that are older than the keys.
func (f *Feed) readBatch(ctx context.Context, tx *store.Tx) (b batch, err error) {
	head, err := tx.Head()
	if err != nil {
		return b, err
	}
	// The call of tx.Head has begun the transaction, which has read the database's clock.
	b.update.Time = hub.Reading{Token: tx.Now(), Answered: f.hub.Elapsed()}
	floor, asked, err := tx.FloorAndQuestion()
	if err != nil {
		return b, err
	}
	if !asked.Equal(f.asked) {
		f.asked = asked
		f.question(asked, tx.Now())
	}
	// readBatch reads the newest published event again, to see whether the event still has the
	// same tag: another tag shows another history. [store.Tx.PruneEvents] keeps the newest
	// event, so the event must be there.
	events, err := tx.Events(f.at.Seq-1, tailBatch+1)
	if err != nil {
		return b, err
	}
	known := f.at.Tag != hub.Tag{}
	b.forked = known && (len(events) == 0 || positionOf(events[0]) != f.at) || head < f.at.Seq || floor < f.floor
	if b.forked {
		return b, nil
	}
	f.floor, f.greatest = floor, max(f.greatest, floor)
	if known {
		events = events[1:]
	}
	events = events[:min(len(events), tailBatch)]
	b.last = len(events) < tailBatch
	change := &watchwordv1.Change{}
	b.update.Change, b.update.At = change, f.at
	for _, e := range events {
		b.update.At = positionOf(e)
		f.greatest = max(f.greatest, e.Version)
		b.update.Passed = append(b.update.Passed, b.update.At)
		f.trustUnread = f.trustUnread || e.Kind == store.KeysChanged
		addEvent(change, e)
	}
	if !b.last {
		return b, nil
	}
	b.update.Whole = f.mayCommit()
	if b.update.At.Seq < head {
		b.update.At = hub.Position{Seq: head} // head can be above every event in the table events: the numbers of deleted events stay used
	}
	if !f.trustUnread {
		return b, nil
	}
	// The hub sends every trust state to every watcher, so readBatch leaves out a trust state
	// that has not changed.
	trust, err := f.readTrust(ctx, tx)
	if err == nil && !proto.Equal(trust, f.hub.TrustState()) {
		change.TrustState = trust
	}
	return b, err
}

// addEvent adds the revocation of an event to a change. addEvent ignores the clock: an event is
// in force until [Feed.Prune] has deleted the event. An event of the kind KeysChanged adds
// nothing, since the trust state names all keys.
func addEvent(change *watchwordv1.Change, e *store.Event) {
	until := timestamppb.New(e.ExpiresAt)
	switch e.Kind {
	case store.SessionEnded:
		change.EndedSessions = append(change.EndedSessions, &watchwordv1.EndedSession{SessionId: e.Subject, Until: until})
	case store.VersionStale, store.VersionRevoked:
		change.RaisedVersions = append(change.RaisedVersions, &watchwordv1.RaisedVersion{
			UserId: e.Subject, Version: e.Version, Revoked: e.Kind == store.VersionRevoked, Until: until,
		})
	}
}

// positionOf returns the number and the tag of an event as a position. The head of a history
// without events has a zero tag.
func positionOf(e *store.Event) hub.Position {
	at := hub.Position{Seq: e.Seq}
	copy(at.Tag[:], e.Tag)
	return at
}

// readTrust builds the trust state from the keys of [Keys]. readTrust leaves out each key of an
// unknown kind, as verifiers do: a newer version of Watchword may have written the key.
func (f *Feed) readTrust(ctx context.Context, tx *store.Tx) (*watchwordv1.TrustState, error) {
	longest, err := tx.MaxLifetime()
	if err != nil {
		return nil, err
	}
	aged, err := tx.Aged(longest + Margin)
	if err != nil {
		return nil, err
	}
	notBefore, err := tx.DelegatedNotBefore()
	if err != nil {
		return nil, err
	}
	f.noteMoment(notBefore, tx.Now())
	set, err := f.keys(ctx, tx)
	if err != nil {
		return nil, err
	}
	f.keysAgain = set.Again
	trust := &watchwordv1.TrustState{
		Issuer: f.issuer, MaxTokenLifetime: durationpb.New(longest), Margin: durationpb.New(Margin), WithdrawnKids: set.Withdrawn,
	}
	if !notBefore.IsZero() {
		trust.DelegatedNotBefore = timestamppb.New(notBefore)
	}
	for _, row := range set.Rows {
		if !row.RevokedAt.IsZero() || VerifiesNothing(row, aged, longest) {
			continue
		}
		key, err := verificationKey(row)
		if err != nil {
			f.logger.WarnContext(ctx, "a signing key cannot be read, and is left out", "kid", row.KID, "error", err)
			continue
		}
		trust.Keys = append(trust.Keys, key)
	}
	return trust, nil
}

// noteMoment notices a moment of [Tx.EndDelegated] that has passed already when the feed reads the
// moment for the first time: the commit has taken longer than commitTime. Before the commit became
// visible, a replica may have minted delegated tokens with a later time of issue. The next tick ends
// these tokens too. noteMoment ignores the moment that the feed reads at its start: the moment
// can be of an earlier day.
func (f *Feed) noteMoment(moment, now time.Time) {
	said := f.hub.TrustState()
	if said.GetIssuer() != "" && moment.After(said.GetDelegatedNotBefore().AsTime()) && moment.Before(now) {
		f.late.Store(&moment)
		f.countNow()
	}
}

// VerifiesNothing reports whether the last token of a key has expired, by the clock and by
// ticks: aged is what [store.Tx.Aged] returns for longest, the longest lifetime of a token,
// plus Margin.
func VerifiesNothing(key *store.SigningKey, aged time.Time, longest time.Duration) bool {
	return !key.VerifiesUntil.IsZero() && key.VerifiesUntil.Before(aged.Add(longest+Margin)) && !aged.IsZero()
}

// verificationKey returns the public half of a signing key, with the time until which the key
// verifies tokens. Errors: a key of an unknown kind.
func verificationKey(row *store.SigningKey) (*watchwordv1.VerificationKey, error) {
	parsed, err := x509.ParsePKIXPublicKey(row.PublicKey)
	if err != nil {
		return nil, err
	}
	public, err := token.NewPublicKey(parsed)
	if err != nil {
		return nil, err
	}
	key := &watchwordv1.VerificationKey{Key: public.JWK()}
	if !row.VerifiesUntil.IsZero() {
		key.VerifiesUntil = timestamppb.New(row.VerifiesUntil)
	}
	return key, nil
}
