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

// A snapshot is what a bundle knows, as bytes:
//
//	"watchword snapshot 1\n"
//	this machine's clock at the newest heartbeat, ns since 1970, 8 bytes, big-endian
//	WatchBundleResponse messages, each behind its length, a varint: chunks as a
//	    stream begins with, and one heartbeat, which says where to go on (resume)
//	SHA-256 of all before, 32 bytes
//
// So reading it is applying it, by the code that applies a stream. The sum tells
// what a disk has damaged. It is no protection from a person: who can write the
// file can compute it.
const (
	snapshotMagic = "watchword snapshot "
	snapshotBegin = snapshotMagic + "1\n"
	// maxSnapshot bounds what is read into memory, in bytes: some five million
	// revocations.
	maxSnapshot = 256 << 20
	// snapshotChunk entries are one message.
	snapshotChunk = 1000
)

// mark tells whether a bundle has heard anything since.
type mark struct {
	learned uint64
	asOf    int64
}

// mark is ok once there is a bundle to keep.
func (b *bundle) mark() (m mark, ok bool) {
	asOf := b.asOf.Load() // first: what was sent before it has been learned by now
	b.mu.RLock()
	defer b.mu.RUnlock()
	return mark{b.learned, asOf}, b.complete
}

// writeSnapshot writes a bundle that is complete, and returns how much it wrote.
// The feed goes on meanwhile. What it brings may be in it or not: where to go on, and
// as of when this is, were read before, so that either is true.
func (b *bundle) writeSnapshot(to io.Writer) (int64, error) {
	asOf := time.Unix(0, b.asOf.Load())
	b.mu.RLock()
	resume, heard, trust := b.resume, b.heard, b.trust
	b.mu.RUnlock()

	sum := sha256.New()
	counted := &counter{to: io.MultiWriter(to, sum)}
	out := bufio.NewWriterSize(counted, 64<<10)
	out.WriteString(snapshotBegin) // its errors come again at the end
	binary.Write(out, binary.BigEndian, heard.local.UnixNano())
	for chunk := range b.chunks(trust) {
		err := send(out, &watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_SnapshotChunk{SnapshotChunk: chunk}})
		if err == nil && counted.n > maxSnapshot {
			err = fmt.Errorf("there is more to keep than %d bytes", maxSnapshot)
		}
		if err != nil {
			return counted.n, err
		}
	}
	beat := &watchwordv1.Heartbeat{ServerTime: timestamppb.New(heard.server), AsOf: timestamppb.New(asOf)}
	last := &watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: beat}, Resume: resume}
	if err := send(out, last); err != nil {
		return counted.n, err
	}
	if err := out.Flush(); err != nil {
		return counted.n, err
	}
	_, err := to.Write(sum.Sum(nil))
	return counted.n + sha256.Size, err
}

func send(out *bufio.Writer, m *watchwordv1.WatchBundleResponse) error {
	_, err := protodelim.MarshalTo(out, m)
	return err
}

// counter counts what is written.
type counter struct {
	to io.Writer
	n  int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.n += int64(n)
	return n, err
}

// chunks are the trust state and all revocations.
func (b *bundle) chunks(trust *trust) iter.Seq[*watchwordv1.SnapshotChunk] {
	return func(yield func(*watchwordv1.SnapshotChunk) bool) {
		next := &watchwordv1.SnapshotChunk{TrustState: trust.said}
		for id, keep := range b.ended.all(&b.mu) {
			next.EndedSessions = append(next.EndedSessions, &watchwordv1.EndedSession{SessionId: id, Until: trust.until(keep)})
			if len(next.EndedSessions) == snapshotChunk {
				if !yield(next) {
					return
				}
				next = &watchwordv1.SnapshotChunk{}
			}
		}
		for id, r := range b.raised.all(&b.mu) {
			if len(next.EndedSessions)+len(next.RaisedVersions) >= snapshotChunk-1 {
				if !yield(next) {
					return
				}
				next = &watchwordv1.SnapshotChunk{}
			}
			next.RaisedVersions = append(next.RaisedVersions,
				&watchwordv1.RaisedVersion{UserId: id, Version: r.revokedBelow, Revoked: true, Until: trust.until(r.keep)},
				&watchwordv1.RaisedVersion{UserId: id, Version: r.staleBelow, Until: trust.until(r.keep)})
		}
		next.Last = true
		yield(next)
	}
}

// until is what a server would say of a revocation that is kept until then: see
// bundle.keep.
func (t *trust) until(keep int64) *timestamppb.Timestamp {
	return timestamppb.New(time.Unix(keep-1, 0).Add(-t.margin))
}

// readSnapshot makes a snapshot of the given length what an empty bundle knows.
// After an error the bundle is good for nothing.
func (b *bundle) readSnapshot(from io.Reader, length int64) error {
	if length > maxSnapshot+sha256.Size {
		return fmt.Errorf("it is longer than %d bytes", maxSnapshot)
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
		return errors.New("something comes behind its end")
	}
	want := make([]byte, sha256.Size)
	if _, err := io.ReadFull(from, want); err != nil || !bytes.Equal(want, sum.Sum(nil)) {
		return errors.New("it is damaged: its checksum is not that of what it holds")
	}
	return b.recall(last, local)
}

// readBegin reads what comes before the messages, and returns what this machine's
// clock said.
func readBegin(body io.Reader) (time.Time, error) {
	begin := make([]byte, len(snapshotBegin)+8)
	if _, err := io.ReadFull(body, begin); err != nil || !bytes.HasPrefix(begin, []byte(snapshotMagic)) {
		return time.Time{}, errors.New("it is no snapshot of a trust bundle")
	}
	if !bytes.HasPrefix(begin, []byte(snapshotBegin)) {
		return time.Time{}, errors.New("it is of another version of this package")
	}
	return time.Unix(0, int64(binary.BigEndian.Uint64(begin[len(snapshotBegin):]))), nil
}

// applySnapshot applies the chunks and returns the heartbeat behind them.
func (b *bundle) applySnapshot(body *bufio.Reader, length int64) (*watchwordv1.WatchBundleResponse, error) {
	for at := opened; ; {
		msg := &watchwordv1.WatchBundleResponse{}
		// No message is longer than the whole, whatever its length says.
		if err := (protodelim.UnmarshalOptions{MaxSize: length}).UnmarshalFrom(body, msg); err != nil {
			return nil, fmt.Errorf("it is malformed: %w", err)
		}
		chunk := msg.GetSnapshotChunk()
		switch {
		case at == told && msg.GetHeartbeat() != nil:
			return msg, nil
		case at == told, chunk == nil, at == trusting && chunk.GetTrustState() != nil:
			return nil, errors.New("it is malformed: a message is out of place")
		}
		var err error
		if at, err = b.apply(msg, at); err != nil {
			return nil, fmt.Errorf("it is malformed: %w", err)
		}
	}
}

// recall takes in the end of a snapshot: until when all is known, where to go on,
// and what time it was, by the server's clock and by this machine's.
//
// What is over is forgotten by the server's time then, and not by what it may be
// now, which is a guess: were it too late, and a token's revocation forgotten, the
// token would be good again as soon as the server says what time it is.
func (b *bundle) recall(last *watchwordv1.WatchBundleResponse, local time.Time) error {
	beat := last.GetHeartbeat()
	server, asOf := beat.GetServerTime().AsTime(), beat.GetAsOf().AsTime()
	if !plausible(server) || !plausible(asOf) || !plausible(local) {
		return errors.New("it is malformed: no time, or an impossible one")
	}
	b.clock.guess(server, local)
	b.asOf.Store(min(asOf.UnixNano(), server.UnixNano())) // an age is never negative
	b.mu.Lock()
	b.complete, b.resume, b.heard = true, last.GetResume(), reading{server, local}
	b.mu.Unlock()
	b.forget(server)
	b.watchStale()
	return nil
}

// plausible keeps arithmetic far from where it overflows. A time that isn't set is
// 1970.
func plausible(t time.Time) bool { return t.Year() > 1970 && t.Year() < 2150 }
