// Package notes is a board of notes behind Watchword, as an example to copy from.
//
// The package owns the notes and does no guarding: notes.proto has the rule of each
// method, and authn's interceptors check the rules. The code here never looks at a
// token. Every method may be called from several goroutines at once.
package notes

import (
	"context"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/watchword-auth/watchword/authn"

	notesv1 "example.com/notes/gen/notes/v1"
)

const (
	// maxNotes bounds the memory that callers can fill. So many of the longest
	// notes also fit into one answer, which gRPC clients accept up to 4 MiB.
	maxNotes = 1000
	// maxText is in bytes.
	maxText = 1024
)

// Service implements notesv1.NotesServiceServer. NewService makes one; Close
// ends its streams.
type Service struct {
	notesv1.UnimplementedNotesServiceServer

	mu      sync.Mutex
	notes   []*notesv1.Note // at most maxNotes, the oldest first; a note never changes
	last    int64           // id of the newest note, 0 before the first
	changed chan struct{}   // closed and replaced when a note is added

	closing chan struct{}
	once    sync.Once
}

// NewService returns an empty board.
func NewService() *Service {
	return &Service{changed: make(chan struct{}), closing: make(chan struct{})}
}

// Close ends every WatchNotes, so that a server can stop gracefully: it would
// wait for them otherwise. The other methods go on.
func (s *Service) Close() { s.once.Do(func() { close(s.closing) }) }

// About is public: there is no principal here, whatever token came.
func (s *Service) About(context.Context, *notesv1.AboutRequest) (*notesv1.AboutResponse, error) {
	return &notesv1.AboutResponse{Description: "A board of notes, guarded by Watchword."}, nil
}

// ListNotes lists the board.
func (s *Service) ListNotes(context.Context, *notesv1.ListNotesRequest) (*notesv1.ListNotesResponse, error) {
	notes, _ := s.after(0)
	return &notesv1.ListNotesResponse{Notes: notes}, nil
}

// AddNote adds a note in the name of the principal.
func (s *Service) AddNote(ctx context.Context, req *notesv1.AddNoteRequest) (*notesv1.AddNoteResponse, error) {
	author, ok := authn.FromContext(ctx)
	if !ok {
		// Only if the server was made without verifier.ServerOptions().
		return nil, status.Error(codes.Internal, "the server is not guarded")
	}
	if n := len(req.GetText()); n == 0 || n > maxText {
		return nil, status.Errorf(codes.InvalidArgument, "text: must have 1 to %d bytes", maxText)
	}
	return &notesv1.AddNoteResponse{Note: s.add(author.Username(), author.Subject(), req.GetText())}, nil
}

// WatchNotes sends the board and then what is added to it.
func (s *Service) WatchNotes(_ *notesv1.WatchNotesRequest, stream grpc.ServerStreamingServer[notesv1.WatchNotesResponse]) error {
	var seen int64
	for {
		notes, changed := s.after(seen)
		for _, n := range notes {
			if err := stream.Send(&notesv1.WatchNotesResponse{Note: n}); err != nil {
				return err
			}
			seen = n.GetId()
		}
		select {
		case <-changed:
		case <-s.closing:
			return status.Error(codes.Unavailable, "the server is stopping")
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
}

// add keeps a note, and drops the oldest when there are too many.
func (s *Service) add(author, authorID, text string) *notesv1.Note {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	n := &notesv1.Note{Id: s.last, Author: author, AuthorId: authorID, Text: text, CreatedAt: timestamppb.Now()}
	s.notes = append(s.notes, n)
	if len(s.notes) > maxNotes {
		s.notes[0] = nil // append may keep the array for long
		s.notes = s.notes[1:]
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return n
}

// after returns the notes with ids above seen, and a channel that is closed when
// there are more. The slice is the caller's own.
func (s *Service) after(seen int64) ([]*notesv1.Note, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Ids have no gaps, so the last of them tells how many are new.
	n := min(s.last-seen, int64(len(s.notes)))
	fresh := s.notes[int64(len(s.notes))-n:]
	return slices.Clone(fresh), s.changed
}
