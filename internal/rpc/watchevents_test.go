package rpc_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/rpc"
	"github.com/watchword-auth/watchword/internal/store"
)

// serveEvents serves the record of a database with the given number of records, in a synctest
// bubble.
func serveEvents(t *testing.T, records int, opts ...grpc.ServerOption) (events *rpc.Audit, client watchwordv1.AuditServiceClient, ended chan error) {
	t.Helper()
	s, err := store.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "t.db"))
	if err != nil {
		t.Fatal(err)
	}
	err = s.Write(t.Context(), func(tx *store.Tx) error {
		for range records {
			if err := tx.InsertAudit(&store.AuditRecord{Type: "login", Detail: strings.Repeat("x", 1000), Count: 1}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ended = make(chan error, 100)
	note := func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		err := handler(srv, stream)
		ended <- err
		return err
	}
	events = rpc.NewAudit(s, slog.New(slog.DiscardHandler))
	server, listener := grpc.NewServer(append(opts, grpc.ChainStreamInterceptor(note))...), bufconn.Listen(64<<10)
	watchwordv1.RegisterAuditServiceServer(server, events)
	served := make(chan error)
	go func() { served <- server.Serve(listener) }()
	conn := dial(t, func() *bufconn.Listener { return listener })
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		s.Close()
	})
	return events, watchwordv1.NewAuditServiceClient(conn), ended
}

// A client that reads nothing loses its stream after 30 seconds, and its place. A client that
// reads keeps its stream, and gets a message every five seconds.
func TestAStreamOfEventsThatIsNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const records = 3000
		events, client, ended := serveEvents(t, records)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		every := &watchwordv1.WatchEventsRequest{StartTime: &timestamppb.Timestamp{}}
		reader, err := client.WatchEvents(ctx, every)
		if err != nil {
			t.Fatal(err)
		}
		read := func() int {
			m, err := reader.Recv()
			if err != nil {
				t.Fatal(err)
			}
			return len(m.GetEvents())
		}
		for n := 0; n < records; {
			n += read()
		}
		if _, err := client.WatchEvents(ctx, every); err != nil { // the client opens the stream and reads nothing
			t.Fatal(err)
		}
		synctest.Wait()
		if held := events.Streams().Held; held != 2 {
			t.Errorf("%d streams have places, want 2", held)
		}
		for began := time.Now(); time.Since(began) < sendTimeout+time.Second; {
			before := time.Now()
			if n := read(); n > 0 || time.Since(before) > 6*time.Second {
				t.Errorf("an idle stream brought %d events after %v", n, time.Since(before))
			}
		}
		synctest.Wait()
		select {
		case err := <-ended:
			if status.Code(err) != codes.Unavailable {
				t.Errorf("the stream that is not read ended with %v", err)
			}
		default:
			t.Error("the stream that is not read is open")
		}
		if held := events.Streams().Held; held != 1 {
			t.Errorf("%d streams have places, want 1", held)
		}
	})
}

// When every place for streams is taken, an admin with few streams gets the place of an admin with
// most. The admin that loses the place is told so.
func TestAnAdminWithFewStreamsOfEventsGetsAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := authntest.New()
		verifier := issuer.NewVerifier(t, authn.WithAudience("watchword"))
		logger := slog.New(slog.DiscardHandler)
		edge := rpc.NewEdge(audit.New(nil, logger), func() time.Duration { return time.Second }, logger)
		events, client, _ := serveEvents(t, 0, append([]grpc.ServerOption{grpc.ChainStreamInterceptor(edge.Stream)}, verifier.ServerOptions()...)...)
		watch := func(admin string) watchwordv1.AuditService_WatchEventsClient {
			token := issuer.Token(authntest.User{Name: admin, Roles: []string{"admin"}, Audience: []string{"watchword"}})
			stream, err := client.WatchEvents(authntest.Bearer(t.Context(), token), &watchwordv1.WatchEventsRequest{})
			if err == nil {
				_, err = stream.Recv()
			}
			if err != nil {
				t.Fatalf("a stream of %s: %v", admin, err)
			}
			return stream
		}
		few, lost := watch("few"), make(chan error, 64)
		for i := range 63 { // one admin has 16 streams, the largest number
			stream := watch(fmt.Sprint("admin ", i/16))
			go func() {
				for {
					if _, err := stream.Recv(); err != nil {
						lost <- err
						return
					}
				}
			}()
		}
		if held := events.Streams().Held; held != 64 {
			t.Fatalf("%d streams have places, want all 64", held)
		}
		watch("few")
		if err := <-lost; authn.Reason(err) != watchwordv1.ErrorReason_ERROR_REASON_OVERLOADED || !strings.Contains(err.Error(), "with fewer streams") {
			t.Errorf("the stream that lost its place ended with %v", err)
		}
		if _, err := few.Recv(); err != nil {
			t.Errorf("the other stream of the admin with few streams: %v", err)
		}
		if held := events.Streams().Held; held != 64 || len(lost) > 0 {
			t.Errorf("%d streams have places, and %d more have ended", held, len(lost))
		}
	})
}
