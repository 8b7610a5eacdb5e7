// Package gateway serves the notes of example.com/notes to clients of HTTP and JSON, by
// grpc-gateway. Every call goes over a connection to the guarded server, so the server's verifier
// checks the caller's token, and a refusal is an HTTP status.
package gateway

import (
	"context"
	"net/http"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	_ "google.golang.org/genproto/googleapis/rpc/errdetails" // the answer of a refused call shows the ErrorInfo in JSON
	"google.golang.org/grpc"

	notesgateway "example.com/gateway/gen/notes/v1"
)

// NewHandler returns the handler that sends each request on over conn, with the header
// Authorization of the request. conn leads to the guarded server, over TLS if the server is on
// another machine: grpc-gateway sends the header over any connection.
//
// NewHandler registers the service by RegisterNotesServiceHandler, which takes a connection. The
// function RegisterNotesServiceHandlerServer would call the handlers of the service without the
// server, and so without the verifier: every caller would be admitted.
func NewHandler(ctx context.Context, conn *grpc.ClientConn) (http.Handler, error) {
	// grpc-gateway sends the header Authorization on although the matcher names no header. The
	// default matcher would repeat the token in a second header, grpcgateway-authorization.
	mux := runtime.NewServeMux(runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }))
	if err := notesgateway.RegisterNotesServiceHandler(ctx, mux, conn); err != nil {
		return nil, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mux.ServeHTTP(challenger{w}, r)
	}), nil
}

// challenger wraps the answer to a request. WriteHeader adds the scheme to the status 401, as RFC
// 6750 section 3 demands; grpc-gateway writes the message of the error in place of the scheme.
type challenger struct{ http.ResponseWriter }

func (c challenger) WriteHeader(status int) {
	if status == http.StatusUnauthorized {
		c.Header().Set("WWW-Authenticate", "Bearer")
	}
	c.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController find Flush, by which grpc-gateway sends each message of a
// stream at once.
func (c challenger) Unwrap() http.ResponseWriter { return c.ResponseWriter }
