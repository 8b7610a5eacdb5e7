package notes

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"

	notesv1 "example.com/notes/gen/notes/v1"
	searchv1 "example.com/notes/gen/search/v1"
)

// serve runs a server in memory until the end of the test, and returns a connection to the
// server.
func serve(t *testing.T, server *grpc.Server) *grpc.ClientConn {
	t.Helper()
	listener := bufconn.Listen(1 << 16)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///memory",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return conn
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// board runs a guarded server that trusts the issuer.
func board(t *testing.T, issuer *authntest.Issuer) *grpc.ClientConn {
	t.Helper()
	verifier := issuer.NewVerifier(t, authn.WithAudience("internal"), authn.WithPublicMethods(PublicMethods))
	server, err := NewServer(verifier, NewService(nil), health.NewServer())
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, server)
}

// Every method that is not public refuses a call without a token.
func TestEveryMethodIsGuarded(t *testing.T) {
	verifier := authntest.New().NewVerifier(t, authn.WithAudience("internal"), authn.WithPublicMethods(PublicMethods))
	server, err := NewServer(verifier, NewService(nil), health.NewServer())
	if err != nil {
		t.Fatal(err)
	}
	if err := authntest.CheckGuarded(testContext(t), serve(t, server), server.GetServiceInfo(), PublicMethods); err != nil {
		t.Error(err)
	}
}

// Each method admits the callers named in its option in the proto file.
func TestServerIsGuarded(t *testing.T) {
	issuer := authntest.New()
	conn := board(t, issuer)
	client := notesv1.NewNotesServiceClient(conn)
	reader := authntest.User{Name: "rita", Roles: []string{"reader"}, Audience: []string{"internal"}}
	writer := authntest.User{Name: "will", Roles: []string{"writer"}, Audience: []string{"internal"}}
	stranger := authntest.User{Name: "eve", Audience: []string{"elsewhere"}}
	gone := issuer.Token(writer)
	issuer.EndSession(gone)
	for name, c := range map[string]struct {
		token     string
		read, add string
	}{
		"without a token":  {"", "TOKEN_MISSING", "TOKEN_MISSING"},
		"a reader":         {issuer.Token(reader), "ok", "ROLE_REQUIRED"},
		"a writer":         {issuer.Token(writer), "ok", "ok"},
		"after the logout": {gone, "TOKEN_REVOKED", "TOKEN_REVOKED"},
		"another audience": {issuer.Token(stranger), "AUDIENCE_MISMATCH", "AUDIENCE_MISMATCH"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			if c.token != "" {
				ctx = authntest.Bearer(ctx, c.token)
			}
			_, about := client.About(ctx, &notesv1.AboutRequest{})
			_, probe := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
			_, list := client.ListNotes(ctx, &notesv1.ListNotesRequest{})
			_, add := client.AddNote(ctx, &notesv1.AddNoteRequest{Text: "hello"})
			stream, err := client.WatchNotes(ctx, &notesv1.WatchNotesRequest{})
			if err != nil {
				t.Fatal(err)
			}
			watch := error(nil)
			if c.read != "ok" {
				_, watch = stream.Recv()
			}
			for method, got := range map[string]struct {
				err  error
				want string
			}{"About": {about, "ok"}, "health": {probe, "ok"}, "ListNotes": {list, c.read}, "AddNote": {add, c.add}, "WatchNotes": {watch, c.read}} {
				reason := strings.TrimPrefix(authn.Reason(got.err).String(), "ERROR_REASON_")
				if got.err == nil {
					reason = "ok"
				}
				if reason != got.want {
					t.Errorf("%s: %v, want %s", method, got.err, got.want)
				}
			}
		})
	}
}

func TestAddNote(t *testing.T) {
	s := NewService(nil)
	if _, err := s.AddNote(t.Context(), &notesv1.AddNoteRequest{Text: "x"}); status.Code(err) != codes.Internal {
		t.Errorf("without a principal: %v, want INTERNAL", err)
	}
	if notes, _ := s.after(0); len(notes) != 0 {
		t.Errorf("the board has %v, want nothing", notes)
	}
	will := authntest.New().Context(t, authntest.User{ID: "u1", Name: "will"})
	if _, err := s.AddNote(will, &notesv1.AddNoteRequest{Text: "x"}); err != nil {
		t.Fatal(err)
	}
	if notes, _ := s.after(0); len(notes) != 1 || notes[0].GetAuthor() != "will" {
		t.Errorf("the board has %v", notes)
	}
}

func TestBoardIsBounded(t *testing.T) {
	s := NewService(nil)
	for i := range maxNotes + 3 {
		n := s.add(strings.Repeat("a", 256), "AAAAAAAAAAAAAAAA", strings.Repeat("t", maxText))
		if n.GetId() != int64(i+1) {
			t.Fatalf("id %d, want %d", n.GetId(), i+1)
		}
	}
	list, err := s.ListNotes(t.Context(), &notesv1.ListNotesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	notes := list.GetNotes()
	if len(notes) != maxNotes || notes[0].GetId() != 4 || notes[maxNotes-1].GetId() != maxNotes+3 {
		t.Errorf("%d notes from id %d on, want the newest %d", len(notes), notes[0].GetId(), maxNotes)
	}
	const clientLimit = 4 << 20 // grpc-go's default
	if size := proto.Size(list); size > clientLimit {
		t.Errorf("a full board has %d bytes, more than the %d that clients accept", size, clientLimit)
	}
}

func TestAfter(t *testing.T) {
	s := NewService(nil)
	for i := range maxNotes + 5 {
		s.add("alice", "id", fmt.Sprint(i))
	}
	for seen, want := range map[int64]int64{0: 6, 3: 6, 5: 6, 6: 7, maxNotes + 4: maxNotes + 5} {
		notes, _ := s.after(seen)
		if len(notes) == 0 || notes[0].GetId() != want {
			t.Errorf("after %d: %d notes, want the notes from id %d on", seen, len(notes), want)
		}
	}
	if notes, _ := s.after(maxNotes + 5); len(notes) != 0 {
		t.Errorf("after the last: %v", notes)
	}
}

func TestWatchNotes(t *testing.T) {
	ctx := testContext(t)
	s := NewService(nil)
	server := grpc.NewServer() // unguarded: TestServerIsGuarded tests the guard
	notesv1.RegisterNotesServiceServer(server, s)
	client := notesv1.NewNotesServiceClient(serve(t, server))

	s.add("alice", "id", "before")
	var streams []grpc.ServerStreamingClient[notesv1.WatchNotesResponse]
	for range 5 {
		stream, err := client.WatchNotes(ctx, &notesv1.WatchNotesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, stream)
	}
	expect := func(text string) {
		t.Helper()
		for _, stream := range streams {
			msg, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if got := msg.GetNote().GetText(); got != text {
				t.Errorf("the note %q, want %q", got, text)
			}
		}
	}
	expect("before")
	s.add("alice", "id", "one")
	s.add("alice", "id", "two")
	expect("one")
	expect("two")

	s.Close()
	s.Close() // does nothing the second time
	for _, stream := range streams {
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("after Close: %v, want UNAVAILABLE", err)
		}
	}
}

// wrongSearch names a text that was not in the request.
type wrongSearch struct{ searchv1.SearchServiceClient }

func (wrongSearch) Find(context.Context, *searchv1.FindRequest, ...grpc.CallOption) (*searchv1.FindResponse, error) {
	return &searchv1.FindResponse{Places: []int32{1}}, nil
}

func TestSearchWithout(t *testing.T) {
	if _, err := NewService(nil).SearchNotes(t.Context(), new(notesv1.SearchNotesRequest)); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("without search: %v", err)
	}
	if _, err := NewService(wrongSearch{}).SearchNotes(t.Context(), new(notesv1.SearchNotesRequest)); status.Code(err) != codes.Internal {
		t.Errorf("with a wrong answer: %v", err)
	}
}
