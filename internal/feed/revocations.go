package feed

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/store"
)

// revocations are what is revoked and has not expired, in the very chunks that a
// snapshot is sent in. Events come in the order in which they expire, or nearly,
// so that nothing need be looked up: a chunk is forgotten when the last of it
// has expired. A million take some 40 MB, and a snapshot of them a list of a
// thousand chunks that are there.
type revocations struct {
	full    []fullChunk               // watchers hold it: it is added to, or replaced
	open    watchwordv1.SnapshotChunk // the newest, which others are still added to
	encoded Message                   // open, unless it has changed since
	last    time.Time                 // of those in it, the one that expires last
}

type fullChunk struct {
	message Message
	until   time.Time
}

// add brings one event in, and into a change.
func (r *revocations) add(e *store.Event, change *watchwordv1.Change) {
	until := timestamppb.New(e.ExpiresAt)
	switch e.Kind {
	case store.SessionEnded:
		ended := &watchwordv1.EndedSession{SessionId: e.Subject, Until: until}
		change.EndedSessions = append(change.EndedSessions, ended)
		r.open.EndedSessions = append(r.open.EndedSessions, ended)
	case store.VersionStale, store.VersionRevoked:
		raised := &watchwordv1.RaisedVersion{
			UserId: e.Subject, Version: e.Version, Revoked: e.Kind == store.VersionRevoked, Until: until,
		}
		change.RaisedVersions = append(change.RaisedVersions, raised)
		r.open.RaisedVersions = append(r.open.RaisedVersions, raised)
	default:
		return
	}
	r.encoded = nil
	if r.last.Before(e.ExpiresAt) {
		r.last = e.ExpiresAt
	}
	if len(r.open.EndedSessions)+len(r.open.RaisedVersions) == chunkSize {
		r.full = append(r.full, fullChunk{r.newest(), r.last})
		r.reopen()
	}
}

func (r *revocations) reopen() {
	r.open.EndedSessions, r.open.RaisedVersions, r.encoded, r.last = nil, nil, nil, time.Time{}
}

// forget drops the chunks that have expired whole.
func (r *revocations) forget(now time.Time) {
	expired := func(c fullChunk) bool { return c.until.Before(now) }
	if slices.ContainsFunc(r.full, expired) {
		r.full = slices.DeleteFunc(slices.Clone(r.full), expired)
	}
	if r.last.Before(now) {
		r.reopen()
	}
}

// newest is the open chunk; nil, where nothing is in it.
func (r *revocations) newest() Message {
	if r.encoded == nil && len(r.open.EndedSessions)+len(r.open.RaisedVersions) > 0 {
		r.encoded = encode(chunk(&r.open))
	}
	return r.encoded
}

func chunk(c *watchwordv1.SnapshotChunk) *watchwordv1.WatchBundleResponse {
	return &watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_SnapshotChunk{SnapshotChunk: c}}
}

// encode cannot fail: every string in the messages is valid UTF-8, since the
// store holds no other.
func encode(m *watchwordv1.WatchBundleResponse) Message {
	wire, err := proto.Marshal(m)
	if err != nil {
		panic("feed: encoding a message of our own: " + err.Error())
	}
	return wire
}
