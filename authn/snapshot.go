package authn

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// A snapshot holds the content of a trust bundle as bytes:
//
//	"watchword snapshot 1\n"
//	this machine's clock at the newest heartbeat, ns since 1970, 8 bytes, big-endian
//	WatchBundleResponse messages, each behind its length, a varint: chunks as at the
//	    beginning of a stream, and one heartbeat with the resume token for the next stream
//	SHA-256 of everything before, 32 bytes
//
// So [bundle.apply] reads a snapshot as it reads a stream. The checksum detects damage by
// a disk. It stops no attacker: anyone able to write the file can compute the checksum.
const (
	snapshotMagic = "watchword snapshot "
	snapshotBegin = snapshotMagic + "1\n"
	// maxSnapshot bounds the memory for reading, in bytes: some five million revocations.
	maxSnapshot = 256 << 20
	// snapshotChunk limits the entries in one message.
	snapshotChunk = 1000
)

// version identifies the content of a bundle: at two equal versions a snapshot is the same.
type version struct {
	epoch uint64
	asOf  int64
}

// version returns the present version, and whether the bundle is complete.
func (b *bundle) version() (version, bool) {
	return version{b.epoch.Load(), b.fresh.position.Load().asOf}, b.fresh.complete.Load()
}

// writeSnapshot writes a complete bundle, and returns the number of bytes written, also
// with an error. The feed may apply messages during the call, and the snapshot may have
// them or not. Both are right, because writeSnapshot reads the position before everything
// else: the next Verifier asks the server for all messages after the position.
func (b *bundle) writeSnapshot(to io.Writer) (size int, err error) {
	at := b.fresh.position.Load()
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(to, sum), 64<<10)
	out.WriteString(snapshotBegin) // Flush returns the error of every write
	binary.Write(out, binary.BigEndian, at.local.UnixNano())
	size = len(snapshotBegin) + 8 + sha256.Size
	for m := range b.messages(at) {
		n, err := protodelim.MarshalTo(out, m)
		if size += n; err != nil {
			return size, err
		}
		if size > maxSnapshot {
			return size, fmt.Errorf("the content is longer than %d bytes", maxSnapshot)
		}
	}
	if err := out.Flush(); err != nil {
		return size, err
	}
	_, err = to.Write(sum.Sum(nil))
	return size, err
}

// messages returns the messages of a snapshot: the trust state and all revocations, in
// chunks, and a heartbeat with the position.
func (b *bundle) messages(at *position) iter.Seq[*watchwordv1.WatchBundleResponse] {
	return func(yield func(*watchwordv1.WatchBundleResponse) bool) {
		trust := b.trust.Load()
		next := &watchwordv1.SnapshotChunk{TrustState: trust.said}
		send := func() bool {
			full := next
			next = &watchwordv1.SnapshotChunk{}
			return yield(&watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_SnapshotChunk{SnapshotChunk: full}})
		}
		hasRoom := func() bool { return len(next.EndedSessions)+len(next.RaisedVersions)+2 <= snapshotChunk }
		for id, keep := range b.revoked.ended.all(&b.revoked.mu) {
			if !hasRoom() && !send() {
				return
			}
			next.EndedSessions = append(next.EndedSessions, &watchwordv1.EndedSession{SessionId: id, Until: trust.expiryBefore(keep)})
		}
		for id, r := range b.revoked.raised.all(&b.revoked.mu) {
			if !hasRoom() && !send() {
				return
			}
			until := trust.expiryBefore(r.keep)
			next.RaisedVersions = append(next.RaisedVersions,
				&watchwordv1.RaisedVersion{UserId: id, Version: r.revokedBelow, Revoked: true, Until: until},
				&watchwordv1.RaisedVersion{UserId: id, Version: r.staleBelow, Until: until})
		}
		next.Last = true
		beat := &watchwordv1.Heartbeat{ServerTime: timestamppb.New(at.server), AsOf: timestamppb.New(time.Unix(0, at.asOf))}
		_ = send() && yield(&watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: beat}, Resume: at.resume})
	}
}

// readSnapshot fills an empty bundle from a snapshot of the given length in bytes. After
// an error the bundle must not be used.
func (b *bundle) readSnapshot(from io.Reader, length int64) error {
	if length > maxSnapshot+sha256.Size {
		return fmt.Errorf("longer than %d bytes", maxSnapshot)
	}
	sum := sha256.New()
	body := bufio.NewReader(io.TeeReader(io.LimitReader(from, length-sha256.Size), sum))
	local, err := readBegin(body)
	if err != nil {
		return err
	}
	last, err := b.applySnapshot(body, length)
	if err != nil {
		return err
	}
	if n, _ := io.Copy(io.Discard, body); n > 0 {
		return errors.New("more bytes follow the end")
	}
	want := make([]byte, sha256.Size)
	if _, err := io.ReadFull(from, want); err != nil || !bytes.Equal(want, sum.Sum(nil)) {
		return errors.New("damaged: the checksum does not match the content")
	}
	return b.recall(last, local)
}

// readBegin reads the bytes before the messages, and returns the time of this machine's
// clock.
func readBegin(body io.Reader) (time.Time, error) {
	begin := make([]byte, len(snapshotBegin)+8)
	if _, err := io.ReadFull(body, begin); err != nil || !bytes.HasPrefix(begin, []byte(snapshotMagic)) {
		return time.Time{}, errors.New("not a snapshot of a trust bundle")
	}
	if !bytes.HasPrefix(begin, []byte(snapshotBegin)) {
		return time.Time{}, errors.New("written in another version of the format")
	}
	return time.Unix(0, int64(binary.BigEndian.Uint64(begin[len(snapshotBegin):]))), nil
}

// applySnapshot applies the chunks and returns the heartbeat behind them.
func (b *bundle) applySnapshot(body *bufio.Reader, length int64) (*watchwordv1.WatchBundleResponse, error) {
	for at := streamOpened; ; {
		msg := &watchwordv1.WatchBundleResponse{}
		// No message is longer than the whole snapshot, whatever the message's length says.
		if err := (protodelim.UnmarshalOptions{MaxSize: length}).UnmarshalFrom(body, msg); err != nil {
			return nil, fmt.Errorf("malformed: %w", err)
		}
		chunk := msg.GetSnapshotChunk()
		switch {
		case at == chunksDone && msg.GetHeartbeat() != nil:
			return msg, nil
		case at == chunksDone, chunk == nil, at == trustReceived && chunk.GetTrustState() != nil:
			return nil, errors.New("malformed: a message is out of place")
		}
		var err error
		if at, err = b.apply(msg, at); err != nil {
			return nil, fmt.Errorf("malformed: %w", err)
		}
	}
}

// recall sets the position of the bundle from the heartbeat at the end of a snapshot. local
// is this machine's clock at that heartbeat.
//
// recall deletes the entries that had expired by the server's time in the snapshot. The
// server's time now is only a guess. If recall deleted a revocation by a guess that is too
// late, the server's next heartbeat would correct the clock, and the revoked token would be
// accepted again.
func (b *bundle) recall(last *watchwordv1.WatchBundleResponse, local time.Time) error {
	beat := last.GetHeartbeat()
	server, asOf := beat.GetServerTime().AsTime(), beat.GetAsOf().AsTime()
	if !plausible(server) || !plausible(asOf) || !plausible(local) {
		return errors.New("malformed: a time is missing or impossible")
	}
	b.revoked.prune(server)
	b.fresh.restore(position{
		resume: last.GetResume(),
		asOf:   min(asOf.UnixNano(), server.UnixNano()), // an age is never negative
		server: server,
		local:  local,
	})
	return nil
}

// plausible returns whether a time is far from where arithmetic overflows. An unset time is
// in 1970.
func plausible(t time.Time) bool { return t.Year() > 1970 && t.Year() < 2150 }
