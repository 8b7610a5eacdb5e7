package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// auditCmd shows the security record, from the database itself: also if no server runs,
// and if no admin can log in.
type auditCmd struct {
	datastore
	Type    string        `help:"Only events of this type, such as login or key.rotated."`
	User    string        `placeholder:"NAME" help:"Only events in which this user acted, or was acted upon."`
	UserID  string        `name:"user-id" help:"The same by the user's id, for a deleted user too."`
	Session string        `placeholder:"ID" help:"Only events of this session."`
	Since   time.Duration `help:"Only events of the last DURATION, such as 24h."`
	Limit   int           `default:"100" help:"The largest number of events; 0: all."`
	JSON    bool          `name:"json" help:"Print one JSON object in each line."`
}

// Validate returns an error for flags that contradict each other. kong calls Validate,
// and the exit status is 2.
func (c *auditCmd) Validate() error {
	if c.User != "" && c.UserID != "" {
		return fmt.Errorf("--user and --user-id exclude each other")
	}
	if c.Limit < 0 || c.Since < 0 {
		return fmt.Errorf("--limit and --since must not be negative")
	}
	return nil
}

// Run prints the records, the newest first: a table for people, or one JSON object in
// each line for programs.
func (c *auditCmd) Run(ctx context.Context, t Terminal) error {
	return c.with(ctx, func(s *store.Store) error {
		filter, err := c.filter(ctx, s)
		if err != nil {
			return err
		}
		if c.JSON {
			out := json.NewEncoder(t.Out)
			return c.each(ctx, s, filter, func(r *store.AuditRecord) error { return out.Encode(auditLine(r)) }, func() error { return nil })
		}
		return table(t.Out, "TIME\tTYPE\tOUTCOME\tACTOR\tUSER\tSESSION\tSOURCE\tCOUNT\tDETAIL", func(w *tabwriter.Writer) error {
			return c.each(ctx, s, filter, func(r *store.AuditRecord) error {
				_, err := fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", moment(r.Time()), r.Type, cmp.Or(r.Reason, "ok"),
					cmp.Or(r.ActorID, "-"), cmp.Or(r.UserID, "-"), cmp.Or(r.SessionID, "-"), cmp.Or(r.Source, "-"), r.Count,
					cmp.Or(r.Detail, r.KID, "-"))
				return err
			}, w.Flush)
		})
	})
}

// filter turns the flags into a filter. --user finds only users that still exist: the
// name of a deleted user may belong to another user today.
func (c *auditCmd) filter(ctx context.Context, s *store.Store) (store.AuditFilter, error) {
	f := store.AuditFilter{Type: c.Type, UserID: c.UserID, SessionID: c.Session}
	if c.Since > 0 {
		f.Start = time.Now().Add(-c.Since)
	}
	if c.User == "" {
		return f, nil
	}
	name, err := user.ParseName(c.User)
	if err != nil {
		return f, usageError{fmt.Errorf("--user: %w", err)}
	}
	return f, s.Read(ctx, func(tx *store.Tx) error {
		row, err := user.FindByName(tx, name)
		if err != nil {
			return fmt.Errorf("%w: %s", err, name)
		}
		f.UserID = row.ID
		return nil
	})
}

// each calls show for the records, the newest first, and flush after each page. each
// reads a page at a time, so that a long record takes little memory. A page may be empty
// although more pages follow.
func (c *auditCmd) each(ctx context.Context, s *store.Store, f store.AuditFilter, show func(*store.AuditRecord) error, flush func() error) error {
	const page = 500
	for left := c.Limit; ; {
		size := page
		if c.Limit > 0 {
			size = min(page, left)
		}
		records, next, err := audit.List(ctx, s, f, size)
		if err != nil {
			return err
		}
		for _, r := range records {
			if err := show(r); err != nil {
				return err
			}
		}
		if err := flush(); err != nil {
			return err
		}
		left -= len(records)
		if next == "" || c.Limit > 0 && left == 0 {
			return nil
		}
		f.Before = next
	}
}

// auditLine returns a record for JSON, with the field names of the API (AuditService).
func auditLine(r *store.AuditRecord) any {
	return struct {
		ID        string    `json:"id"`
		Time      time.Time `json:"time"`
		Type      string    `json:"type"`
		Success   bool      `json:"success"`
		Reason    string    `json:"reason,omitempty"`
		ActorID   string    `json:"actor_id,omitempty"`
		UserID    string    `json:"user_id,omitempty"`
		SessionID string    `json:"session_id,omitempty"`
		KID       string    `json:"kid,omitempty"`
		Source    string    `json:"source,omitempty"`
		Count     int64     `json:"count"`
		Detail    string    `json:"detail,omitempty"`
	}{r.ID, r.Time(), r.Type, r.Success, r.Reason, r.ActorID, r.UserID, r.SessionID, r.KID, r.Source, r.Count, r.Detail}
}
