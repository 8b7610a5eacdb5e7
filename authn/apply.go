package authn

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// stage is how far one stream has come.
type stage int

const (
	streamOpened  stage = iota // no message has come
	trustReceived              // the trust state has come
	chunksDone                 // the snapshot has come whole
	upToDate                   // the heartbeat after the snapshot has come: the bundle is complete
)

// apply takes in one message of a stream at the stage given, and returns the stage after
// the message. Only the feed's goroutine may call apply. When apply has returned, every
// judgement that begins counts the message.
//
// Errors: if the server does not keep to the protocol; everything known before still is.
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
		if err := m.Heartbeat.GetServerTime().CheckValid(); err != nil {
			return at, fmt.Errorf("a heartbeat without the server's time: %w", err)
		}
		if b.beat(m.Heartbeat, at >= chunksDone); at == chunksDone {
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

// learn takes in the content of a message. The order of the three stores keeps
// judgements right: see [bundle].
func (b *bundle) learn(n news) error {
	before := b.trust.Load()
	next, err := newTrust(n.GetTrustState(), before, b.leeway, b.log)
	if err != nil {
		return err
	}
	b.revoked.add(n, next, b.fresh.clock.now())
	b.trust.Store(next)
	b.epoch.Add(1)
	if before != nil && !proto.Equal(next.said, before.said) && b.fresh.complete.Load() {
		b.tellKeysChanged()
	}
	return nil
}

// beat takes in a heartbeat. whole says whether everything before the heartbeat has come.
func (b *bundle) beat(beat *watchwordv1.Heartbeat, whole bool) {
	if b.fresh.beat(beat, whole) {
		b.tellKeysChanged()
	}
	b.revoked.prune(b.fresh.clock.now())
}

// tellKeysChanged never blocks: one element in the channel is as good as several.
func (b *bundle) tellKeysChanged() {
	select {
	case b.keysChanged <- struct{}{}:
	default:
	}
}
