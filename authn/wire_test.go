package authn_test

import (
	"bytes"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/watchword-auth/watchword/authn"
)

// wireCall calls any path with a token, by frames of HTTP/2 (a client of grpc-go refuses some
// paths), and returns the gRPC status and whether a handler answered.
func wireCall(t *testing.T, conn net.Conn, path, token string) (status string, answered bool) {
	t.Helper()
	var fields bytes.Buffer
	encoder := hpack.NewEncoder(&fields)
	for _, f := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", "memory"},
		{"content-type", "application/grpc"}, {"te", "trailers"}, {"authorization", "Bearer " + token},
	} {
		if err := encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for _, err := range []error{
		framer.WriteSettings(),
		framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: fields.Bytes(), EndHeaders: true}),
		framer.WriteData(1, true, make([]byte, 5)), // an empty message
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return "connection closed", answered
		}
		switch f := frame.(type) {
		case *http2.DataFrame:
			answered = true
		case *http2.RSTStreamFrame:
			return "stream reset", answered
		case *http2.MetaHeadersFrame:
			for _, field := range f.Fields {
				if field.Name == "grpc-status" {
					status = field.Value
				}
			}
			if f.StreamEnded() {
				return status, answered
			}
		}
	}
}

// A path of another form than /service/method reaches no handler: not the handler for
// unknown services, and not a public method with a similar path.
func TestMalformedPathsOnTheWire(t *testing.T) {
	key := newKey(t)
	server, trusted := serveTrust(t)
	go func() { (<-server.streams).send(snapshot(trustState(key)), heartbeat(time.Now())) }()
	v, err := authn.NewVerifier(t.Context(), trusted, authn.WithAudience("internal"), authn.WithPublicMethods("/health.v1.Health/*"), tokenNeeded("/unknown.v1.Unknown/*"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	listener := listenNotes(t, v)
	const unimplemented = "12"
	for path, want := range map[string]string{
		"/notes.v1.NotesService/About": "0", // the other paths could reach this handler too
		"/notes.v1.NotesService/List":  "0",
		"/unknown.v1.Unknown/Method":   "0",
		"/health.v1.Health/Check":      "0",

		"":                                 "",
		"/":                                unimplemented,
		"//":                               unimplemented,
		"*":                                "",
		"About":                            unimplemented,
		"notes.v1.NotesService/About":      unimplemented,
		"notes.v1.NotesService/List":       unimplemented,
		"health.v1.Health/Check":           unimplemented,
		"//notes.v1.NotesService/About":    unimplemented,
		"//health.v1.Health/Check":         unimplemented,
		"/notes.v1.NotesService//About":    unimplemented,
		"/notes.v1.NotesService/About/":    unimplemented,
		"/health.v1.Health//Check":         unimplemented,
		"/health.v1.Health/":               unimplemented,
		"/health.v1.Health/../Health/List": unimplemented,
		"/notes.v1.NotesService":           unimplemented,
		"http://memory/health.v1.Health/a": unimplemented,
	} {
		conn, err := listener.Dial()
		if err != nil {
			t.Fatal(err)
		}
		status, answered := wireCall(t, conn, path, mint(t, key))
		conn.Close()
		if answered != (want == "0") || want != "" && status != want {
			t.Errorf("%q: status %s, answered %t", path, status, answered)
		}
	}
}
