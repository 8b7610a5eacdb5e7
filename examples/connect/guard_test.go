package board

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"

	"example.com/connect/gen/notes/v1/notesv1connect"
	notesv1 "example.com/notes/gen/notes/v1"
)

// serve runs the service on loopback, with HTTP/2 in plaintext as gRPC needs it.
func serve(t *testing.T, issuer *authntest.Issuer) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(NewHandler(issuer.NewVerifier(t, authn.WithAudience("internal"))))
	server := httptest.NewUnstartedServer(mux)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	return server
}

// http2Client returns a client of HTTP/2 in plaintext, which gRPC needs.
func http2Client(t *testing.T) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

var protocols = map[string][]connect.ClientOption{
	"Connect":           nil,
	"Connect with JSON": {connect.WithProtoJSON()},
	"gRPC":              {connect.WithGRPC()},
	"gRPC-Web":          {connect.WithGRPCWeb()},
}

// with returns the context of a call with these values of the header Authorization.
func with(t *testing.T, values ...string) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	ctx, info := connect.NewClientContext(ctx)
	for _, value := range values {
		info.RequestHeader().Add("authorization", value)
	}
	return ctx
}

// wants checks that err is a refusal with this code and reason, for this method. An empty reason
// means that the call was admitted.
func wants(t *testing.T, err error, code connect.Code, reason, method string) {
	t.Helper()
	if reason == "" {
		if err != nil {
			t.Errorf("%s: %v", method, err)
		}
		return
	}
	var refused *connect.Error
	if !errors.As(err, &refused) || refused.Code() != code || len(refused.Details()) != 1 {
		t.Errorf("%s: %v, want %v %s", method, err, code, reason)
		return
	}
	detail, err := refused.Details()[0].Value()
	info, ok := detail.(*errdetails.ErrorInfo)
	if err != nil || !ok || info.GetDomain() != "watchword" || info.GetReason() != reason || info.GetMetadata()["method"] != method {
		t.Errorf("%s: %v, %v, want %s", method, detail, err, reason)
	}
}

// Each method admits the callers named in its option in the proto file, by every protocol of
// Connect, and the handler finds the caller.
func TestGuard(t *testing.T) {
	issuer := authntest.New()
	server := serve(t, issuer)
	reader := "Bearer " + issuer.Token(authntest.User{Name: "rita", Roles: []string{"reader"}, Audience: []string{"internal"}})
	writer := "Bearer " + issuer.Token(authntest.User{Name: "will", Roles: []string{"writer"}, Audience: []string{"internal"}})
	for name, options := range protocols {
		client := notesv1connect.NewNotesServiceClient(http2Client(t), server.URL, options...)
		for _, test := range []struct {
			values    []string
			read, add string // the reasons for which the two methods refuse the call
			caller    string
		}{
			{nil, "TOKEN_MISSING", "TOKEN_MISSING", ""},
			{[]string{reader}, "", "ROLE_REQUIRED", "rita"},
			{[]string{writer}, "", "", "will"},
			{[]string{strings.Replace(writer, "Bearer", "bearer", 1)}, "", "", "will"},
			{[]string{writer, writer}, "TOKEN_INVALID", "TOKEN_INVALID", ""},
			{[]string{writer, ""}, "TOKEN_INVALID", "TOKEN_INVALID", ""},
		} {
			t.Run(name, func(t *testing.T) {
				about, err := client.About(with(t, test.values...), &notesv1.AboutRequest{})
				wants(t, err, 0, "", notesv1connect.NotesServiceAboutProcedure)
				if !strings.HasSuffix(about.GetDescription(), "for everyone") {
					t.Errorf("a public method says %q", about.GetDescription())
				}
				list, err := client.ListNotes(with(t, test.values...), &notesv1.ListNotesRequest{})
				wants(t, err, connect.CodeUnauthenticated, test.read, notesv1connect.NotesServiceListNotesProcedure)
				if err == nil && list.GetNotes()[0].GetAuthor() != test.caller {
					t.Errorf("the handler has the caller %q", list.GetNotes()[0].GetAuthor())
				}
				_, err = client.AddNote(with(t, test.values...), &notesv1.AddNoteRequest{Text: "hello"})
				code := connect.CodeUnauthenticated
				if test.add == "ROLE_REQUIRED" {
					code = connect.CodePermissionDenied
				}
				wants(t, err, code, test.add, notesv1connect.NotesServiceAddNoteProcedure)

				stream, err := client.WatchNotes(with(t, test.values...), &notesv1.WatchNotesRequest{})
				if err != nil {
					t.Fatal(err)
				}
				defer stream.Close()
				if stream.Receive() && stream.Msg().GetNote().GetAuthor() != test.caller {
					t.Errorf("the handler of the stream has the caller %q", stream.Msg().GetNote().GetAuthor())
				}
				wants(t, stream.Err(), connect.CodeUnauthenticated, test.read, notesv1connect.NotesServiceWatchNotesProcedure)
			})
		}
	}
}

// A client of plain HTTP gets the status 401 with the scheme, and 403 for a role.
func TestPlainHTTP(t *testing.T) {
	issuer := authntest.New()
	server := serve(t, issuer)
	reader := issuer.Token(authntest.User{Name: "rita", Audience: []string{"internal"}})
	for token, want := range map[string]int{"": http.StatusUnauthorized, reader: http.StatusForbidden} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+notesv1connect.NotesServiceAddNoteProcedure, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		scheme := resp.Header.Get("WWW-Authenticate")
		if resp.StatusCode != want || (scheme == "Bearer") != (want == http.StatusUnauthorized) {
			t.Errorf("%d with the scheme %q, want %d", resp.StatusCode, scheme, want)
		}
	}
}

// A logout ends an open stream, and the client learns the reason.
func TestALogoutEndsAStream(t *testing.T) {
	issuer := authntest.New()
	client := notesv1connect.NewNotesServiceClient(http2Client(t), serve(t, issuer).URL)
	raw := issuer.Token(authntest.User{Name: "rita", Audience: []string{"internal"}})
	stream, err := client.WatchNotes(with(t, "Bearer "+raw), &notesv1.WatchNotesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if !stream.Receive() {
		t.Fatal(stream.Err())
	}
	issuer.EndSession(raw)
	for stream.Receive() {
	}
	wants(t, stream.Err(), connect.CodeUnauthenticated, "TOKEN_REVOKED", notesv1connect.NotesServiceWatchNotesProcedure)
}

// No method of the service answers a client of grpc-go without a token.
func TestEveryMethodIsGuarded(t *testing.T) {
	conn, err := grpc.NewClient(serve(t, authntest.New()).Listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	methods := grpc.NewServer() // lists the methods of the proto file, and serves nothing
	notesv1.RegisterNotesServiceServer(methods, notesv1.UnimplementedNotesServiceServer{})
	if err := authntest.CheckGuarded(t.Context(), conn, methods.GetServiceInfo()); err != nil {
		t.Error(err)
	}
}
