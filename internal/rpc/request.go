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
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/store"
)

const (
	maxIDLength       = 64  // bytes; ids of users, sessions and keys have 16 bytes, ids of records 28 bytes
	maxAudienceLength = 256 // the longest audience, in bytes
	maxAudiences      = 64
	defaultPageSize   = 50
	maxPageSize       = 1000
)

// operatorKey is the key under which the context of a call holds the operator.
type operatorKey struct{}

// AsOperator returns the context of a call that the operator at the command line makes, on the
// database itself. user is the operator's name in the operating system. A call from a network
// must never get the context of AsOperator, since the operator has every right.
func AsOperator(ctx context.Context, user string) context.Context {
	by := caller.AtCommandLine
	by.Name = user
	return context.WithValue(caller.WithSource(ctx, caller.CommandLine), operatorKey{}, by)
}

// callerOf returns the caller of a guarded method: the operator ([AsOperator]), or the user or
// service account in the verified access token. In a public method, which needs no access
// token, callerOf returns the zero Caller, which has no rights.
func callerOf(ctx context.Context) caller.Caller {
	if by, ok := ctx.Value(operatorKey{}).(caller.Caller); ok {
		return by
	}
	p, ok := authn.FromContext(ctx)
	if !ok {
		return caller.Caller{}
	}
	kind := caller.User
	if p.SessionID() == "" {
		kind = caller.Service
	}
	return caller.Caller{
		Subject: caller.Subject{Kind: kind, ID: p.Subject()}, Name: p.Username(), SessionID: p.SessionID(), Version: p.TokenVersion(),
		Roles: p.Roles(), Audience: p.Audience(),
	}
}

// reading holds the error of the first field of a request that breaks its rule. A handler reads
// all fields with one reading and then checks err once.
type reading struct{ err error }

// field reads a field of a request by a rule, a function that checks and converts the value. If
// the field breaks the rule, or an earlier field of the same reading has broken its rule, field
// returns the zero value.
func field[In, Out any](r *reading, name string, rule func(In) (Out, error), value In) (out Out) {
	if r.err == nil {
		if out, r.err = rule(value); r.err != nil {
			r.err = invalidField{name, r.err}
		}
	}
	return out
}

// required refuses an empty text in a field that the client must set.
func required(value string) (string, error) {
	if value == "" {
		return "", errors.New("is required")
	}
	return value, nil
}

// errNotText is the error for a text of a request that no query can hold. Package rpc checks
// every text of a request that can reach a query of the database.
var errNotText = errors.New("holds a zero byte or is not UTF-8")

// requiredID checks an id that a request must have. requiredID does not check the characters of
// the id: an unknown id and a malformed id are both NOT_FOUND.
func requiredID(id string) (string, error) {
	if id == "" {
		return required(id)
	}
	return optionalID(id)
}

// optionalID checks an id that a request can leave empty. maxIDLength keeps long texts out of
// queries and page tokens.
func optionalID(id string) (string, error) {
	switch {
	case len(id) > maxIDLength:
		return "", fmt.Errorf("longer than %d bytes", maxIDLength)
	case !store.IsText(id):
		return "", errNotText
	}
	return id, nil
}

// eventType checks the type of an event in a filter. A request can leave the type empty.
func eventType(name string) (string, error) {
	if name == "" {
		return "", nil
	}
	known, err := audit.ParseType(name)
	return string(known), err
}

// optionalTime checks a time that a request can leave out. A time that was left out becomes the
// zero time.
func optionalTime(t *timestamppb.Timestamp) (time.Time, error) {
	switch {
	case t == nil:
		return time.Time{}, nil
	case t.CheckValid() != nil:
		return time.Time{}, errors.New("not a valid timestamp")
	}
	return t.AsTime(), nil
}

// audience checks the form of the services that a request names. Package session decides
// whether the server issues tokens for the services.
func audience(values []string) ([]string, error) {
	if len(values) > maxAudiences {
		return nil, fmt.Errorf("more than %d values", maxAudiences)
	}
	for _, a := range values {
		if a == "" || len(a) > maxAudienceLength {
			return nil, fmt.Errorf("a value is empty or longer than %d bytes", maxAudienceLength)
		}
		if !store.IsText(a) {
			return nil, errNotText
		}
	}
	return values, nil
}

// page is the part of a list that a request asks for (AIP-158). A page token holds the id with
// which the earlier page ended, and a hash of the list's name and filter: a token of one list
// is refused for another list. A page token is not secret and not signed, since the token gives
// no rights. Clients must treat a page token as opaque.
type page struct {
	size   int
	after  string
	filter string
}

type pageRequest interface {
	GetPageSize() int32
	GetPageToken() string
}

// readPage reads page_size and page_token of a request. filter holds the list's name, and every
// field of the request that selects rows.
func readPage(r *reading, req pageRequest, filter ...string) page {
	p := page{filter: filterHash(filter...)}
	p.size = field(r, "page_size", pageSize, int(req.GetPageSize()))
	p.after = field(r, "page_token", p.parseToken, req.GetPageToken())
	return p
}

// filterHash returns six bytes that differ from filter to filter.
func filterHash(filter ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(filter, "\x00")))
	return string(sum[:6])
}

// pageSize checks page_size: 0 means the default, and pageSize cuts a larger value than
// maxPageSize to maxPageSize (AIP-158).
func pageSize(n int) (int, error) {
	switch {
	case n < 0:
		return 0, errors.New("must not be negative")
	case n == 0:
		return defaultPageSize, nil
	}
	return min(n, maxPageSize), nil
}

// parseToken checks page_token, the token of a page. parseToken returns the id after which the
// page begins; empty for the first page.
func (p page) parseToken(token string) (after string, err error) {
	if token == "" {
		return "", nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(token)
	after, ok := strings.CutPrefix(string(raw), p.filter)
	if err != nil || !ok || after == "" || len(after) > maxIDLength || !store.IsText(after) {
		return "", errors.New("not a page token of this list")
	}
	return after, nil
}

// token returns the page token for the page that begins after an id. For "", the end of
// the list, token returns "".
func (p page) token(after string) string {
	if after == "" {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString([]byte(p.filter + after))
}

// messages converts the rows of a list to messages of the API, each row by convert.
func messages[Row, Message any](rows []Row, convert func(Row) Message) []Message {
	list := make([]Message, len(rows))
	for i, row := range rows {
		list[i] = convert(row)
	}
	return list
}
