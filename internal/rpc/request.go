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

const (
	maxIDLength       = 64  // bytes; ours are 16 long
	maxAudienceLength = 256 // bytes
	maxAudiences      = 64
	defaultPageSize   = 50
	maxPageSize       = 1000
)

// callerOf returns the caller of a guarded method.
func callerOf(ctx context.Context) (caller.Caller, error) {
	p, ok := authn.FromContext(ctx)
	if !ok {
		return caller.Caller{}, errors.New("a guarded method was called without a principal")
	}
	return caller.Caller{
		Subject: caller.Subject{Kind: caller.User, ID: p.Subject()}, SessionID: p.SessionID(), Version: p.TokenVersion(), Roles: p.Roles(),
	}, nil
}

// parse reads a field by a rule, and names the field where the rule is broken.
func parse[In, Out any](field string, rule func(In) (Out, error), value In) (Out, error) {
	out, err := rule(value)
	if err != nil {
		err = invalidField{field, err}
	}
	return out, err
}

func checkID(field, id string) error {
	if id == "" {
		return invalid(field, "is required")
	}
	if len(id) > maxIDLength {
		return invalid(field, fmt.Sprintf("longer than %d bytes", maxIDLength))
	}
	return nil
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

// page is what a List request asks for (AIP-158). A page token is opaque: it
// holds the id that the page before ended with, and is bound to its filter.
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
	p := page{size: int(req.GetPageSize()), filter: pageFilter(filter)}
	switch {
	case p.size < 0:
		return page{}, invalid("page_size", "is negative")
	case p.size == 0:
		p.size = defaultPageSize
	case p.size > maxPageSize:
		p.size = maxPageSize
	}
	if req.GetPageToken() == "" {
		return p, nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(req.GetPageToken())
	after, ok := strings.CutPrefix(string(raw), p.filter)
	if err != nil || !ok || after == "" || len(after) > maxIDLength {
		return page{}, invalid("page_token", "is not one of this list")
	}
	p.after = after
	return p, nil
}

// token leads to the page behind the one that ended with last.
func (p page) token(last string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(p.filter + last))
}

func pageFilter(filter []string) string {
	sum := sha256.Sum256([]byte(strings.Join(filter, "\x00")))
	return string(sum[:6])
}
