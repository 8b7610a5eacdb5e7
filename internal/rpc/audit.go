package rpc

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/store"
)

// Audit serves AuditService.
type Audit struct {
	watchwordv1.UnimplementedAuditServiceServer
	Store *store.Store
}

// ListEvents serves AuditService/ListEvents.
func (s *Audit) ListEvents(ctx context.Context, req *watchwordv1.ListEventsRequest) (*watchwordv1.ListEventsResponse, error) {
	filter, err := parseFilter(req)
	if err != nil {
		return nil, err
	}
	page, err := parsePage(req, "events", filter.Type, filter.UserID, filter.SessionID, req.GetStartTime().String(), req.GetEndTime().String())
	if err != nil {
		return nil, err
	}
	filter.Before = page.after
	records, next, err := audit.List(ctx, s.Store, filter, page.size)
	if err != nil {
		return nil, err
	}
	resp := &watchwordv1.ListEventsResponse{Events: messages(records, eventMessage)}
	if next != "" {
		resp.NextPageToken = page.next(next)
	}
	return resp, nil
}

func parseFilter(req *watchwordv1.ListEventsRequest) (f store.AuditFilter, err error) {
	f = store.AuditFilter{Type: req.GetType(), UserID: req.GetUserId(), SessionID: req.GetSessionId()}
	switch { // every type and id is shorter
	case len(f.Type) > maxIDLength:
		return f, invalid("type", "unknown event type")
	case len(f.UserID) > maxIDLength:
		return f, invalid("user_id", "not a user id")
	case len(f.SessionID) > maxIDLength:
		return f, invalid("session_id", "not a session id")
	}
	if f.Start, err = parseTime("start_time", req.GetStartTime()); err == nil {
		f.End, err = parseTime("end_time", req.GetEndTime())
	}
	return f, err
}

// parseTime returns the zero time for an empty field.
func parseTime(field string, t *timestamppb.Timestamp) (time.Time, error) {
	switch {
	case t == nil:
		return time.Time{}, nil
	case t.CheckValid() != nil:
		return time.Time{}, invalid(field, "not a valid timestamp")
	}
	return t.AsTime(), nil
}

func eventMessage(r *store.AuditRecord) *watchwordv1.Event {
	return &watchwordv1.Event{
		Id: r.ID, Time: timestamppb.New(r.Time()), Type: r.Type, Success: r.Success, Reason: r.Reason,
		ActorId: r.ActorID, UserId: r.UserID, SessionId: r.SessionID, Kid: r.KID,
		Source: r.Source, Detail: r.Detail, Count: r.Count,
	}
}
