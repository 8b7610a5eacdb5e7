package feed

import (
	"context"
	"encoding/binary"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// TrustState is whom to trust now. The caller must not change it.
func (f *Feed) TrustState() *watchwordv1.TrustState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.trust
}

// Watch begins with a snapshot of the state. The watcher must be closed. Its
// only error is ErrTooManyWatchers.
func (f *Feed) Watch() (*Watcher, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.watchers == maxWatchers {
		return nil, ErrTooManyWatchers
	}
	f.watchers++
	if f.snapshot == nil {
		f.snapshot = f.takeSnapshot()
	}
	return &Watcher{feed: f, snapshot: f.snapshot, seq: f.seq, next: f.first + len(f.log)}, nil
}

// Watcher is one watcher's place in the feed. It is not safe for concurrent use.
type Watcher struct {
	feed     *Feed
	snapshot []*watchwordv1.WatchBundleResponse // what is left of it; shared; nil when a heartbeat has followed it
	seq      int64                              // of the snapshot
	next     int
}

// Close gives the watcher's place to another. It must be called once.
func (w *Watcher) Close() {
	w.feed.mu.Lock()
	defer w.feed.mu.Unlock()
	w.feed.watchers--
}

// Next waits for the next message, which many watchers share: it must not be
// changed. Its error is ErrBehind or ctx's.
func (w *Watcher) Next(ctx context.Context) (*watchwordv1.WatchBundleResponse, error) {
	e, err := w.nextEntry(ctx)
	return e.message, err
}

func (w *Watcher) nextEntry(ctx context.Context) (entry, error) {
	for {
		e, changed, err := w.poll()
		if err != nil || changed == nil {
			return e, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return entry{}, ctx.Err()
		}
	}
}

// poll returns the next entry, or what to wait for.
func (w *Watcher) poll() (entry, chan struct{}, error) {
	f := w.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(w.snapshot) > 0 {
		chunk := w.snapshot[0]
		w.snapshot = w.snapshot[1:]
		return entry{message: chunk}, nil, nil // its number stands behind the last
	}
	if w.snapshot != nil {
		w.snapshot = nil
		beat := f.heartbeat(time.Now())
		beat.Resume = nil // the state may be ahead of this watcher
		return entry{seq: w.seq, message: beat}, nil, nil
	}
	if w.next < f.first {
		return entry{}, nil, ErrBehind
	}
	if i := w.next - f.first; i < len(f.log) {
		w.next++
		return f.log[i], nil, nil
	}
	return entry{}, f.changed, nil
}

// takeSnapshot is the state as messages; mu is held.
func (f *Feed) takeSnapshot() []*watchwordv1.WatchBundleResponse {
	chunks := []*watchwordv1.SnapshotChunk{{TrustState: f.trust}}
	n := 0
	chunk := func() *watchwordv1.SnapshotChunk {
		if n++; n%chunkSize == 0 {
			chunks = append(chunks, &watchwordv1.SnapshotChunk{})
		}
		return chunks[len(chunks)-1]
	}
	for id, until := range f.ended {
		c := chunk()
		c.EndedSessions = append(c.EndedSessions, endedSession(id, until))
	}
	for s, r := range f.raised {
		c := chunk()
		c.RaisedVersions = append(c.RaisedVersions, raisedVersion(s, r))
	}
	chunks[len(chunks)-1].Last = true
	messages := make([]*watchwordv1.WatchBundleResponse, len(chunks))
	for i, c := range chunks {
		messages[i] = &watchwordv1.WatchBundleResponse{
			Message: &watchwordv1.WatchBundleResponse_SnapshotChunk{SnapshotChunk: c},
		}
	}
	messages[len(messages)-1].Resume = f.resume()
	return messages
}

// resume says where a later stream can go on: number, tag, and which database.
func (f *Feed) resume() []byte {
	resume := binary.BigEndian.AppendUint64(nil, uint64(f.seq))
	resume = append(resume, f.tag...)
	return append(resume, f.origin...)
}

func endedSession(id string, until time.Time) *watchwordv1.EndedSession {
	return &watchwordv1.EndedSession{SessionId: id, Until: timestamppb.New(until)}
}

func raisedVersion(s subject, r raise) *watchwordv1.RaisedVersion {
	return &watchwordv1.RaisedVersion{UserId: s.userID, Version: r.version, Revoked: s.revoked, Until: timestamppb.New(r.until)}
}
