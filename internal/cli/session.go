package cli

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/server"
)

// sessionCmd holds the commands about sessions.
type sessionCmd struct {
	List      sessionListCmd      `cmd:"" help:"List the live sessions of a user; on a running server without a NAME, your own."`
	Revoke    sessionRevokeCmd    `cmd:"" help:"End a session: its tokens are refused."`
	RevokeAll sessionRevokeAllCmd `cmd:"" help:"End every session of a user."`
}

type sessionListCmd struct {
	api
	asJSON
	Name       string        `arg:"" optional:"" help:"Username."`
	RefreshTTL time.Duration `name:"refresh-ttl" default:"720h" help:"On a database: as for serve. Decides which sessions are live."`
	SessionTTL time.Duration `name:"session-ttl" default:"2160h" help:"On a database: as for serve. Decides which sessions are live."`
}

// Run lists the live sessions of a user, the newest first. The server knows the hour of the last
// refresh alone, which can begin before the session was made.
func (c *sessionListCmd) Run(ctx context.Context, t Terminal) error {
	if c.Name != "" {
		if err := username(c.Name); err != nil {
			return err
		}
	} else if !c.onServer {
		return usageError{errors.New("name a user: on a database the operator has no sessions")}
	}
	local := server.LocalConfig{RefreshTTL: c.RefreshTTL, SessionTTL: c.SessionTTL}
	return c.withLocal(ctx, t, local, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		var u *watchwordv1.User
		if c.Name != "" {
			var err error
			if u, err = findUser(ctx, conn, c.Name); err != nil {
				return err
			}
		}
		name := cmp.Or(u.GetUsername(), c.username)
		sessions := watchwordv1.NewSessionServiceClient(conn)
		each := func(show func(*watchwordv1.Session) error) error {
			return pages(func(token string) (string, error) {
				resp, err := sessions.ListSessions(ctx, &watchwordv1.ListSessionsRequest{UserId: u.GetId(), PageSize: pageSize, PageToken: token})
				for _, s := range resp.GetSessions() {
					if err := show(s); err != nil {
						return "", err
					}
				}
				return resp.GetNextPageToken(), err
			})
		}
		return list(t, c.asJSON, "ID\tUSER\tAUDIENCE\tCREATED\tREFRESHED IN HOUR\tEXPIRES", each, func(s *watchwordv1.Session) []string {
			return []string{s.GetId(), nameAndID(name, s.GetUserId()), strings.Join(s.GetAudience(), ","),
				moment(s.GetCreatedAt()), s.GetRefreshedAt().AsTime().Format("2006-01-02T15Z"), moment(s.GetExpiresAt())}
		})
	})
}

type sessionRevokeCmd struct {
	api
	ID string `arg:"" name:"id" help:"The session's id."`
}

// Run ends a session. If the session has ended before, Run changes nothing and succeeds.
func (c *sessionRevokeCmd) Run(ctx context.Context, t Terminal) error {
	return c.with(ctx, t, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		_, err := watchwordv1.NewSessionServiceClient(conn).RevokeSession(ctx, &watchwordv1.RevokeSessionRequest{SessionId: c.ID})
		return err
	})
}

type sessionRevokeAllCmd struct{ named }

// Run ends every session of a user.
func (c *sessionRevokeAllCmd) Run(ctx context.Context, t Terminal) error {
	if err := username(c.Name); err != nil {
		return err
	}
	return c.with(ctx, t, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		u, err := findUser(ctx, conn, c.Name)
		if err != nil {
			return err
		}
		_, err = watchwordv1.NewSessionServiceClient(conn).RevokeUserSessions(ctx, &watchwordv1.RevokeUserSessionsRequest{UserId: u.GetId()})
		return err
	})
}
