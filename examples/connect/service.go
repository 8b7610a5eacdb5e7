package board

import (
	"context"
	"net/http"

	"connectrpc.com/connect"

	"github.com/watchword-auth/watchword/authn"

	"example.com/connect/gen/notes/v1/notesv1connect"
	notesv1 "example.com/notes/gen/notes/v1"
)

// maxMessage is the longest message that a caller can make the server read, in bytes.
const maxMessage = 64 << 10

// NewHandler returns the service for a mux of net/http: the path of the service, and the handler.
func NewHandler(verifier *authn.Verifier) (path string, handler http.Handler) {
	return notesv1connect.NewNotesServiceHandler(service{}, Guard(verifier), connect.WithReadMaxBytes(maxMessage))
}

// service has few notes, and reads the caller in each handler. The access rule of each method is an
// option in notes.proto.
type service struct {
	notesv1connect.UnimplementedNotesServiceHandler
}

// About is public: ctx has no principal, also for a call with a token.
func (service) About(ctx context.Context, _ *notesv1.AboutRequest) (*notesv1.AboutResponse, error) {
	return &notesv1.AboutResponse{Description: "Notes by Connect, for " + caller(ctx)}, nil
}

// ListNotes needs a valid token.
func (service) ListNotes(ctx context.Context, _ *notesv1.ListNotesRequest) (*notesv1.ListNotesResponse, error) {
	return &notesv1.ListNotesResponse{Notes: []*notesv1.Note{{Author: caller(ctx)}}}, nil
}

// AddNote needs the role writer or admin.
func (service) AddNote(ctx context.Context, req *notesv1.AddNoteRequest) (*notesv1.AddNoteResponse, error) {
	return &notesv1.AddNoteResponse{Note: &notesv1.Note{Author: caller(ctx), Text: req.GetText()}}, nil
}

// WatchNotes sends one note, and waits for more.
func (service) WatchNotes(ctx context.Context, _ *notesv1.WatchNotesRequest, stream *connect.ServerStream[notesv1.WatchNotesResponse]) error {
	if err := stream.Send(&notesv1.WatchNotesResponse{Note: &notesv1.Note{Author: caller(ctx)}}); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// caller returns the name of the caller of a handler.
func caller(ctx context.Context) string {
	if p, ok := authn.FromContext(ctx); ok {
		return p.Username()
	}
	return "everyone"
}
