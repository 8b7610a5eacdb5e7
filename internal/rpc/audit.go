package rpc

import (
	"context"
	"errors"
	"log/slog"

	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/share"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// Audit serves AuditService, the reading side of the security record. The verifier lets
// only admins call AuditService.
type Audit struct {
	watchwordv1.UnimplementedAuditServiceServer
	store   *store.Store
	logger  *slog.Logger
	streams *share.Pool // bounds the open streams of WatchEvents of each admin
}

// filterRequest is a request with the filters of the security record.
type filterRequest interface {
	GetType() string
	GetUserId() string
	GetUserName() string
	GetSessionId() string
	GetStartTime() *timestamppb.Timestamp
}

// readFilter reads the filters of a request. name is empty if the request has no user_name.
func readFilter(r *reading, req filterRequest) (filter store.AuditFilter, name string) {
	filter = store.AuditFilter{
		Type:      field(r, "type", eventType, req.GetType()),
		UserID:    field(r, "user_id", optionalID, req.GetUserId()),
		SessionID: field(r, "session_id", optionalID, req.GetSessionId()),
		Start:     field(r, "start_time", optionalTime, req.GetStartTime()),
	}
	name = string(field(r, "user_name", optionalName, req.GetUserName()))
	if name != "" && filter.UserID != "" && r.err == nil {
		r.err = invalidField{"user_name", errors.New("must not be given together with user_id")}
	}
	return filter, name
}

// ListEvents serves AuditService/ListEvents.
func (s *Audit) ListEvents(ctx context.Context, req *watchwordv1.ListEventsRequest) (*watchwordv1.ListEventsResponse, error) {
	var r reading
	filter, name := readFilter(&r, req)
	filter.End = field(&r, "end_time", optionalTime, req.GetEndTime())
	page := readPage(&r, req, "events", name, filter.Type, filter.UserID, filter.SessionID, filter.Start.String(), filter.End.String()) // a page token is valid for a list with the same filter only
	if r.err != nil {
		return nil, r.err
	}
	filter.Before = page.after
	var records []*store.AuditRecord
	var next string
	var err error
	if name == "" {
		records, next, err = audit.List(ctx, s.store, filter, page.size)
	} else {
		records, next, err = audit.ListByName(ctx, s.store, filter, name, page.size)
	}
	return &watchwordv1.ListEventsResponse{Events: messages(records, eventMessage), NextPageToken: page.token(next)}, badName(err)
}

// badName returns the error for user_name if too many users have had the name, and otherwise err.
func badName(err error) error {
	if errors.Is(err, audit.ErrNamesakes) {
		return invalidField{"user_name", err}
	}
	return err
}

// optionalName checks a username in a filter. A request can leave the username empty.
func optionalName(name string) (user.Name, error) {
	if name == "" {
		return "", nil
	}
	return user.ParseName(name)
}

// eventMessage converts a record of the security record to a message of the API.
func eventMessage(r *store.AuditRecord) *watchwordv1.Event {
	return &watchwordv1.Event{
		Id: r.ID, Time: timestamppb.New(r.Time()), Type: r.Type, Success: r.Success, Reason: r.Reason,
		ActorId: r.ActorID, ActorName: r.ActorName, UserId: r.UserID, UserName: r.UserName, SessionId: r.SessionID, Kid: r.KID,
		Source: r.Source, Detail: r.Detail, Count: r.Count,
	}
}
