package gate

import (
	"encoding/binary"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/credentials"
)

// This file follows the frames of HTTP/2 on every connection, inside of TLS, and bounds
// what gRPC keeps in memory without a bound.
//
// A request in tiny pieces: gRPC keeps each DATA frame of a message that has not arrived
// whole as a value of its own, of about a hundred bytes, so a window of 64 KiB filled by
// frames of one byte would take some seven MiB. Flow control counts the bytes, and does not
// count the frames.
//
// An answer that the client does not read: see [conn].
//
// Replies to frames, such as to pings and to refused calls, that the client does not read.

const (
	// smallFrame is the length below which a DATA frame counts as small, in bytes. Clients
	// send a message in one frame, or in frames of 16 KiB.
	smallFrame = 256
	// maxSmallFrames bounds the small frames of one stream. With frames of one byte, the
	// memory of a stream is then about twice its window of 64 KiB. Streams on which a
	// client sends many small messages do not come near: reflection needs some dozens.
	maxSmallFrames = 1024
	// maxCounted bounds the streams with a count: more than a connection may have open at a
	// time (maxStreams in package server), since a client may abandon streams.
	maxCounted = 256
	// maxUnread bounds the frames read while a write to the client makes no progress for
	// longer than stuck.
	maxUnread = 1000
	stuck     = time.Second
	// maxHandshake bounds what a client may send before the end of the TLS handshake, in
	// bytes. A ClientHello has some hundred bytes, and a chain of client certificates some
	// KiB.
	maxHandshake = 32 << 10

	// maxKept bounds the lists that an idle connection keeps, in elements.
	maxKept = 64

	frameHeader = 9 // bytes (RFC 9113, section 4.1)
)

var (
	errUnread    = errors.New("gate: the client sends and reads nothing")
	errHandshake = errors.New("gate: the TLS handshake is too long")
)

// Guard returns credentials that follow the frames on every connection of a server.
func Guard(c credentials.TransportCredentials) credentials.TransportCredentials { return guard{c} }

type guard struct {
	credentials.TransportCredentials
}

// ServerHandshake wraps the connection after the handshake, where its bytes are HTTP/2.
func (g guard) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	shaking := &handshake{Conn: raw, left: maxHandshake}
	c, info, err := g.TransportCredentials.ServerHandshake(shaking)
	if err != nil {
		return nil, nil, err
	}
	shaking.over.Store(true)
	p := &pieces{Conn: c, skip: len(http2.ClientPreface), small: map[uint32]int{}, reset: map[uint32]bool{}}
	p.owner, _ = raw.(*conn)
	return p, info, nil
}

// Clone returns a copy.
func (g guard) Clone() credentials.TransportCredentials { return guard{g.TransportCredentials.Clone()} }

// handshake is a connection that bounds the bytes read before the end of the handshake.
type handshake struct {
	net.Conn
	left int // bytes; one goroutine reads
	over atomic.Bool
}

// Read reads from the connection. Errors: errHandshake; those of the connection.
func (h *handshake) Read(b []byte) (int, error) {
	if h.over.Load() {
		return h.Conn.Read(b)
	}
	if h.left <= 0 {
		return 0, errHandshake
	}
	n, err := h.Conn.Read(b[:min(len(b), h.left)])
	h.left -= n
	return n, err
}

// frames finds the headers of frames in a stream of bytes.
type frames struct {
	skip   int // bytes until the next header
	header []byte
}

// next takes bytes up to the end of the next complete header, and returns the rest. header
// is nil if rest is empty before a header is complete. The header is valid until the next
// call.
func (f *frames) next(b []byte) (header, rest []byte) {
	if len(f.header) == frameHeader {
		f.header = f.header[:0]
	}
	passed := min(f.skip, len(b))
	f.skip -= passed
	b = b[passed:]
	taken := min(frameHeader-len(f.header), len(b))
	f.header = append(f.header, b[:taken]...)
	b = b[taken:]
	if len(f.header) < frameHeader {
		return nil, b
	}
	f.skip = lengthOf(f.header)
	return f.header, b
}

func lengthOf(header []byte) int { return int(header[0])<<16 | int(header[1])<<8 | int(header[2]) }

// head is the header of a frame without the length.
type head struct {
	kind   http2.FrameType
	flags  http2.Flags
	stream uint32
}

func headOf(header []byte) head {
	return head{http2.FrameType(header[3]), http2.Flags(header[4]), binary.BigEndian.Uint32(header[5:]) & (1<<31 - 1)}
}

// endsStream reports whether the sender of a frame of data or headers ends its side of the
// stream.
func (f head) endsStream() bool { // the flag has the same bit for both (RFC 9113, section 6)
	return (f.kind == http2.FrameData || f.kind == http2.FrameHeaders) && f.flags.Has(http2.FlagDataEndStream)
}

// pieces is a connection that follows the frames in both directions. gRPC reads from one
// goroutine, and writes from another.
type pieces struct {
	net.Conn
	owner *conn // nil if the connection is not of a [Listener]

	skip  int             // bytes that are read until the next header
	begun []byte          // the beginning of a header, which Read has not returned
	ready []byte          // bytes with a RST_STREAM among them, which Read has not returned
	small map[uint32]int  // small frames by stream, of streams with an unfinished request
	reset map[uint32]bool // the streams that Read has reset last
	heard []head          // of the present read that matter to the owner

	out     frames
	ended   []uint32     // the streams that the present write ends
	writing atomic.Int64 // when the present write began, in nanoseconds since 1970; 0: no write
	unread  atomic.Int64 // frames read since the last write came to its end
}

// Read reads from the connection. If a stream has too many small frames, Read puts a
// RST_STREAM before the next one: gRPC ends the stream, as if the client had, and the other
// streams of the connection go on. A proxy carries the calls of many clients over one
// connection.
//
// Errors: errUnread; errUndelivered; those of the connection.
func (p *pieces) Read(b []byte) (int, error) {
	for {
		if len(p.ready) > 0 {
			n := copy(b, p.ready)
			if p.ready = p.ready[n:]; len(p.ready) == 0 {
				p.ready = nil
			}
			return n, nil
		}
		into, direct := b, len(b) > frameHeader
		if !direct { // gRPC reads with larger buffers
			into = make([]byte, 4<<10)
		}
		n, err := p.read(into)
		switch {
		case len(p.ready) > 0:
		case n > 0 && !direct:
			p.ready = into[:n]
		case n > 0 || err != nil:
			return n, err
		}
	}
}

// read reads into b, which has room for more than a header, and follows the frames. read
// keeps the beginning of a header back until the header is complete, since a RST_STREAM may
// have to stand before it. If read puts a RST_STREAM between the frames, all bytes are in
// p.ready, and none in b.
func (p *pieces) read(b []byte) (int, error) {
	kept := copy(b, p.begun)
	n, err := p.Conn.Read(b[kept:])
	n += kept
	p.begun = p.begun[:0]
	p.heard = p.heard[:0]
	at, count := 0, int64(0)
	for {
		passed := min(p.skip, n-at)
		p.skip -= passed
		if at += passed; n-at < frameHeader {
			break
		}
		header := b[at : at+frameHeader]
		p.skip = lengthOf(header)
		f := headOf(header)
		if !p.allow(f) && !p.reset[f.stream] {
			p.endStream(f.stream)
			p.ready = append(append(p.ready, b[:at]...), reset(f.stream)...)
			b, n, at = b[at:], n-at, 0
		}
		at += frameHeader
		if count++; f.kind == http2.FrameHeaders || f.kind == http2.FrameRSTStream || f.endsStream() {
			p.heard = append(p.heard, f)
		}
	}
	whole := p.skip == 0 && at == n
	if p.skip == 0 {
		p.begun = append(p.begun, b[at:n]...)
		n = at
	}
	if p.ready != nil {
		p.ready = append(p.ready, b[:n]...)
		n = 0
	}
	gone := errors.Join(p.gone(count), p.owner.heard(p.heard, whole))
	if cap(p.heard) > maxKept {
		p.heard = nil
	}
	if gone != nil {
		return 0, gone
	}
	return n, err
}

// endStream notes that Read resets a stream.
func (p *pieces) endStream(stream uint32) {
	p.heard = append(p.heard, head{kind: http2.FrameRSTStream, stream: stream})
	if len(p.reset) == maxCounted { // a second RST_STREAM for a stream does no harm
		clear(p.reset)
	}
	p.reset[stream] = true
}

// gone counts the frames of a read, and returns errUnread if the client does not read.
func (p *pieces) gone(count int64) error {
	if p.unread.Add(count) > maxUnread {
		if began := p.writing.Load(); began != 0 && time.Since(time.Unix(0, began)) > stuck {
			return errUnread
		}
	}
	return nil
}

// reset returns the frame RST_STREAM with the code ENHANCE_YOUR_CALM.
func reset(stream uint32) []byte {
	frame := []byte{0, 0, 4, byte(http2.FrameRSTStream), 0}
	frame = binary.BigEndian.AppendUint32(frame, stream)
	return binary.BigEndian.AppendUint32(frame, uint32(http2.ErrCodeEnhanceYourCalm))
}

// allow counts a frame, and reports whether its stream keeps the bound.
func (p *pieces) allow(f head) bool {
	switch {
	case f.kind == http2.FrameRSTStream, f.kind == http2.FrameData && f.endsStream():
		delete(p.small, f.stream)
	// Padding counts for the window and is given back at once, so a padded frame may be a
	// small one of any length.
	case f.kind == http2.FrameData && (p.skip < smallFrame || f.flags.Has(http2.FlagDataPadded)):
		return p.count(f.stream) <= maxSmallFrames
	}
	return true
}

// count counts a small frame of a stream. When the table is full, the stream takes over the
// place and the count of the stream with the lowest count, so that no stream can lower its
// own count by frames on other streams.
func (p *pieces) count(stream uint32) int {
	if _, known := p.small[stream]; !known && len(p.small) == maxCounted {
		lowest := stream
		for other, n := range p.small {
			if lowest == stream || n < p.small[lowest] {
				lowest = other
			}
		}
		p.small[stream] = p.small[lowest]
		delete(p.small, lowest)
	}
	p.small[stream]++
	return p.small[stream]
}

// Write writes to the connection, and notes which streams have ended by it.
func (p *pieces) Write(b []byte) (int, error) {
	p.writing.Store(time.Now().UnixNano())
	n, err := p.Conn.Write(b)
	p.writing.Store(0)
	p.unread.Store(0)
	p.ended = p.ended[:0]
	for rest := b[:n]; len(rest) > 0; {
		var header []byte
		if header, rest = p.out.next(rest); header != nil {
			if f := headOf(header); f.kind == http2.FrameRSTStream || f.endsStream() {
				p.ended = append(p.ended, f.stream)
			}
		}
	}
	p.owner.delivered(p.ended...)
	if cap(p.ended) > maxKept {
		p.ended = nil
	}
	return n, err
}
