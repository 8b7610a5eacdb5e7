package rpc

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/internal/caller"
)

// Bounds of requests.
const (
	maxIDLength       = 64  // bytes; the server's own ids have 16
	maxAudienceLength = 256 // bytes
	maxAudiences      = 64
	defaultPageSize   = 50
	maxPageSize       = 1000
)

// callerOf returns the caller of a guarded method. The verifier lets no call to a guarded
// method pass without a principal; in such a call, callerOf would return the zero Caller,
// and the zero Caller may do nothing.
func callerOf(ctx context.Context) caller.Caller {
	p, ok := authn.FromContext(ctx)
	if !ok {
		return caller.Caller{}
	}
	return caller.Caller{
		Subject: caller.Subject{Kind: caller.User, ID: p.Subject()}, SessionID: p.SessionID(), Version: p.TokenVersion(), Roles: p.Roles(),
	}
}

// invalidField reports a field of a request and the broken rule.
type invalidField struct {
	field string
	err   error
}

func (e invalidField) Error() string { return e.field + ": " + e.err.Error() }

func invalid(field, rule string) error { return invalidField{field, errors.New(rule)} }

// parse reads a field by a rule, and names the field in the error.
func parse[In, Out any](field string, rule func(In) (Out, error), value In) (Out, error) {
	out, err := rule(value)
	if err != nil {
		err = invalidField{field, err}
	}
	return out, err
}

func checkRequired(field, value string) error {
	if value == "" {
		return invalid(field, "is required")
	}
	return nil
}

func checkID(field, id string) error {
	if len(id) > maxIDLength {
		return invalid(field, fmt.Sprintf("longer than %d bytes", maxIDLength))
	}
	return checkRequired(field, id)
}

func checkAudience(audience []string) error {
	if len(audience) > maxAudiences {
		return invalid("audience", fmt.Sprintf("more than %d values", maxAudiences))
	}
	for _, a := range audience {
		if a == "" || len(a) > maxAudienceLength {
			return invalid("audience", fmt.Sprintf("a value is empty or longer than %d bytes", maxAudienceLength))
		}
	}
	return nil
}

// page holds the size and the position in a List request (AIP-158). A page token holds
// the last id of the earlier page, and is bound to the filter of the list.
type page struct {
	size   int
	after  string
	filter string
}

type pageRequest interface {
	GetPageSize() int32
	GetPageToken() string
}

func parsePage(req pageRequest, filter ...string) (page, error) {
	sum := sha256.Sum256([]byte(strings.Join(filter, "\x00")))
	p := page{size: int(req.GetPageSize()), filter: string(sum[:6])}
	switch {
	case p.size < 0:
		return page{}, invalid("page_size", "is negative")
	case p.size == 0:
		p.size = defaultPageSize
	}
	p.size = min(p.size, maxPageSize)
	if req.GetPageToken() == "" {
		return p, nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(req.GetPageToken())
	after, ok := strings.CutPrefix(string(raw), p.filter)
	if err != nil || !ok || after == "" || len(after) > maxIDLength {
		return page{}, invalid("page_token", "not a token of this list with these filters")
	}
	p.after = after
	return p, nil
}

// next returns the token for the page after the id last.
func (p page) next(last string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(p.filter + last))
}

// messages converts rows to messages.
func messages[Row, Message any](rows []Row, convert func(Row) Message) []Message {
	var list []Message
	for _, row := range rows {
		list = append(list, convert(row))
	}
	return list
}
