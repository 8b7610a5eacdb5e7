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
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"

	notesv1 "example.com/notes/gen/notes/v1"
)

// serve runs a server in memory until the test ends, and returns a connection
// to it.
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

// Whoever gets a token by Watchword's side is tested with a real server, by
// clients/node. Here there is none, so nobody may pass but to what is public.
func TestServerIsGuarded(t *testing.T) {
	nowhere, err := grpc.NewClient("passthrough:///nowhere",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return nil, net.ErrClosed }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nowhere.Close() })
	ctx := testContext(t)
	verifier, err := authn.NewVerifier(ctx, nowhere,
		authn.WithAudience("internal"), authn.WithPublicMethods(PublicMethods), authn.WithoutWaiting())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { verifier.Close() })
	server, err := NewServer(verifier, NewService(), health.NewServer())
	if err != nil {
		t.Fatal(err)
	}
	conn := serve(t, server)
	client := notesv1.NewNotesServiceClient(conn)

	if _, err := client.About(ctx, &notesv1.AboutRequest{}); err != nil {
		t.Errorf("About: %v", err)
	}
	if _, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{}); err != nil {
		t.Errorf("health: %v", err)
	}
	_, list := client.ListNotes(ctx, &notesv1.ListNotesRequest{})
	_, add := client.AddNote(ctx, &notesv1.AddNoteRequest{Text: "anonymous"})
	stream, err := client.WatchNotes(ctx, &notesv1.WatchNotesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, watch := stream.Recv()
	for method, err := range map[string]error{"ListNotes": list, "AddNote": add, "WatchNotes": watch} {
		if authn.Reason(err) != watchwordv1.ErrorReason_ERROR_REASON_BUNDLE_STALE {
			t.Errorf("%s: %v, want BUNDLE_STALE", method, err)
		}
	}
}

func TestAddNote(t *testing.T) {
	s := NewService()
	if _, err := s.AddNote(t.Context(), &notesv1.AddNoteRequest{Text: "x"}); status.Code(err) != codes.Internal {
		t.Errorf("without a principal: %v, want INTERNAL", err)
	}
	if notes, _ := s.after(0); len(notes) != 0 {
		t.Errorf("the board has %v, want nothing", notes)
	}
}

func TestBoardIsBounded(t *testing.T) {
	s := NewService()
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
		t.Errorf("%d notes from %d on, want the newest %d", len(notes), notes[0].GetId(), maxNotes)
	}
	const clientLimit = 4 << 20 // what grpc-go takes by default
	if size := proto.Size(list); size > clientLimit {
		t.Errorf("a full board has %d bytes, more than the %d that clients accept", size, clientLimit)
	}
}

func TestAfter(t *testing.T) {
	s := NewService()
	for i := range maxNotes + 5 {
		s.add("alice", "id", fmt.Sprint(i))
	}
	for seen, want := range map[int64]int64{0: 6, 3: 6, 5: 6, 6: 7, maxNotes + 4: maxNotes + 5} {
		notes, _ := s.after(seen)
		if len(notes) == 0 || notes[0].GetId() != want {
			t.Errorf("after %d: %d notes, want them from %d on", seen, len(notes), want)
		}
	}
	if notes, _ := s.after(maxNotes + 5); len(notes) != 0 {
		t.Errorf("after the last: %v", notes)
	}
}

func TestWatchNotes(t *testing.T) {
	ctx := testContext(t)
	s := NewService()
	server := grpc.NewServer() // its guard is another test
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
	s.Close() // again does nothing
	for _, stream := range streams {
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("after Close: %v, want UNAVAILABLE", err)
		}
	}
}
