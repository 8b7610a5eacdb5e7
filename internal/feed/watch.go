package feed

import (
	"context"
	"encoding/binary"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// TrustState is whom to trust now. The caller must not change it.
func (f *Feed) TrustState() *watchwordv1.TrustState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.trust
}

// Watch begins with a snapshot of the state. Nothing has to be closed.
func (f *Feed) Watch() *Watcher {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := &Watcher{feed: f, next: f.first + len(f.log)}
	for _, chunk := range f.snapshot() {
		w.pending = append(w.pending, entry{message: chunk}) // its number stands behind the last
	}
	w.pending = append(w.pending, entry{seq: f.seq}) // a heartbeat, made when it is sent
	return w
}

// Watcher is one watcher's place in the feed. It is not safe for concurrent
// use, and costs nothing when it is dropped.
type Watcher struct {
	feed    *Feed
	pending []entry
	next    int
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
	if len(w.pending) > 0 {
		e := w.pending[0]
		w.pending = w.pending[1:]
		if e.message == nil {
			e.message = f.heartbeat(time.Now())
		}
		return e, nil, nil
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

// snapshot is the state as messages; mu is held.
func (f *Feed) snapshot() []*watchwordv1.WatchBundleResponse {
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
	for id, raises := range f.raised {
		for revoked, r := range raises {
			c := chunk()
			c.RaisedVersions = append(c.RaisedVersions, raisedVersion(id, revoked, r))
		}
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

func raisedVersion(id string, revoked bool, r raise) *watchwordv1.RaisedVersion {
	return &watchwordv1.RaisedVersion{UserId: id, Version: r.version, Revoked: revoked, Until: timestamppb.New(r.until)}
}

// deliver copies a shared message into a receiver's own.
func deliver(dst any, message *watchwordv1.WatchBundleResponse) {
	m := dst.(proto.Message)
	proto.Reset(m)
	proto.Merge(m, message)
}
