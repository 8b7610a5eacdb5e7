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
	p := &pieces{Conn: c, in: frames{skip: len(http2.ClientPreface)}, small: map[uint32]int{}, reset: map[uint32]bool{}}
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
	f.skip = int(f.header[0])<<16 | int(f.header[1])<<8 | int(f.header[2])
	return f.header, b
}

func frameOf(header []byte) (kind http2.FrameType, flags http2.Flags, stream uint32) {
	return http2.FrameType(header[3]), http2.Flags(header[4]), binary.BigEndian.Uint32(header[5:]) & (1<<31 - 1)
}

// pieces is a connection that follows the frames in both directions. gRPC reads from one
// goroutine, and writes from another.
type pieces struct {
	net.Conn
	owner *conn // nil if the connection is not of a [Listener]

	in    frames
	out   frames
	ready []byte          // bytes for gRPC that Read has not returned yet
	small map[uint32]int  // small frames by stream, of streams with an unfinished request
	reset map[uint32]bool // the streams that Read has reset last

	writing atomic.Int64 // when the present write began, in nanoseconds since 1970; 0: no write
	unread  atomic.Int64 // frames read since the last write came to its end
}

// Read reads from the connection. If a stream has too many small frames, Read puts a
// RST_STREAM before the next one: gRPC ends the stream, as if the client had, and the other
// streams of the connection go on. A proxy carries the calls of many clients over one
// connection.
//
// Errors: errUnread; those of the connection.
func (p *pieces) Read(b []byte) (int, error) {
	for len(p.ready) == 0 {
		n, err := p.Conn.Read(b)
		if err := p.follow(b[:n]); err != nil {
			return 0, err
		}
		if len(p.ready) == 0 && err != nil {
			return 0, err
		}
	}
	n := copy(b, p.ready)
	if p.ready = p.ready[n:]; len(p.ready) == 0 {
		p.ready = nil
	}
	return n, nil
}

// follow follows bytes that were read, and appends them to p.ready: all but the beginning of
// a header that is not complete, since a RST_STREAM may have to stand before it.
func (p *pieces) follow(b []byte) error {
	for len(b) > 0 {
		payload := b[:min(p.in.skip, len(b))]
		p.ready = append(p.ready, payload...)
		header, rest := p.in.next(b)
		b = rest
		if header == nil {
			continue
		}
		kind, flags, stream := frameOf(header)
		if !p.allow(kind, flags, stream) && !p.reset[stream] {
			p.ready = append(p.ready, reset(stream)...)
			p.owner.delivered(stream)
			if len(p.reset) == maxCounted { // a second RST_STREAM for a stream does no harm
				clear(p.reset)
			}
			p.reset[stream] = true
		}
		p.ready = append(p.ready, header...)
		if err := p.owner.heard(kind, stream); err != nil {
			return err
		}
		if p.unread.Add(1) > maxUnread {
			if began := p.writing.Load(); began != 0 && time.Since(time.Unix(0, began)) > stuck {
				return errUnread
			}
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
func (p *pieces) allow(kind http2.FrameType, flags http2.Flags, stream uint32) bool {
	switch {
	case kind == http2.FrameRSTStream, kind == http2.FrameData && flags.Has(http2.FlagDataEndStream):
		delete(p.small, stream)
	// Padding counts for the window and is given back at once, so a padded frame may be a
	// small one of any length.
	case kind == http2.FrameData && (p.in.skip < smallFrame || flags.Has(http2.FlagDataPadded)):
		return p.count(stream) <= maxSmallFrames
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
	for rest := b[:n]; len(rest) > 0; {
		var header []byte
		if header, rest = p.out.next(rest); header != nil {
			kind, flags, stream := frameOf(header)
			if kind == http2.FrameRSTStream || kind == http2.FrameHeaders && flags.Has(http2.FlagHeadersEndStream) {
				p.owner.delivered(stream)
			}
		}
	}
	return n, err
}
