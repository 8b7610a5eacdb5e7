package rpc

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/internal/caller"
)

const (
	maxIDLength       = 64  // bytes; ours have 16
	maxTypeLength     = 64  // bytes; the longest type of an event has 21
	maxAudienceLength = 256 // bytes
	maxAudiences      = 64
	defaultPageSize   = 50
	maxPageSize       = 1000
)

// callerOf returns the caller of a guarded method. In a public method that is the zero
// Caller, which may do nothing.
func callerOf(ctx context.Context) caller.Caller {
	p, ok := authn.FromContext(ctx)
	if !ok {
		return caller.Caller{}
	}
	return caller.Caller{
		Subject: caller.Subject{Kind: caller.User, ID: p.Subject()}, SessionID: p.SessionID(), Version: p.TokenVersion(), Roles: p.Roles(),
	}
}

// reading collects what is wrong with a request: the error of the first field that
// breaks its rule.
type reading struct{ err error }

// field reads a field by its rule, and returns the zero value if the rule, or that of
// an earlier field, is broken.
func field[In, Out any](r *reading, name string, rule func(In) (Out, error), value In) (out Out) {
	if r.err == nil {
		if out, r.err = rule(value); r.err != nil {
			r.err = invalidField{name, r.err}
		}
	}
	return out
}

func required(value string) (string, error) {
	if value == "" {
		return "", errors.New("is required")
	}
	return value, nil
}

func requiredID(id string) (string, error) {
	if id == "" {
		return required(id)
	}
	return optionalID(id)
}

func optionalID(id string) (string, error) {
	if len(id) > maxIDLength {
		return "", fmt.Errorf("longer than %d bytes", maxIDLength)
	}
	return id, nil
}

func eventType(name string) (string, error) {
	if len(name) > maxTypeLength {
		return "", errors.New("unknown event type")
	}
	return name, nil
}

func optionalTime(t *timestamppb.Timestamp) (time.Time, error) {
	switch {
	case t == nil:
		return time.Time{}, nil
	case t.CheckValid() != nil:
		return time.Time{}, errors.New("not a valid timestamp")
	}
	return t.AsTime(), nil
}

func audience(values []string) ([]string, error) {
	if len(values) > maxAudiences {
		return nil, fmt.Errorf("more than %d values", maxAudiences)
	}
	for _, a := range values {
		if a == "" || len(a) > maxAudienceLength {
			return nil, fmt.Errorf("a value is empty or longer than %d bytes", maxAudienceLength)
		}
	}
	return values, nil
}

// page is the part of a list that a request asks for (AIP-158). A page token holds the
// id at which the page before ended, and a hash of the list's filter, so that a token
// is good for one list alone. Clients must treat page tokens as opaque.
type page struct {
	size   int
	after  string
	filter string
}

type pageRequest interface {
	GetPageSize() int32
	GetPageToken() string
}

func readPage(r *reading, req pageRequest, filter ...string) page {
	sum := sha256.Sum256([]byte(strings.Join(filter, "\x00")))
	p := page{filter: string(sum[:6])}
	p.size = field(r, "page_size", pageSize, int(req.GetPageSize()))
	p.after = field(r, "page_token", p.parseToken, req.GetPageToken())
	return p
}

func pageSize(n int) (int, error) {
	switch {
	case n < 0:
		return 0, errors.New("must not be negative")
	case n == 0:
		return defaultPageSize, nil
	}
	return min(n, maxPageSize), nil
}

func (p page) parseToken(token string) (after string, err error) {
	if token == "" {
		return "", nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(token)
	after, ok := strings.CutPrefix(string(raw), p.filter)
	if err != nil || !ok || after == "" || len(after) > maxIDLength {
		return "", errors.New("not a page token of this list")
	}
	return after, nil
}

// token returns the token of the page that begins behind an id; empty for none.
func (p page) token(after string) string {
	if after == "" {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString([]byte(p.filter + after))
}

// messages converts the rows of a list.
func messages[Row, Message any](rows []Row, convert func(Row) Message) []Message {
	list := make([]Message, len(rows))
	for i, row := range rows {
		list[i] = convert(row)
	}
	return list
}
