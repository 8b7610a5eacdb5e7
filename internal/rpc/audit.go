package rpc

import (
	"context"

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

const maxTypeLength = 64 // bytes; the longest type has 21

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
	resp := &watchwordv1.ListEventsResponse{}
	for _, r := range records {
		resp.Events = append(resp.Events, eventMessage(r))
	}
	if next != "" {
		resp.NextPageToken = page.token(next)
	}
	return resp, nil
}

func parseFilter(req *watchwordv1.ListEventsRequest) (store.AuditFilter, error) {
	f := store.AuditFilter{Type: req.GetType(), UserID: req.GetUserId(), SessionID: req.GetSessionId()}
	switch {
	case len(f.Type) > maxTypeLength:
		return f, invalid("type", "is none")
	case len(f.UserID) > maxIDLength:
		return f, invalid("user_id", "is none")
	case len(f.SessionID) > maxIDLength:
		return f, invalid("session_id", "is none")
	}
	if t := req.GetStartTime(); t != nil {
		if t.CheckValid() != nil {
			return f, invalid("start_time", "is no time")
		}
		f.Start = t.AsTime()
	}
	if t := req.GetEndTime(); t != nil {
		if t.CheckValid() != nil {
			return f, invalid("end_time", "is no time")
		}
		f.End = t.AsTime()
	}
	return f, nil
}

func eventMessage(r *store.AuditRecord) *watchwordv1.Event {
	return &watchwordv1.Event{
		Id: r.ID, Time: timestamppb.New(r.Time()), Type: r.Type, Success: r.Success, Reason: r.Reason,
		ActorId: r.ActorID, UserId: r.UserID, SessionId: r.SessionID, Kid: r.KID,
		Source: r.Source, Detail: r.Detail, Count: r.Count,
	}
}
