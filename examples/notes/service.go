// Package notes is a board of notes behind Watchword, as an example to copy from.
//
// The package has the notes and no access control: notes.proto states each method's rule,
// and the interceptors of package authn enforce the rules. No code of package notes reads a token.
// Any number of goroutines can call every method at once.
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
	searchv1 "example.com/notes/gen/search/v1"
)

const (
	// maxNotes limits the memory that callers can fill. A full board of the longest notes
	// also fits into one answer: gRPC clients accept up to 4 MiB.
	maxNotes = 1000
	// maxText is the longest text of a note, in bytes.
	maxText = 1024
)

// Service holds a board of notes in memory, and implements notesv1.NotesServiceServer. NewService
// makes a Service, and Close ends the streams of the Service.
type Service struct {
	notesv1.UnimplementedNotesServiceServer
	search searchv1.SearchServiceClient // calls on behalf of a handler's caller; nil: without search

	mu      sync.Mutex      // guards the fields below
	notes   []*notesv1.Note // at most maxNotes, the oldest first; a note never changes
	last    int64           // id of the newest note, 0 before the first
	changed chan struct{}   // closed and replaced when a note is added

	closing chan struct{} // closed by Close
	once    sync.Once     // lets Close run once
}

// NewService returns an empty board. search has a connection with the options of
// tokensource.OnBehalfOf. If search is nil, SearchNotes returns FAILED_PRECONDITION.
func NewService(search searchv1.SearchServiceClient) *Service {
	return &Service{search: search, changed: make(chan struct{}), closing: make(chan struct{})}
}

// Close ends every WatchNotes with UNAVAILABLE, because grpc.Server.GracefulStop waits for open
// streams. The other methods go on. A second Close does nothing.
func (s *Service) Close() { s.once.Do(func() { close(s.closing) }) }

// About describes the board. The method is public, so ctx has no principal, also for a call
// with a token.
func (s *Service) About(context.Context, *notesv1.AboutRequest) (*notesv1.AboutResponse, error) {
	return &notesv1.AboutResponse{Description: "A board of notes, guarded by Watchword."}, nil
}

// ListNotes returns all notes, the oldest first.
func (s *Service) ListNotes(context.Context, *notesv1.ListNotesRequest) (*notesv1.ListNotesResponse, error) {
	notes, _ := s.after(0)
	return &notesv1.ListNotesResponse{Notes: notes}, nil
}

// AddNote adds a note in the caller's name.
//
// Errors: INVALID_ARGUMENT for an empty text or more than 1,024 bytes.
func (s *Service) AddNote(ctx context.Context, req *notesv1.AddNoteRequest) (*notesv1.AddNoteResponse, error) {
	author, ok := authn.FromContext(ctx)
	if !ok {
		// The server was made without verifier.ServerOptions().
		return nil, status.Error(codes.Internal, "the server is not guarded")
	}
	if n := len(req.GetText()); n == 0 || n > maxText {
		return nil, status.Errorf(codes.InvalidArgument, "text: must have 1 to %d bytes", maxText)
	}
	return &notesv1.AddNoteResponse{Note: s.add(author.Username(), author.Subject(), req.GetText())}, nil
}

// SearchNotes asks the service search, on behalf of the caller: ctx, the context of the handler,
// has the caller. The error of the call goes to the caller as it is.
//
// Errors: FAILED_PRECONDITION without the service search; those of the service search.
func (s *Service) SearchNotes(ctx context.Context, req *notesv1.SearchNotesRequest) (*notesv1.SearchNotesResponse, error) {
	if s.search == nil {
		return nil, status.Error(codes.FailedPrecondition, "the board was started without the service search")
	}
	notes, _ := s.after(0)
	find := &searchv1.FindRequest{Word: req.GetWord()}
	for _, n := range notes {
		find.Texts = append(find.Texts, n.GetText())
	}
	found, err := s.search.Find(ctx, find)
	if err != nil {
		return nil, err
	}
	resp := &notesv1.SearchNotesResponse{Subject: found.GetSubject(), Actor: found.GetActor()}
	for _, place := range found.GetPlaces() {
		if place < 0 || int(place) >= len(notes) {
			return nil, status.Error(codes.Internal, "the service search named a text that was not in the request")
		}
		resp.Notes = append(resp.Notes, notes[place])
	}
	return resp, nil
}

// WatchNotes sends all notes, and then each new note.
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

// add adds a note, and drops the oldest note of more than maxNotes.
func (s *Service) add(author, authorID, text string) *notesv1.Note {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	n := &notesv1.Note{Id: s.last, Author: author, AuthorId: authorID, Text: text, CreatedAt: timestamppb.Now()}
	s.notes = append(s.notes, n)
	if len(s.notes) > maxNotes {
		s.notes[0] = nil // frees the note, since the array below the slice may stay in memory
		s.notes = s.notes[1:]
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return n
}

// after returns the notes with ids above seen, and a channel closed when a note is added. The
// slice is a copy.
func (s *Service) after(seen int64) ([]*notesv1.Note, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Ids have no gaps, so the newest id gives the number of new notes.
	n := min(s.last-seen, int64(len(s.notes)))
	fresh := s.notes[int64(len(s.notes))-n:]
	return slices.Clone(fresh), s.changed
}
