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
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/clock"
)

// A snapshot holds the content of a trust bundle as bytes:
//
//	"watchword snapshot 2\n"
//	a snapshotClock, in big-endian order
//	WatchBundleResponse messages, each behind its length, a varint: chunks as at the
//	    beginning of a stream, and one heartbeat with the resume token for the next stream
//	SHA-256 of everything before, 32 bytes
//
// So [bundle.apply] reads a snapshot as it reads a stream. The checksum detects damage by a
// disk. The checksum stops no attacker: anyone able to write the file can compute the checksum.
const (
	snapshotMagic = "watchword snapshot "
	snapshotBegin = snapshotMagic + "2\n"
	// maxSnapshot is the largest size of a snapshot file that is read, in bytes: about five
	// million revocations.
	maxSnapshot = 256 << 20
	// snapshotChunk is the largest number of entries in one message of a snapshot.
	snapshotChunk = 1000
)

// A snapshotClock holds the clocks at the moment of the write. The heartbeat at the end of the
// snapshot holds the token time of that moment, and the bundle's age: the time between the
// heartbeat's as_of and now.
type snapshotClock struct {
	Wall   int64        // the time of this machine's clock, in ns since 1970
	Boot   [36]byte     // the id of the machine's boot; zero if unknown
	Up     int64        // the time since the boot of the machine, in ns
	Memory clock.Memory // what the verifier has learned about the clocks of the server
}

// version identifies the content of a bundle: if the version is the same, the snapshot is the
// same.
type version struct {
	epoch uint64
	asOf  time.Duration
}

// version returns the present version, and whether the bundle is complete.
func (b *bundle) version() (version, bool) {
	return version{b.epoch.Load(), b.fresh.position.Load().asOf}, b.fresh.complete.Load()
}

// writeSnapshot writes a complete bundle, and returns the number of bytes written, even with an
// error. The feed may apply messages during the call of writeSnapshot. Whether the snapshot
// contains such a message makes no difference, since writeSnapshot reads the position before
// everything else: the next Verifier asks the server for all messages after the position.
func (b *bundle) writeSnapshot(to io.Writer) (size int, err error) {
	at := b.fresh.position.Load()
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(to, sum), 64<<10)
	out.WriteString(snapshotBegin) // Flush returns the error of every write
	clocks, beat := b.clocks(at)
	binary.Write(out, binary.BigEndian, clocks)
	size = len(snapshotBegin) + binary.Size(clocks) + sha256.Size
	for m := range b.messages(beat) {
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

// messages returns the messages of a snapshot: the trust state and all revocations, in chunks,
// and last the heartbeat.
func (b *bundle) messages(last *watchwordv1.WatchBundleResponse) iter.Seq[*watchwordv1.WatchBundleResponse] {
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
		_ = send() && yield(last)
	}
}

// clocks returns the snapshotClock of a snapshot that is written now, and the heartbeat for a
// position.
func (b *bundle) clocks(at *position) (*snapshotClock, *watchwordv1.WatchBundleResponse) {
	id, up := clock.Boot()
	c := &snapshotClock{Wall: time.Now().UnixNano(), Up: int64(up)}
	copy(c.Boot[:], id)
	earliest, latest := b.fresh.clock.read()
	var now time.Duration
	now, c.Memory = b.fresh.clock.memory(b.trust.Load().remembered())
	return c, &watchwordv1.WatchBundleResponse{Resume: at.resume, Message: &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: &watchwordv1.Heartbeat{
		AsOf: durationpb.New(at.asOf),
		Times: &watchwordv1.ServerTimes{
			Now: durationpb.New(max(now, at.asOf)), Earliest: timestamppb.New(time.Unix(0, earliest)), Latest: timestamppb.New(time.Unix(0, latest)),
		},
	}}}
}

// readSnapshot fills an empty bundle from a snapshot of the given length in bytes. After an
// error the caller must not use the bundle.
func (b *bundle) readSnapshot(from io.Reader, length int64) error {
	if length > maxSnapshot+sha256.Size {
		return fmt.Errorf("longer than %d bytes", maxSnapshot)
	}
	sum := sha256.New()
	body := bufio.NewReader(io.TeeReader(io.LimitReader(from, length-sha256.Size), sum))
	clocks, err := readBegin(body)
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
	return b.recall(last, clocks)
}

// readBegin reads the first line and the snapshotClock of a snapshot, which come before the
// messages.
func readBegin(body io.Reader) (*snapshotClock, error) {
	begin, clocks := make([]byte, len(snapshotBegin)), &snapshotClock{}
	if _, err := io.ReadFull(body, begin); err != nil || !bytes.HasPrefix(begin, []byte(snapshotMagic)) {
		return nil, errors.New("not a snapshot of a trust bundle")
	}
	if string(begin) != snapshotBegin {
		return nil, errors.New("written in another version of the format")
	}
	if err := binary.Read(body, binary.BigEndian, clocks); err != nil {
		return nil, errors.New("malformed: the clocks are missing")
	}
	return clocks, nil
}

// applySnapshot applies the chunks of a snapshot to the bundle, and returns the heartbeat at
// the end.
func (b *bundle) applySnapshot(body *bufio.Reader, length int64) (*watchwordv1.WatchBundleResponse, error) {
	for at := streamOpened; ; {
		msg := &watchwordv1.WatchBundleResponse{}
		// A damaged length must not make the decoder allocate more memory than the whole
		// snapshot takes.
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

// recall sets the position and the clock of the bundle from a snapshot: from the heartbeat
// at the end and the clocks at the beginning.
//
// If this machine has not booted since the write, the time since the write is known: by the
// time since the boot, or by the machine's clock if the clock has gone further. After another
// boot the machine's clock may show any time, so the bundle is stale from the first moment,
// and a revocation is kept until its tokens have expired by every server clock in the snapshot,
// however long ago the clock was heard.
//
// recall takes the latest possible token time. A token time that is too late refuses good
// tokens until the server answers; a token time that is too early would accept expired tokens.
func (b *bundle) recall(last *watchwordv1.WatchBundleResponse, c *snapshotClock) error {
	beat := last.GetHeartbeat()
	latest, wall := beat.GetTimes().GetLatest().AsTime(), time.Unix(0, c.Wall)
	age := beat.GetTimes().GetNow().AsDuration() - beat.GetAsOf().AsDuration()
	if !plausible(latest) || !plausible(wall) || beat.GetTimes().GetNow() == nil || beat.GetAsOf() == nil || age < 0 || age > longAge || c.Memory.Heard < 0 {
		return errors.New("malformed: a time is missing or impossible")
	}
	passed := max(0, time.Since(wall))
	id, up := clock.Boot()
	same := id != "" && string(c.Boot[:]) == id
	if same {
		passed = max(passed, up-time.Duration(c.Up))
	} else {
		age = max(age, b.fresh.limit.after+time.Nanosecond)
	}
	token := max(time.Duration(nanosOf(latest))+passed, time.Duration(time.Now().UnixNano()))
	b.fresh.clock.guess(clock.Answer(token, 0, 0))
	if !same {
		c.Memory.Heard = 0
	}
	b.fresh.clock.remember(passed, c.Memory)
	b.fresh.restore(position{resume: last.GetResume(), asOf: -age - passed})
	return nil
}

// longAge is the longest age of a bundle that readSnapshot accepts.
const longAge = 100 * 365 * 24 * time.Hour

// plausible reports whether a time is one with which arithmetic cannot overflow. A time that
// was not set is in 1970, and is not plausible.
func plausible(t time.Time) bool { return t.Year() > 1970 && t.Year() < 2150 }
