package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
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
	User    string        `placeholder:"NAME" help:"Only events in which a user that has or had this name acted, or was acted upon; deleted users too."`
	UserID  string        `name:"user-id" help:"The same for one user, by id."`
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
	if _, err := audit.ParseType(c.Type); c.Type != "" && err != nil {
		return fmt.Errorf("--type: %w", err)
	}
	if c.Limit < 0 || c.Since < 0 {
		return fmt.Errorf("--limit and --since must not be negative")
	}
	return nil
}

// maxNamesakes bounds the users with one name that --user looks for, and so the open
// pages of records.
const maxNamesakes = 1000

// Run prints the records, the newest first: a table for people, or one JSON object in
// each line for programs.
func (c *auditCmd) Run(ctx context.Context, t Terminal) error {
	return c.with(ctx, func(s *store.Store) error {
		filters, err := c.filters(ctx, s)
		if err != nil {
			return err
		}
		if c.JSON {
			return c.each(ctx, s, filters, func(r *store.AuditRecord) error { return json.NewEncoder(t.Out).Encode(auditLine(r)) })
		}
		return table(t.Out, "TIME\tTYPE\tOUTCOME\tACTOR\tUSER\tSESSION\tSOURCE\tCOUNT\tDETAIL", func(row addRow) error {
			return c.each(ctx, s, filters, func(r *store.AuditRecord) error {
				return row(moment(r.Time()), r.Type, cmp.Or(r.Reason, "ok"),
					nameAndID(r.ActorName, r.ActorID), nameAndID(r.UserName, r.UserID), cmp.Or(r.SessionID, "-"), cmp.Or(r.Source, "-"),
					strconv.FormatInt(r.Count, 10), cmp.Or(r.Detail, r.KID, "-"))
			})
		})
	})
}

// nameAndID returns a user for the table. Several users may have had the same name, so
// the id follows the name.
func nameAndID(name, id string) string {
	if name != "" {
		return name + "/" + id
	}
	return cmp.Or(id, "-")
}

// filters turns the flags into filters; the command shows the records of any of them.
// --user makes a filter for every user that has the name or had the name: the name of a
// deleted user may belong to another user today. Errors: user.ErrNotFound if there was
// never such a user.
func (c *auditCmd) filters(ctx context.Context, s *store.Store) (filters []store.AuditFilter, err error) {
	f := store.AuditFilter{Type: c.Type, UserID: c.UserID, SessionID: c.Session}
	if c.Since > 0 {
		f.Start = time.Now().Add(-c.Since)
	}
	if c.User == "" {
		return []store.AuditFilter{f}, nil
	}
	name, err := user.ParseName(c.User)
	if err != nil {
		return nil, usageError{fmt.Errorf("--user: %w", err)}
	}
	var ids []string
	err = s.Read(ctx, func(tx *store.Tx) (err error) {
		ids, err = tx.UserIDs(string(name), maxNamesakes+1)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case len(ids) == 0:
		return nil, fmt.Errorf("%w: %s", user.ErrNotFound, name)
	case len(ids) > maxNamesakes:
		return nil, fmt.Errorf("more than %d users have had the name %s: name one of them with --user-id", maxNamesakes, name)
	}
	for _, id := range ids {
		f.UserID = id
		filters = append(filters, f)
	}
	return filters, nil
}

// each calls show for the records of all filters, the newest first. A record of several
// filters is shown once.
func (c *auditCmd) each(ctx context.Context, s *store.Store, filters []store.AuditFilter, show func(*store.AuditRecord) error) error {
	lists := make([]*recordList, len(filters))
	for i, f := range filters {
		lists[i] = &recordList{filter: f}
	}
	for shown := 0; c.Limit == 0 || shown < c.Limit; shown++ {
		var newest *store.AuditRecord
		for _, l := range lists {
			r, err := l.first(ctx, s, c.Limit-shown)
			if err != nil {
				return err
			}
			if r != nil && (newest == nil || r.ID > newest.ID) {
				newest = r
			}
		}
		if newest == nil {
			return nil
		}
		if err := show(newest); err != nil {
			return err
		}
		for _, l := range lists {
			l.remove(newest.ID)
		}
	}
	return nil
}

// recordList reads the records of a filter a page at a time, so that a long record takes
// little memory.
type recordList struct {
	filter  store.AuditFilter
	records []*store.AuditRecord // read, and not removed yet
	read    bool                 // the last page
}

// first returns the newest record that is left, or nil at the end of the list. limit is
// the number of records still needed; zero or less: all. A page may be empty although
// more pages follow.
func (l *recordList) first(ctx context.Context, s *store.Store, limit int) (*store.AuditRecord, error) {
	size := 500
	if limit > 0 {
		size = min(size, limit)
	}
	for len(l.records) == 0 && !l.read {
		records, next, err := audit.List(ctx, s, l.filter, size)
		if err != nil {
			return nil, err
		}
		l.records, l.filter.Before, l.read = records, next, next == ""
	}
	if len(l.records) == 0 {
		return nil, nil
	}
	return l.records[0], nil
}

// remove removes the newest record if it has the id.
func (l *recordList) remove(id string) {
	if len(l.records) > 0 && l.records[0].ID == id {
		l.records = l.records[1:]
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
		ActorName string    `json:"actor_name,omitempty"`
		UserID    string    `json:"user_id,omitempty"`
		UserName  string    `json:"user_name,omitempty"`
		SessionID string    `json:"session_id,omitempty"`
		KID       string    `json:"kid,omitempty"`
		Source    string    `json:"source,omitempty"`
		Count     int64     `json:"count"`
		Detail    string    `json:"detail,omitempty"`
	}{r.ID, r.Time(), r.Type, r.Success, r.Reason, r.ActorID, r.ActorName, r.UserID, r.UserName, r.SessionID, r.KID, r.Source, r.Count, r.Detail}
}
