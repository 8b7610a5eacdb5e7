package gate

import (
	"context"
	"crypto/rand"
	"encoding/hex"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/spans"
)

const (
	// requestIDHeader names the request id in the headers of a call and in the trailer of a
	// failed call.
	requestIDHeader = "x-request-id"
	maxRequestID    = 64 // bytes; a UUID has 36
)

// RequestID returns the id of the call of ctx: the value of the header x-request-id if the
// client has sent one value of at most 64 letters, digits and the characters ".", "_" and "-";
// otherwise a random id, which RequestID makes when the first line of the log needs the id.
// Outside of a call RequestID returns "".
func RequestID(ctx context.Context) string {
	r, ok := ctx.Value(requestKey{}).(*request)
	if !ok {
		return ""
	}
	r.idOnce.Do(func() {
		if sent := metadata.ValueFromIncomingContext(r, requestIDHeader); len(sent) == 1 && isRequestID(sent[0]) {
			r.id = sent[0]
			return
		}
		var id [8]byte
		rand.Read(id[:])
		r.id = hex.EncodeToString(id[:])
	})
	return r.id
}

// isRequestID reports whether the server uses a client's text as a request id. Other texts
// could make a line of the log long, or misleading.
func isRequestID(text string) bool {
	if text == "" || len(text) > maxRequestID {
		return false
	}
	for _, c := range []byte(text) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// noteFailed gives the client of a failed call the request id, in the trailer, and notes the
// reason on the span of the call.
func noteFailed(ctx context.Context, err error) {
	_ = grpc.SetTrailer(ctx, metadata.Pairs(requestIDHeader, RequestID(ctx))) // fails if the stream has ended
	if spans.Recorded(ctx) {
		spans.Refused(ctx, refusal.Outcome(err))
	}
}
