package rpc

import (
	"cmp"
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/store"
)

// Sessions serves SessionService. A user is allowed to list and end the user's own sessions,
// and an admin with a token for caller.AdminAudience the sessions of every user; package
// session checks the rights. An empty user_id in a request means the caller.
type Sessions struct {
	watchwordv1.UnimplementedSessionServiceServer
	Sessions *session.Admin
}

// ListSessions serves SessionService/ListSessions.
func (s *Sessions) ListSessions(ctx context.Context, req *watchwordv1.ListSessionsRequest) (*watchwordv1.ListSessionsResponse, error) {
	var r reading
	by := callerOf(ctx)
	userID := cmp.Or(field(&r, "user_id", optionalID, req.GetUserId()), by.ID)
	page := readPage(&r, req, "sessions", userID)
	after := field(&r, "page_token", session.ParsePlace, page.after)
	if r.err != nil {
		return nil, r.err
	}
	rows, next, err := s.Sessions.List(ctx, by, userID, after, page.size)
	return &watchwordv1.ListSessionsResponse{Sessions: messages(rows, s.message), NextPageToken: page.token(session.FormatPlace(next))}, err
}

// RevokeSession serves SessionService/RevokeSession.
func (s *Sessions) RevokeSession(ctx context.Context, req *watchwordv1.RevokeSessionRequest) (*watchwordv1.RevokeSessionResponse, error) {
	var r reading
	id := field(&r, "session_id", requiredID, req.GetSessionId())
	if r.err != nil {
		return nil, r.err
	}
	return &watchwordv1.RevokeSessionResponse{}, s.Sessions.Revoke(ctx, callerOf(ctx), id)
}

// RevokeUserSessions serves SessionService/RevokeUserSessions.
func (s *Sessions) RevokeUserSessions(ctx context.Context, req *watchwordv1.RevokeUserSessionsRequest) (*watchwordv1.RevokeUserSessionsResponse, error) {
	var r reading
	by := callerOf(ctx)
	userID := cmp.Or(field(&r, "user_id", optionalID, req.GetUserId()), by.ID)
	if r.err != nil {
		return nil, r.err
	}
	return &watchwordv1.RevokeUserSessionsResponse{}, s.Sessions.RevokeAll(ctx, by, userID)
}

// refreshedStep is the step to which answers round the time of the last refresh. From the
// precise time, a thief that has a copy of the refresh token would know when to use the copy
// within the grace (--refresh-grace), in which the server still accepts a spent token.
const refreshedStep = time.Hour

// message converts a session to a message of the API. The field refreshed_at is rounded down to
// a multiple of refreshedStep. expires_at is the latest time at which the session ends if no
// refresh comes before. expires_at is calculated from the rounded time: otherwise expires_at
// would tell the precise time of the refresh.
func (s *Sessions) message(row *store.Session) *watchwordv1.Session {
	refreshed := row.RefreshedAt.Truncate(refreshedStep)
	latest := *row
	latest.RefreshedAt = refreshed.Add(refreshedStep)
	return &watchwordv1.Session{
		Id: row.ID, UserId: row.UserID, Audience: row.Audience, CreatedAt: timestamppb.New(row.CreatedAt),
		RefreshedAt: timestamppb.New(refreshed), ExpiresAt: timestamppb.New(s.Sessions.ExpiresAt(&latest)),
	}
}
