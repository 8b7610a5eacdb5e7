package gate

import (
	"encoding/binary"
	"errors"
	"net"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/credentials"
)

// This file bounds the memory of a request that arrives in tiny pieces. gRPC keeps each
// DATA frame of a message that has not arrived whole as a value of its own, of about a
// hundred bytes, so a window of 64 KiB filled by frames of one byte would take some seven
// MiB. Flow control counts the bytes, and does not count the frames.

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
)

// errPieces ends a connection that sends a message in tiny pieces.
var errPieces = errors.New("gate: a request in too many small DATA frames")

// Guard returns credentials that bound the small frames on every stream of every server
// connection. The connection of a client that exceeds the bound ends.
func Guard(c credentials.TransportCredentials) credentials.TransportCredentials { return guard{c} }

type guard struct {
	credentials.TransportCredentials
}

// ServerHandshake wraps the connection after the handshake, where its bytes are HTTP/2.
func (g guard) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, info, err := g.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	return &pieces{Conn: c, skip: len(http2.ClientPreface), small: map[uint32]int{}}, info, nil
}

// Clone returns a copy.
func (g guard) Clone() credentials.TransportCredentials { return guard{g.TransportCredentials.Clone()} }

// pieces is a connection that follows the frames read from a client. gRPC reads from one
// goroutine.
type pieces struct {
	net.Conn
	skip   int // bytes until the next header of a frame
	header []byte
	small  map[uint32]int // small frames by stream, of streams with an unfinished request
}

const frameHeader = 9 // bytes (RFC 9113, section 4.1)

// Read reads from the connection. Errors: errPieces; those of the connection.
func (p *pieces) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	for rest := b[:n]; len(rest) > 0; {
		if p.skip > 0 {
			passed := min(p.skip, len(rest))
			p.skip -= passed
			rest = rest[passed:]
			continue
		}
		taken := min(frameHeader-len(p.header), len(rest))
		p.header = append(p.header, rest[:taken]...)
		rest = rest[taken:]
		if len(p.header) == frameHeader {
			if !p.allow(p.header) {
				return 0, errPieces
			}
			p.header = p.header[:0]
		}
	}
	return n, err
}

// allow counts a frame by its header, and reports whether the frame keeps the bound.
func (p *pieces) allow(header []byte) bool {
	length := int(header[0])<<16 | int(header[1])<<8 | int(header[2])
	p.skip = length
	kind, flags := http2.FrameType(header[3]), http2.Flags(header[4])
	stream := binary.BigEndian.Uint32(header[5:]) & (1<<31 - 1)
	switch {
	case kind == http2.FrameRSTStream, kind == http2.FrameData && flags.Has(http2.FlagDataEndStream):
		delete(p.small, stream)
	// Padding counts for the window and is given back at once, so a padded frame may be a
	// small one of any length.
	case kind == http2.FrameData && (length < smallFrame || flags.Has(http2.FlagDataPadded)):
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
