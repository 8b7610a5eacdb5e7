package rpc

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/detach"
	"github.com/watchword-auth/watchword/internal/share"
	"github.com/watchword-auth/watchword/internal/store"
)

const (
	// eventStreams bounds the open streams of WatchEvents in this process, and
	// eventStreamsOfOne the open streams of one admin. Each stream reads from the database a
	// few times a second, and takes about 200 KiB while records are being sent.
	eventStreams      = 64
	eventStreamsOfOne = 16
	// eventsEvery is the time between two reads of the security record.
	eventsEvery = 250 * time.Millisecond
	// eventsAlive is the longest time between two messages of a stream. If a transaction of
	// PostgreSQL has kept records back for eventsAlive or longer, a message tells for how long.
	eventsAlive = 5 * time.Second
	// beforeExpiry is how long before the expiry of the caller's access token a stream of
	// WatchEvents ends. A stream that stays open longer would be refused by the verifier, and
	// the security record would hold the refusal.
	beforeExpiry = 2 * time.Second
	// maxEventResume is the largest length, in bytes, of the text by which a client resumes
	// WatchEvents.
	maxEventResume = 1024
)

var (
	errManyStreams = errors.New("too many streams of WatchEvents")
	errLostStream  = errors.New("another client got the place of this stream")
)

// NewAudit returns the service for the security record. The logger gets the panics of handlers
// that still run after the end of their streams.
func NewAudit(s *store.Store, logger *slog.Logger) *Audit {
	return &Audit{store: s, logger: logger, streams: share.NewPool(share.Limits{Places: eventStreams, PerPeer: eventStreamsOfOne})}
}

// Streams returns the numbers of the open streams of WatchEvents, for metrics.
func (s *Audit) Streams() share.Stats { return s.streams.Stats() }

// WatchEvents serves AuditService/WatchEvents. The interceptor of the verifier ends the stream
// if the access token or the rights of the caller end.
func (s *Audit) WatchEvents(req *watchwordv1.WatchEventsRequest, stream grpc.ServerStreamingServer[watchwordv1.WatchEventsResponse]) error {
	w, err := s.newWatching(req)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	place := s.streams.Take(callerOf(ctx).ID, share.Ordinary, func() { cancel(errLostStream) })
	if place == nil {
		return errManyStreams
	}
	defer place.Release()
	if req.GetResume() == "" && req.GetStartTime() == nil {
		if w.at, err = audit.Latest(ctx, s.store, w.of); err != nil {
			return badName(err)
		}
	}
	// Send blocks while the client does not read, and cannot be cancelled. Therefore Send runs
	// in a separate goroutine, and the handler returns before Send when the timer w.unread
	// fires.
	w.stream, w.unread = stream, time.NewTimer(sendTimeout)
	w.unread.Stop()
	defer w.unread.Stop()
	sending := detach.Go(func() error { return w.run(ctx) })
	select {
	case <-sending.Done():
		if err = sending.Result(); context.Cause(ctx) == errLostStream {
			err = errLostStream
		}
		return err
	case <-ctx.Done():
		sending.Leave(LogLate(s.logger)) // LogLate logs a panic of Send, which may still be blocked
		return context.Cause(ctx)
	case <-w.unread.C:
		sending.Leave(LogLate(s.logger))
		return status.Error(codes.Unavailable, "the client left messages unread for too long: watch again")
	}
}

// watching holds the state of one stream of WatchEvents.
type watching struct {
	store  *store.Store
	of     audit.Following
	hash   string // the hash of the filter, which every resume text contains
	at     audit.Place
	stream grpc.ServerStreamingServer[watchwordv1.WatchEventsResponse]
	unread *time.Timer // runs while a message is being sent
}

// newWatching checks the fields of a request and returns the stream's state.
func (s *Audit) newWatching(req *watchwordv1.WatchEventsRequest) (*watching, error) {
	var r reading
	filter, name := readFilter(&r, req)
	w := &watching{store: s.store, of: audit.Following{Filter: filter, Name: name}}
	w.hash = base64.RawURLEncoding.EncodeToString([]byte(filterHash("stream of events", name, filter.Type, filter.UserID, filter.SessionID)))
	from := field(&r, "resume", w.parse, req.GetResume())
	if req.GetResume() != "" && req.GetStartTime() != nil && r.err == nil {
		r.err = invalidField{"start_time", errors.New("must not be given together with resume, which holds the start_time of the first call")}
	}
	if w.at = from.At; req.GetResume() != "" {
		w.of.Filter.Start = from.Start
	}
	return w, r.err
}

// run sends records until ctx ends or the access token is about to expire. run sends the first
// message at once.
func (w *watching) run(ctx context.Context) error {
	look := time.NewTicker(eventsEvery)
	defer look.Stop()
	expires := time.Time{}
	if p, ok := authn.FromContext(ctx); ok {
		expires = p.ExpiresAt().Add(-beforeExpiry)
	}
	for sent := (time.Time{}); ; {
		part, err := audit.Follow(ctx, w.store, w.of, w.at)
		if err != nil {
			return badName(err)
		}
		w.at = part.Next
		over := !expires.IsZero() && part.Now.After(expires)
		if len(part.Records) > 0 || part.Gap != audit.NoGap || over || time.Since(sent) >= eventsAlive {
			if err := w.send(part); err != nil {
				return err
			}
			sent = time.Now()
		}
		switch {
		case over:
			return nil
		case part.More && ctx.Err() == nil:
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
		}
	}
}

// gaps maps the gaps (missing events) that package audit finds in the record to the enum
// EventGap of the API.
var gaps = map[audit.Gap]watchwordv1.EventGap{
	audit.Deleted:      watchwordv1.EventGap_EVENT_GAP_DELETED,
	audit.OtherHistory: watchwordv1.EventGap_EVENT_GAP_OTHER_HISTORY,
}

func (w *watching) send(part audit.Part) error {
	m := &watchwordv1.WatchEventsResponse{Events: messages(part.Records, eventMessage), Resume: w.resume(), Gap: gaps[part.Gap]}
	if part.Delay >= eventsAlive {
		m.Delay = durationpb.New(part.Delay)
	}
	w.unread.Reset(sendTimeout)
	defer w.unread.Stop()
	return w.stream.Send(m)
}

// resumeText is the content of the text by which a client resumes WatchEvents. The text has no
// signature, since the text gives no rights.
type resumeText struct {
	Filter string      `json:"f"`
	Start  time.Time   `json:"s"`
	At     audit.Place `json:"a"`
}

func (w *watching) resume() string {
	text, _ := json.Marshal(resumeText{w.hash, w.of.Filter.Start, w.at}) // cannot fail, since the fields are texts, numbers and times
	return base64.RawURLEncoding.EncodeToString(text)
}

// parse checks and decodes a resume text, by which a client resumes a stream of WatchEvents.
func (w *watching) parse(text string) (said resumeText, err error) {
	if text == "" {
		return said, nil
	}
	if len(text) > maxEventResume {
		return said, errors.New("not a resume text")
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err == nil {
		err = json.Unmarshal(raw, &said)
	}
	after := said.At.After
	switch {
	case err != nil, said.Filter == "", after.Seq < 0, said.At.Mark.Seq < after.Seq, len(after.ID) > maxIDLength, !store.IsText(after.ID):
		return resumeText{}, errors.New("not a resume text")
	case said.Filter != w.hash:
		return resumeText{}, errors.New("of a stream with other filters: give the filters of that stream, or begin a new stream")
	}
	return said, nil
}
