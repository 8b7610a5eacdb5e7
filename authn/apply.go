package authn

import (
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// stage tells which parts of the trust bundle one stream has brought.
type stage int

const (
	streamOpened  stage = iota // the stream has brought no message
	trustReceived              // the stream has brought the trust state
	chunksDone                 // the stream has brought the whole snapshot
	upToDate                   // the stream has brought the heartbeat after the snapshot: the bundle is complete
)

// apply stores one message of a stream in the trust bundle. The parameter at is the stage of
// the stream before the message; apply returns the stage after the message. Only the feed's
// goroutine may call apply. Every call of [bundle.judge] that begins after apply has returned
// uses the message.
//
// Errors: an error if the server breaks the protocol of the stream. After an error, the bundle
// keeps everything that was stored before.
func (b *bundle) apply(msg *watchwordv1.WatchBundleResponse, at stage) (stage, error) {
	var err error
	next := at
	switch m := msg.GetMessage().(type) {
	case *watchwordv1.WatchBundleResponse_SnapshotChunk:
		if at == streamOpened && m.SnapshotChunk.GetTrustState() == nil {
			return at, errors.New("the snapshot does not begin with a trust state")
		}
		if next = max(at, trustReceived); m.SnapshotChunk.GetLast() {
			next = max(at, chunksDone)
		}
		err = b.learn(m.SnapshotChunk)
	case *watchwordv1.WatchBundleResponse_Change:
		if at == streamOpened {
			return at, errors.New("a change came before the trust state")
		}
		err = b.learn(m.Change)
	case *watchwordv1.WatchBundleResponse_Heartbeat:
		if err = b.beat(m.Heartbeat, at >= chunksDone); at == chunksDone {
			next = upToDate
		}
	}
	if err != nil {
		return at, err
	}
	if resume := msg.GetResume(); len(resume) > 0 {
		b.fresh.resumeAt(resume)
	}
	return next, nil
}

// learn stores the trust state and the revocations of a message. The comment of [bundle]
// explains why learn first stores the revocations, then the trust state, and then raises the
// epoch.
func (b *bundle) learn(n news) error {
	before := b.trust.Load()
	next, err := newTrust(n.GetTrustState(), before, b.leeway, b.log)
	if err != nil {
		return err
	}
	_, latest := b.fresh.clock.read()
	b.revoked.add(n, next, time.Unix(0, latest))
	b.trust.Store(next)
	b.epoch.Add(1)
	if before != nil && !proto.Equal(next.said, before.said) && b.fresh.complete.Load() {
		b.tellKeysChanged()
	}
	return nil
}

// beat stores the times of a heartbeat, and deletes expired revocations. whole says whether the
// stream has brought every message before the heartbeat.
//
// Errors: those of [serverClock.beat].
func (b *bundle) beat(beat *watchwordv1.Heartbeat, whole bool) error {
	set, first, err := b.fresh.beat(beat, whole)
	if err != nil {
		return err
	}
	if first {
		b.tellKeysChanged()
	}
	b.clockSet(set)
	if trust := b.trust.Load(); trust != nil {
		b.revoked.prune(b.fresh.clock.expired(trust.remembered()))
	}
	return nil
}

// answered stores the times in the server's answer to a GetTime that was sent at the elapsed
// time `sent`.
//
// Errors: those of [serverClock.answered].
func (b *bundle) answered(t *watchwordv1.ServerTimes, sent time.Duration) error {
	set, err := b.fresh.clock.answered(t, sent)
	b.clockSet(set)
	return err
}

// clockSet makes every cached judgement invalid after the server's token time was set: an `iat`
// that was in the past may be far in the future now.
func (b *bundle) clockSet(by time.Duration) {
	if by != 0 {
		b.clockSets.Add(1)
		b.epoch.Add(1)
		b.log.Warn("the server's clock was set; following the clock", "by", by)
	}
}

// tellKeysChanged tells the keeper of the snapshot file to write the file. One element in the
// channel is enough for several changes, so tellKeysChanged never blocks.
func (b *bundle) tellKeysChanged() {
	select {
	case b.keysChanged <- struct{}{}:
	default:
	}
}
