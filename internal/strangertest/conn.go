// Package strangertest is a kit for tests: hostile clients that speak HTTP/2 frame by frame,
// and [Besiege], the worst that such clients can do to a server.
package strangertest

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Conn is an HTTP/2 connection of a hostile client, which a test writes frame by frame. Conn is
// safe for concurrent use. To the server, every address of 127.0.0.0/8 counts as a separate
// peer.
type Conn struct {
	conn   net.Conn
	framer *http2.Framer

	mu      sync.Mutex // guards the writing side and the fields below
	encoder *hpack.Encoder
	block   bytes.Buffer
	answers map[uint32]Answer // how the server has ended each stream, by the stream's id
	changed chan struct{}     // closed and replaced when answers or closed change
	closed  error             // why the connection has ended; nil while the connection is open
}

// Answer says how the server has ended a stream.
type Answer struct {
	Status *status.Status // nil if the stream was reset without a status
	Reset  http2.ErrCode
}

// From returns a dialer that connects from the given local address.
func From(ip string) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}, Timeout: 30 * time.Second}
}

// Connect connects to a server from the local address ip, and sends the preface of HTTP/2.
func Connect(ip, addr string) (*Conn, error) {
	conn, err := From(ip).Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return speak(conn)
}

// ConnectDeaf is like [Connect], for a client that leaves all answers unread: the window for
// each stream is empty.
func ConnectDeaf(ip, addr string) (*Conn, error) {
	conn, err := From(ip).Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return speak(conn, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
}

// ConnectStuck is like [Connect], for a client that reads nothing from the connection.
func ConnectStuck(ip, addr string) (*Conn, error) {
	conn, err := From(ip).Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10) // a small buffer, so that the connection is full soon
	s := newConn(conn)
	return s, s.greet()
}

// speak sends the preface of HTTP/2 over a connection, and reads from the connection.
func speak(conn net.Conn, settings ...http2.Setting) (*Conn, error) {
	s := newConn(conn)
	if err := s.greet(settings...); err != nil {
		return nil, err
	}
	go s.read()
	return s, nil
}

func newConn(conn net.Conn) *Conn {
	s := &Conn{conn: conn, framer: http2.NewFramer(conn, conn), answers: map[uint32]Answer{}, changed: make(chan struct{})}
	s.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	s.encoder = hpack.NewEncoder(&s.block)
	return s
}

// greet sends the preface of HTTP/2, with which a client begins a connection.
func (s *Conn) greet(settings ...http2.Setting) error {
	if _, err := io.WriteString(s.conn, http2.ClientPreface); err != nil {
		return err
	}
	return s.framer.WriteSettings(settings...)
}

// read receives frames until the connection ends. read stores the end of each stream in the
// field answers, and acknowledges SETTINGS and PING frames.
func (s *Conn) read() {
	for {
		frame, err := s.framer.ReadFrame()
		s.mu.Lock()
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = s.framer.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				_ = s.framer.WritePing(true, f.Data)
			}
		case *http2.RSTStreamFrame:
			if _, answered := s.answers[f.StreamID]; !answered {
				s.answers[f.StreamID] = Answer{Reset: f.ErrCode}
			}
		case *http2.MetaHeadersFrame:
			if st := statusIn(f); st != nil {
				s.answers[f.StreamID] = Answer{Status: st}
			}
		}
		if err != nil {
			if streamError := (http2.StreamError{}); !errors.As(err, &streamError) {
				s.closed = err
			}
		}
		close(s.changed)
		s.changed = make(chan struct{})
		ended := s.closed != nil
		s.mu.Unlock()
		if ended {
			return
		}
	}
}

// statusIn returns the status in the trailers of a call; nil if the headers have none.
func statusIn(f *http2.MetaHeadersFrame) *status.Status {
	var st *spb.Status
	for _, field := range f.RegularFields() {
		switch field.Name {
		case "grpc-status":
			code, _ := strconv.Atoi(field.Value)
			st = &spb.Status{Code: int32(code)}
		case "grpc-message":
			if st != nil {
				st.Message = field.Value
			}
		case "grpc-status-details-bin":
			raw, _ := base64.RawStdEncoding.DecodeString(strings.TrimRight(field.Value, "="))
			full := &spb.Status{}
			if proto.Unmarshal(raw, full) == nil {
				st = full
			}
		}
	}
	return status.FromProto(st)
}

// Headers opens a stream for a call. more holds further names and values of fields. If end is
// true, the client ends its side of the stream at once.
func (s *Conn) Headers(stream uint32, method string, end bool, more ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.block.Reset()
	fields := append([]string{":method", "POST", ":scheme", "http", ":path", method, ":authority", "watchword",
		"content-type", "application/grpc", "te", "trailers"}, more...)
	for i := 0; i < len(fields); i += 2 {
		_ = s.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	const most = 16384 // the largest frame, in bytes
	block := s.block.Bytes()
	first := block[:min(most, len(block))]
	block = block[len(first):]
	err := s.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: first, EndStream: end, EndHeaders: len(block) == 0})
	for err == nil && len(block) > 0 {
		next := block[:min(most, len(block))]
		block = block[len(next):]
		err = s.framer.WriteContinuation(stream, len(block) == 0, next)
	}
	return err
}

// Data sends a part of a message on a stream. If end is true, the client ends its side of the
// stream.
func (s *Conn) Data(stream uint32, end bool, part []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.framer.WriteData(stream, end, part)
}

// Crumbs sends size bytes on a stream in frames of one byte, many frames in one write.
func (s *Conn) Crumbs(stream uint32, size int) error {
	frame := []byte{0, 0, 1, 0, 0, byte(stream >> 24), byte(stream >> 16), byte(stream >> 8), byte(stream), 'x'}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.conn.Write(bytes.Repeat(frame, size))
	return err
}

// Await waits until holds returns true. Await calls holds with s.mu locked.
//
// Errors: the reason if the connection ends first; the error of ctx if ctx ends.
func (s *Conn) Await(ctx context.Context, holds func() bool) error {
	for {
		s.mu.Lock()
		ok, closed, changed := holds(), s.closed, s.changed
		s.mu.Unlock()
		switch {
		case ok:
			return nil
		case closed != nil:
			return closed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// AnswerTo waits for the end of a stream, and returns how the server has ended the stream.
func (s *Conn) AnswerTo(ctx context.Context, stream uint32) (Answer, error) {
	var a Answer
	err := s.Await(ctx, func() bool {
		var ok bool
		a, ok = s.answers[stream]
		return ok
	})
	return a, err
}

// Close closes the connection.
func (s *Conn) Close() error { return s.conn.Close() }

// Message returns a message of gRPC: five bytes before the encoded request. Message panics
// if the request cannot be encoded.
func Message(m proto.Message) []byte {
	body, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return append([]byte{0, byte(len(body) >> 24), byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
}

// Dial makes a gRPC connection from a local address.
func Dial(ip, addr string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+addr, append(opts, grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		return From(ip).DialContext(ctx, "tcp", addr)
	}))...)
}

// WasClosed reports whether the error of a connection means that the server has closed the
// connection.
func WasClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
