package gateway

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"

	notesgateway "example.com/gateway/gen/notes/v1"
	"example.com/notes"
)

// listen serves until the end of the test, and returns the address on loopback.
func listen(t *testing.T, server *grpc.Server) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// seen has the metadata of every call that the notes service has admitted.
type seen chan metadata.MD

func (s seen) note(ctx context.Context) {
	md, _ := metadata.FromIncomingContext(ctx)
	s <- md
}

// board runs the notes service, guarded by tokens of the issuer, and returns the address.
func board(t *testing.T, issuer *authntest.Issuer) (addr string, admitted seen) {
	t.Helper()
	admitted = make(seen, 20)
	service := notes.NewService(nil)
	server, err := notes.NewServer(issuer.NewVerifier(t, authn.WithAudience("internal"), authn.WithPublicMethods(notes.PublicMethods)), service, health.NewServer(),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			admitted.note(ctx)
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			admitted.note(stream.Context())
			return next(srv, stream)
		}))
	check(t, err)
	return listen(t, server), admitted
}

func dial(t *testing.T, addr string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// serveHTTP serves the handler, and returns the URL.
func serveHTTP(t *testing.T, handler http.Handler) string {
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.URL
}

// answer holds what a client of HTTP gets; for a stream, only the first line.
type answer struct {
	status    int
	challenge string // the header WWW-Authenticate
	reason    string // the reason in the ErrorInfo
	body      string
}

// call makes a request, with a body if body is not empty.
func call(t *testing.T, url, body string, authorization ...string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	check(t, err)
	req.Header["Authorization"] = authorization
	resp, err := http.DefaultClient.Do(req)
	check(t, err)
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, challenge: resp.Header.Get("WWW-Authenticate")}
	var first json.RawMessage
	if err := json.NewDecoder(resp.Body).Decode(&first); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	a.body = string(first)
	type status struct {
		Details []struct{ Reason string }
	}
	var refused struct {
		status
		Error status // the error that ends a stream
	}
	check(t, json.Unmarshal(first, &refused))
	for _, detail := range append(refused.Details, refused.Error.Details...) {
		a.reason = detail.Reason
	}
	return a
}

// The caller's header reaches the verifier of the service, and a refusal is an HTTP status with the
// reason.
func TestCallersByHTTP(t *testing.T) {
	issuer := authntest.New()
	addr, admitted := board(t, issuer)
	handler, err := NewHandler(t.Context(), dial(t, addr))
	check(t, err)
	url := serveHTTP(t, handler)
	reader := "Bearer " + issuer.Token(authntest.User{Name: "rita", Roles: []string{"reader"}, Audience: []string{"internal"}})
	writer := "Bearer " + issuer.Token(authntest.User{Name: "will", Roles: []string{"writer"}, Audience: []string{"internal"}})
	gone := issuer.Token(authntest.User{Name: "gone", Audience: []string{"internal"}})
	issuer.EndSession(gone)
	const note = `{"text": "hello"}`
	for _, test := range []struct {
		path, body    string
		authorization []string
		status        int
		reason        string
	}{
		{"/v1/about", "", nil, 200, ""},
		{"/v1/notes", "", nil, 401, "TOKEN_MISSING"},
		{"/v1/notes:watch", "", nil, 401, "TOKEN_MISSING"},
		{"/v1/notes", "", []string{reader}, 200, ""},
		{"/v1/notes", note, []string{reader}, 403, "ROLE_REQUIRED"},
		{"/v1/notes", note, []string{writer}, 200, ""},
		{"/v1/notes:watch", "", []string{reader}, 200, ""},
		{"/v1/notes", "", []string{writer, writer}, 401, "TOKEN_INVALID"},
		{"/v1/notes", "", []string{"Basic eDp5"}, 401, "TOKEN_INVALID"},
		{"/v1/notes", "", []string{"Bearer " + gone}, 401, "TOKEN_REVOKED"},
	} {
		got := call(t, url+test.path, test.body, test.authorization...)
		if got.status != test.status || got.reason != test.reason || (got.challenge == "Bearer") != (test.status == 401) {
			t.Errorf("%s %q with %d headers: %+v, want %d %s", test.path, test.body, len(test.authorization), got, test.status, test.reason)
		}
		if test.status == 200 {
			if md := <-admitted; len(md["authorization"]) != len(test.authorization) || len(md["grpcgateway-authorization"]) > 0 {
				t.Errorf("%s: the service sees %d tokens, and %d more", test.path, len(md["authorization"]), len(md["grpcgateway-authorization"]))
			}
		}
	}
	if got := call(t, url+"/v1/notes", "", reader); !strings.Contains(got.body, `"author":"will"`) {
		t.Errorf("the note has another author than the caller: %s", got.body)
	}
	if <-admitted; len(admitted) > 0 {
		t.Error("the service has admitted a refused call")
	}
}

// A client of HTTP reads each message of a stream while the stream goes on.
func TestStreamByHTTP(t *testing.T) {
	issuer := authntest.New()
	addr, _ := board(t, issuer)
	handler, err := NewHandler(t.Context(), dial(t, addr))
	check(t, err)
	url := serveHTTP(t, handler)
	writer := "Bearer " + issuer.Token(authntest.User{Name: "will", Roles: []string{"writer"}, Audience: []string{"internal"}})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/v1/notes:watch", nil)
	check(t, err)
	req.Header.Set("Authorization", writer)
	call(t, url+"/v1/notes", `{"text": "before"}`, writer)
	resp, err := http.DefaultClient.Do(req)
	check(t, err)
	defer resp.Body.Close()
	messages := json.NewDecoder(resp.Body)
	for _, text := range []string{"before", "during"} {
		var message struct {
			Result struct{ Note struct{ Text string } }
		}
		if err := messages.Decode(&message); err != nil || message.Result.Note.Text != text {
			t.Fatalf("the stream sends %+v (%v), want %q", message, err, text)
		}
		call(t, url+"/v1/notes", `{"text": "during"}`, writer)
	}
}

// account is a Watchword server with one user, the gateway.
type account struct {
	watchwordv1.UnimplementedAuthServiceServer
	token string
}

func (a account) Login(context.Context, *watchwordv1.LoginRequest) (*watchwordv1.LoginResponse, error) {
	return &watchwordv1.LoginResponse{Tokens: &watchwordv1.TokenPair{AccessToken: a.token, RefreshToken: "refresh", ExpiresIn: durationpb.New(time.Minute)}}, nil
}

// A gateway with a token source of its own calls in its own name: with WithCallersHeaderDropped
// nothing of the caller's token reaches the service, and without it each call with a token fails.
// The gateway has the default matcher of grpc-gateway, which repeats the header.
func TestAGatewayWithItsOwnToken(t *testing.T) {
	issuer := authntest.New()
	addr, admitted := board(t, issuer)
	watchword := grpc.NewServer()
	watchwordv1.RegisterAuthServiceServer(watchword, account{token: issuer.Token(authntest.User{Name: "gateway", Roles: []string{"writer"}, Audience: []string{"internal"}})})
	auth := dial(t, listen(t, watchword))
	serve := func(opts ...tokensource.Option) string {
		source, err := tokensource.Password(auth, "gateway", "secret", opts...)
		check(t, err)
		t.Cleanup(func() { source.Close() })
		mux := runtime.NewServeMux()
		check(t, notesgateway.RegisterNotesServiceHandler(t.Context(), mux, dial(t, addr, source.DialOptions()...)))
		return serveHTTP(t, mux)
	}
	callers := issuer.Token(authntest.User{Name: "rita", Audience: []string{"internal"}})

	got := call(t, serve()+"/v1/notes", `{"text": "hello"}`, "Bearer "+callers)
	if got.status != http.StatusInternalServerError || len(admitted) > 0 {
		t.Errorf("without the option: %+v", got)
	}
	got = call(t, serve(tokensource.WithCallersHeaderDropped())+"/v1/notes", `{"text": "hello"}`, "Bearer "+callers)
	if got.status != http.StatusOK || !strings.Contains(got.body, `"author":"gateway"`) {
		t.Errorf("with the option: %+v", got)
	}
	for key, values := range <-admitted {
		if strings.Contains(strings.Join(values, " "), callers) {
			t.Errorf("the service sees the caller's token in %s", key)
		}
	}
}
