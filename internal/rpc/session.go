package rpc

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/store"
)

// Sessions serves SessionService.
type Sessions struct {
	watchwordv1.UnimplementedSessionServiceServer
	Sessions *session.Sessions
}

// ListSessions serves SessionService/ListSessions.
func (s *Sessions) ListSessions(ctx context.Context, req *watchwordv1.ListSessionsRequest) (*watchwordv1.ListSessionsResponse, error) {
	by, userID, err := callerAndUser(ctx, req)
	if err != nil {
		return nil, err
	}
	page, err := parsePage(req, "sessions", userID)
	if err != nil {
		return nil, err
	}
	rows, more, err := s.Sessions.List(ctx, by, userID, page.after, page.size)
	if err != nil {
		return nil, err
	}
	resp := &watchwordv1.ListSessionsResponse{Sessions: messages(rows, s.message)}
	if more {
		resp.NextPageToken = page.next(rows[len(rows)-1].ID)
	}
	return resp, nil
}

// RevokeSession serves SessionService/RevokeSession.
func (s *Sessions) RevokeSession(ctx context.Context, req *watchwordv1.RevokeSessionRequest) (*watchwordv1.RevokeSessionResponse, error) {
	err := checkID("session_id", req.GetSessionId())
	if err == nil {
		err = s.Sessions.Revoke(ctx, callerOf(ctx), req.GetSessionId())
	}
	return &watchwordv1.RevokeSessionResponse{}, err
}

// RevokeUserSessions serves SessionService/RevokeUserSessions.
func (s *Sessions) RevokeUserSessions(ctx context.Context, req *watchwordv1.RevokeUserSessionsRequest) (*watchwordv1.RevokeUserSessionsResponse, error) {
	by, userID, err := callerAndUser(ctx, req)
	if err == nil {
		err = s.Sessions.RevokeAll(ctx, by, userID)
	}
	return &watchwordv1.RevokeUserSessionsResponse{}, err
}

// callerAndUser returns the caller, and the user in the request: by default the caller's
// own.
func callerAndUser(ctx context.Context, req interface{ GetUserId() string }) (by caller.Caller, userID string, err error) {
	by = callerOf(ctx)
	if req.GetUserId() == "" {
		return by, by.ID, nil
	}
	return by, req.GetUserId(), checkID("user_id", req.GetUserId())
}

func (s *Sessions) message(row *store.Session) *watchwordv1.Session {
	return &watchwordv1.Session{
		Id: row.ID, UserId: row.UserID, Audience: row.Audience, CreatedAt: timestamppb.New(row.CreatedAt),
		RefreshedAt: timestamppb.New(row.RefreshedAt), ExpiresAt: timestamppb.New(s.Sessions.ExpiresAt(row)),
	}
}
