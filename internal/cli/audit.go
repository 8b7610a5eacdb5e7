package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/user"
)

// auditCmd shows the security record, the list of logins, changes and refusals.
type auditCmd struct {
	api
	Type    string        `help:"Only events of this type, such as login or key.rotated."`
	User    string        `placeholder:"NAME" help:"Only events in which a user that has or had this name acted, or was acted upon; deleted users too."`
	UserID  string        `name:"user-id" help:"The same for one user, by id."`
	Session string        `placeholder:"ID" help:"Only events of this session."`
	Since   time.Duration `help:"Only events of the last DURATION, such as 24h."`
	Limit   int           `default:"100" help:"The largest number of events, without --follow; 0: all."`
	following
	asJSON
}

// Help returns the text that --help prints below the first sentence about the command.
func (c *auditCmd) Help() string {
	return `With --follow --json --resume-file FILE the command ships the record: it prints each event
once, and again only if the command was killed or the count of the event has changed. A line
with "gap" in place of an event says that events are missing.`
}

// Validate returns an error for flags that contradict each other. The parser kong calls
// Validate, and the exit status of an error is 2.
func (c *auditCmd) Validate() error {
	if c.User != "" && c.UserID != "" {
		return errors.New("--user and --user-id exclude each other")
	}
	if _, err := audit.ParseType(c.Type); c.Type != "" && err != nil {
		return fmt.Errorf("--type: %w", err)
	}
	if c.ResumeFile != "" && !c.Follow {
		return errors.New("--resume-file is for --follow")
	}
	if c.Limit < 0 || c.Since < 0 {
		return errors.New("--limit and --since must not be negative")
	}
	return nil
}

// Run prints the events of the security record, the newest first without --follow: in a table
// for people, or as one JSON object in each line for programs.
func (c *auditCmd) Run(ctx context.Context, t Terminal) error {
	if c.User != "" {
		if _, err := user.ParseName(c.User); err != nil {
			return usageError{fmt.Errorf("--user: %w", err)}
		}
	}
	if c.Follow {
		t.Err = struct{ io.Writer }{t.Err} // switches off the line that shows that the command is at work, since the printed events show it
	}
	return c.with(ctx, t, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		if c.Follow {
			return c.follow(ctx, t, conn)
		}
		each := func(show func(*watchwordv1.Event) error) error { return c.each(ctx, conn, show) }
		if c.JSON {
			return each(func(e *watchwordv1.Event) error { return json.NewEncoder(t.Out).Encode(auditLine(e)) })
		}
		return list(t, asJSON{}, "TIME\tTYPE\tOUTCOME\tACTOR\tUSER\tSESSION\tSOURCE\tCOUNT\tDETAIL", each, auditCells)
	})
}

// auditCells returns the cells of an event for a row of the table.
func auditCells(e *watchwordv1.Event) []string {
	return []string{moment(e.GetTime()), e.GetType(), cmp.Or(e.GetReason(), "ok"),
		nameAndID(e.GetActorName(), e.GetActorId()), nameAndID(e.GetUserName(), e.GetUserId()), cmp.Or(e.GetSessionId(), "-"), cmp.Or(e.GetSource(), "-"),
		strconv.FormatInt(e.GetCount(), 10), cmp.Or(e.GetDetail(), e.GetKid(), "-")}
}

// each calls show for at most --limit events of the security record. Errors: USER_NOT_FOUND,
// with the name, if no user has or had the name in --user.
func (c *auditCmd) each(ctx context.Context, conn grpc.ClientConnInterface, show func(*watchwordv1.Event) error) error {
	req := &watchwordv1.ListEventsRequest{Type: c.Type, UserName: c.User, UserId: c.UserID, SessionId: c.Session, PageSize: pageSize}
	if c.Since > 0 {
		req.StartTime = timestamppb.New(time.Now().Add(-c.Since))
	}
	shown := 0
	return pages(func(token string) (string, error) {
		req.PageToken = token
		if c.Limit > 0 {
			req.PageSize = int32(min(pageSize, c.Limit-shown))
		}
		resp, err := watchwordv1.NewAuditServiceClient(conn).ListEvents(ctx, req)
		if refusal.Reason(err) == watchwordv1.ErrorReason_ERROR_REASON_USER_NOT_FOUND {
			err = about{err, c.User}
		}
		for _, e := range resp.GetEvents() {
			if err := show(e); err != nil {
				return "", err
			}
			if shown++; shown == c.Limit {
				return "", nil
			}
		}
		return resp.GetNextPageToken(), err
	})
}

// auditLine returns an event for JSON, with the field names of the API (AuditService).
func auditLine(e *watchwordv1.Event) any {
	return struct {
		ID        string    `json:"id"`
		Time      time.Time `json:"time"`
		Type      string    `json:"type"`
		Success   bool      `json:"success"`
		Reason    string    `json:"reason,omitempty"`
		ActorID   string    `json:"actor_id,omitempty"`
		ActorName string    `json:"actor_name,omitempty"`
		UserID    string    `json:"user_id,omitempty"`
		UserName  string    `json:"user_name,omitempty"`
		SessionID string    `json:"session_id,omitempty"`
		KID       string    `json:"kid,omitempty"`
		Source    string    `json:"source,omitempty"`
		Count     int64     `json:"count"`
		Detail    string    `json:"detail,omitempty"`
	}{e.GetId(), e.GetTime().AsTime(), e.GetType(), e.GetSuccess(), e.GetReason(), e.GetActorId(), e.GetActorName(), e.GetUserId(), e.GetUserName(),
		e.GetSessionId(), e.GetKid(), e.GetSource(), e.GetCount(), e.GetDetail()}
}
