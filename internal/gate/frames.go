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

// This file follows the frames of HTTP/2 on every connection, inside of TLS. gRPC keeps three
// kinds of data in memory without a bound, and this file bounds each kind.
//
// The first bound is for a request in tiny pieces. Until a message has arrived whole, gRPC
// keeps each DATA frame of the message as a value of about a hundred bytes. So a window of 64
// KiB filled by frames of one byte would take some seven MiB: the flow control of HTTP/2 counts
// only the bytes.
//
// The second bound is for answers that the client leaves unread; see [conn].
//
// The third bound is for replies that gRPC sends by itself, such as to pings and refused
// calls: the replies pile up if the client does not read. See maxUnread.

const (
	// smallFrame is the length below which a DATA frame counts as small, in bytes. Clients
	// send a message in one frame, or in frames of 16 KiB.
	smallFrame = 256
	// maxSmallFrames bounds the small frames of one stream. With maxSmallFrames frames of
	// one byte, a stream takes about twice the window of 64 KiB. Reflection, a stream with
	// many small messages, needs some dozens of frames.
	maxSmallFrames = 1024
	// maxCounted bounds the streams of a connection with a count of small frames. A connection
	// can have fewer streams open at a time (maxStreams in package server), but the streams
	// that a client has abandoned keep their counts.
	maxCounted = 256
	// If one write to the client has taken longer than stuck, and more than maxUnread frames
	// have come since the last write ended, Read ends the connection.
	maxUnread = 1000
	stuck     = time.Second
	// maxHandshake bounds the bytes that a client can send before the end of the TLS handshake.
	// A ClientHello has some hundred bytes, and a chain of client certificates some KiB.
	maxHandshake = 32 << 10

	// maxKept bounds the capacity of the slices that a connection keeps for its next read or
	// write, in elements.
	maxKept = 64

	frameHeader = 9 // bytes (RFC 9113, section 4.1)
)

var (
	errUnread    = errors.New("gate: the client keeps sending, and does not read the replies")
	errHandshake = errors.New("gate: the TLS handshake is too long")
)

// Guard returns credentials that bound what gRPC keeps in memory for a connection: see
// [framedConn].
func Guard(c credentials.TransportCredentials) credentials.TransportCredentials { return guard{c} }

type guard struct {
	credentials.TransportCredentials
}

// ServerHandshake makes the TLS handshake, and returns a [framedConn], which follows the HTTP/2
// frames.
func (g guard) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	shaking := &handshake{Conn: raw, left: maxHandshake}
	c, info, err := g.TransportCredentials.ServerHandshake(shaking)
	if err != nil {
		return nil, nil, err
	}
	shaking.over.Store(true)
	owner, ok := raw.(*conn)
	if !ok { // no [Listener] has accepted the connection
		owner = &conn{}
	}
	return &framedConn{Conn: c, owner: owner, skip: len(http2.ClientPreface), small: map[uint32]int{}}, info, nil
}

// Clone implements [credentials.TransportCredentials].
func (g guard) Clone() credentials.TransportCredentials { return guard{g.TransportCredentials.Clone()} }

// handshake bounds the bytes that TLS reads from a connection before the handshake ends.
type handshake struct {
	net.Conn
	left int // bytes; only the goroutine that reads uses left
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

// frames finds the headers of HTTP/2 frames in a stream of bytes.
type frames struct {
	skip   int // bytes until the next header
	header []byte
}

// next takes bytes of b up to the end of the next complete frame header, and returns the header
// and the bytes after the header. If b ends before a header is complete, next returns a nil
// header. A returned header stays valid until the following call.
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

// head holds the header of an HTTP/2 frame without the length.
type head struct {
	kind   http2.FrameType
	flags  http2.Flags
	stream uint32
}

func headOf(header []byte) head {
	return head{http2.FrameType(header[3]), http2.Flags(header[4]), binary.BigEndian.Uint32(header[5:]) & (1<<31 - 1)}
}

// endsStream reports whether a frame ends the sender's side of the stream. END_STREAM has
// the same bit in DATA and HEADERS frames (RFC 9113, section 6).
func (f head) endsStream() bool {
	return (f.kind == http2.FrameData || f.kind == http2.FrameHeaders) && f.flags.Has(http2.FlagDataEndStream)
}

// framedConn follows the HTTP/2 frames of a connection in both directions. gRPC reads in one
// goroutine, and writes in another.
type framedConn struct {
	net.Conn
	owner *conn // the accepted connection that carries this TLS connection

	// Only the goroutine that reads uses these fields.
	skip  int            // bytes of the stream until the next header
	begun []byte         // the first bytes of a header; Read returns them when the header is complete
	ready []byte         // what the next Read returns; a RST_STREAM is among the bytes
	small map[uint32]int // small frames by stream, of streams with an unfinished request
	heard []head         // the frames of the present read, for [conn.heard]

	out     frames       // only the goroutine that writes uses out
	ended   []uint32     // the streams that the present write ends
	writing atomic.Int64 // when the present write began, in nanoseconds since 1970; 0: no write
	unread  atomic.Int64 // frames read since the last write came to its end
}

// Read reads from the connection. If a stream has too many small frames, Read puts a
// RST_STREAM before the next small frame. gRPC then ends the stream as if the client had
// sent that RST_STREAM. The other streams of the connection go on, since a proxy carries the
// calls of many clients over one connection.
//
// Errors: errUnread; errUndelivered; those of the connection.
func (p *framedConn) Read(b []byte) (int, error) {
	for {
		if len(p.ready) > 0 {
			n := copy(b, p.ready)
			if p.ready = p.ready[n:]; len(p.ready) == 0 {
				p.ready = nil
			}
			return n, nil
		}
		into, direct := b, len(b) > frameHeader
		if !direct { // b is shorter than a header only while gRPC reads the rest of a client preface that arrived in parts
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

// read reads bytes of the client into b, and notes where each HTTP/2 frame begins. b has room
// for more than the header of a frame. read keeps an incomplete header of a frame back: only
// the complete header shows whether read must put a RST_STREAM frame before this frame. If
// read puts a RST_STREAM frame there, read moves all bytes to p.ready, and returns 0.
func (p *framedConn) read(b []byte) (int, error) {
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
		if !p.allow(f) {
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
	gone := errors.Join(p.notReading(count), p.owner.heard(p.heard, whole))
	if cap(p.heard) > maxKept {
		p.heard = nil
	}
	if gone != nil {
		return 0, gone
	}
	return n, err
}

// endStream notes that Read ends a stream by a RST_STREAM frame. A later RST_STREAM from the
// client for the same stream does no harm.
func (p *framedConn) endStream(stream uint32) {
	p.heard = append(p.heard, head{kind: http2.FrameRSTStream, stream: stream})
	delete(p.small, stream)
}

// notReading counts the frames of one read, and returns errUnread if the client keeps sending
// and does not read; see maxUnread.
func (p *framedConn) notReading(count int64) error {
	if p.unread.Add(count) > maxUnread {
		if began := p.writing.Load(); began != 0 && time.Since(time.Unix(0, began)) > stuck {
			return errUnread
		}
	}
	return nil
}

// reset returns an HTTP/2 frame RST_STREAM for a stream, with the code ENHANCE_YOUR_CALM.
func reset(stream uint32) []byte {
	frame := []byte{0, 0, 4, byte(http2.FrameRSTStream), 0}
	frame = binary.BigEndian.AppendUint32(frame, stream)
	return binary.BigEndian.AppendUint32(frame, uint32(http2.ErrCodeEnhanceYourCalm))
}

// allow counts a frame if the frame is small, and reports whether the stream of the frame has
// had at most maxSmallFrames small frames.
func (p *framedConn) allow(f head) bool {
	switch {
	case f.kind == http2.FrameRSTStream, f.kind == http2.FrameData && f.endsStream():
		delete(p.small, f.stream)
	// A padded DATA frame counts as small at any length: gRPC gives the padding back to the
	// flow-control window at once, and the frame can hold a single byte of data.
	case f.kind == http2.FrameData && (p.skip < smallFrame || f.flags.Has(http2.FlagDataPadded)):
		return p.count(f.stream) <= maxSmallFrames
	}
	return true
}

// count counts a small frame of a stream, and returns the count of the stream. When p.small
// is full, a new stream takes over the place and the count of the stream with the lowest
// count: a client that sends frames on other streams can only raise a stream's count.
func (p *framedConn) count(stream uint32) int {
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

// Write writes to the connection, and tells p.owner which streams the written frames end.
func (p *framedConn) Write(b []byte) (int, error) {
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
