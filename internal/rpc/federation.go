package rpc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/federation"
	"github.com/watchword-auth/watchword/internal/store"
)

// Federation serves FederationService. The verifier lets only admins call FederationService.
type Federation struct {
	watchwordv1.UnimplementedFederationServiceServer
	Registry *federation.Registry
	Keys     *federation.Keys // nil if this process does not fetch the keys of issuers
}

// CreateIssuer serves FederationService/CreateIssuer.
func (s *Federation) CreateIssuer(ctx context.Context, req *watchwordv1.CreateIssuerRequest) (*watchwordv1.CreateIssuerResponse, error) {
	var r reading
	i := req.GetIssuer()
	row := store.Issuer{
		Name: i.GetName(), Issuer: i.GetIssuer(), Jwks: i.GetJwks(), JwksURI: i.GetJwksUri(), Discovery: i.GetDiscovery(),
		CAPEM: i.GetCaPem(), AllowPrivate: i.GetAllowPrivate(), MaxLifetime: field(&r, "issuer.max_lifetime", optionalLifetime, i.GetMaxLifetime()),
	}
	if r.err != nil {
		return nil, r.err
	}
	made, err := s.Registry.CreateIssuer(ctx, callerOf(ctx), row)
	return &watchwordv1.CreateIssuerResponse{Issuer: s.issuerMessage(made)}, within("issuer", err)
}

// GetIssuer serves FederationService/GetIssuer.
func (s *Federation) GetIssuer(ctx context.Context, req *watchwordv1.GetIssuerRequest) (*watchwordv1.GetIssuerResponse, error) {
	var r reading
	name := field(&r, "name", requiredID, req.GetName())
	if r.err != nil {
		return nil, r.err
	}
	row, err := s.Registry.Issuer(ctx, name)
	if err == nil && s.Keys != nil {
		err = s.Keys.Await(ctx, row)
	}
	return &watchwordv1.GetIssuerResponse{Issuer: s.issuerMessage(row)}, err
}

// ListIssuers serves FederationService/ListIssuers.
func (s *Federation) ListIssuers(ctx context.Context, req *watchwordv1.ListIssuersRequest) (*watchwordv1.ListIssuersResponse, error) {
	var r reading
	page := readPage(&r, req, "issuers")
	if r.err != nil {
		return nil, r.err
	}
	rows, next, err := s.Registry.Issuers(ctx, page.after, page.size)
	return &watchwordv1.ListIssuersResponse{Issuers: messages(rows, s.issuerMessage), NextPageToken: page.token(next)}, err
}

// UpdateIssuer serves FederationService/UpdateIssuer.
func (s *Federation) UpdateIssuer(ctx context.Context, req *watchwordv1.UpdateIssuerRequest) (*watchwordv1.UpdateIssuerResponse, error) {
	var r reading
	name := field(&r, "issuer.name", requiredID, req.GetIssuer().GetName())
	change := readIssuerChange(&r, req)
	if r.err != nil {
		return nil, r.err
	}
	row, err := s.Registry.UpdateIssuer(ctx, callerOf(ctx), name, change)
	return &watchwordv1.UpdateIssuerResponse{Issuer: s.issuerMessage(row)}, within("issuer", err)
}

// sources lists the fields of a request that tell from where the keys of an issuer come. An
// issuer has exactly one of the three sources.
var sources = []string{"jwks", "jwks_uri", "discovery"}

// readIssuerChange reads the fields that the update mask names (AIP-134), as [readChange] does.
// If the mask names one source of the keys and the request sets another source,
// readIssuerChange refuses the request as a mistake.
func readIssuerChange(r *reading, req *watchwordv1.UpdateIssuerRequest) (change federation.Change) {
	i := req.GetIssuer()
	change.Issuer = i.GetIssuer()
	set := map[string]bool{
		"jwks": i.GetJwks() != "", "jwks_uri": i.GetJwksUri() != "", "discovery": i.GetDiscovery(),
		"ca_pem": i.GetCaPem() != "", "max_lifetime": i.GetMaxLifetime() != nil, "allow_private": i.GetAllowPrivate(),
	}
	named := field(r, "update_mask", func(paths []string) ([]string, error) {
		named, err := maskNames(paths, set)
		for _, source := range sources {
			if err == nil && set[source] && !slices.Contains(named, source) && slices.ContainsFunc(named, isSource) {
				err = errors.New("names another source of the keys than the request has: name " + source)
			}
		}
		return named, err
	}, req.GetUpdateMask().GetPaths())
	for _, path := range named {
		switch path {
		case "ca_pem":
			change.CAPEM = &i.CaPem
		case "max_lifetime":
			lifetime := field(r, "issuer.max_lifetime", optionalLifetime, i.GetMaxLifetime())
			change.MaxLifetime = &lifetime
		case "allow_private":
			change.AllowPrivate = &i.AllowPrivate
		default:
			change.Source = &federation.KeySource{Jwks: i.GetJwks(), JwksURI: i.GetJwksUri(), Discovery: i.GetDiscovery()}
		}
	}
	return change
}

func isSource(field string) bool { return slices.Contains(sources, field) }

// DeleteIssuer serves FederationService/DeleteIssuer.
func (s *Federation) DeleteIssuer(ctx context.Context, req *watchwordv1.DeleteIssuerRequest) (*watchwordv1.DeleteIssuerResponse, error) {
	var r reading
	name := field(&r, "name", requiredID, req.GetName())
	if r.err != nil {
		return nil, r.err
	}
	return &watchwordv1.DeleteIssuerResponse{}, s.Registry.DeleteIssuer(ctx, callerOf(ctx), name)
}

// CreateBinding serves FederationService/CreateBinding.
func (s *Federation) CreateBinding(ctx context.Context, req *watchwordv1.CreateBindingRequest) (*watchwordv1.CreateBindingResponse, error) {
	var r reading
	b := req.GetBinding()
	row := store.Binding{
		Issuer: field(&r, "binding.issuer", requiredID, b.GetIssuer()), Subject: b.GetSubject(),
		UserID: field(&r, "binding.user_id", requiredID, b.GetUserId()),
	}
	field(&r, "binding.id", unset, b.GetId())
	for _, c := range b.GetClaims() {
		row.Claims = append(row.Claims, store.BoundClaim{Path: c.GetPath(), Value: claimValue(c)})
	}
	if r.err != nil {
		return nil, r.err
	}
	made, err := s.Registry.CreateBinding(ctx, callerOf(ctx), row)
	return &watchwordv1.CreateBindingResponse{Binding: bindingMessage(made)}, within("binding", err)
}

// claimValue returns the value of a bound claim, and nil if the request has no value.
func claimValue(c *watchwordv1.BoundClaim) any {
	switch value := c.GetValue().(type) {
	case *watchwordv1.BoundClaim_StringValue:
		return value.StringValue
	case *watchwordv1.BoundClaim_NumberValue:
		return value.NumberValue
	case *watchwordv1.BoundClaim_BoolValue:
		return value.BoolValue
	}
	return nil
}

// ListBindings serves FederationService/ListBindings.
func (s *Federation) ListBindings(ctx context.Context, req *watchwordv1.ListBindingsRequest) (*watchwordv1.ListBindingsResponse, error) {
	var r reading
	filter := store.BindingFilter{Issuer: field(&r, "issuer", optionalID, req.GetIssuer()), UserID: field(&r, "user_id", optionalID, req.GetUserId())}
	page := readPage(&r, req, "bindings", filter.Issuer, filter.UserID)
	if r.err != nil {
		return nil, r.err
	}
	rows, next, err := s.Registry.Bindings(ctx, filter, page.after, page.size)
	return &watchwordv1.ListBindingsResponse{Bindings: messages(rows, bindingMessage), NextPageToken: page.token(next)}, err
}

// DeleteBinding serves FederationService/DeleteBinding.
func (s *Federation) DeleteBinding(ctx context.Context, req *watchwordv1.DeleteBindingRequest) (*watchwordv1.DeleteBindingResponse, error) {
	var r reading
	id := field(&r, "id", requiredID, req.GetId())
	if r.err != nil {
		return nil, r.err
	}
	return &watchwordv1.DeleteBindingResponse{}, s.Registry.DeleteBinding(ctx, callerOf(ctx), id)
}

// within puts the name of a message of the request before the name of the field in an error, so
// that the error names issuer.jwks_uri, for example.
func within(message string, err error) error {
	var invalid federation.Invalid
	if errors.As(err, &invalid) {
		return invalidField{message + "." + invalid.Field, invalid.Err}
	}
	return err
}

// unset refuses a text that a request must leave empty, since only answers have the text.
func unset(text string) (string, error) {
	if text != "" {
		return "", errors.New("must not be set: the server chooses the value")
	}
	return "", nil
}

// optionalLifetime checks a lifetime that a request can leave out. A lifetime that was left out
// becomes zero.
func optionalLifetime(d *durationpb.Duration) (time.Duration, error) {
	switch {
	case d == nil:
		return 0, nil
	case d.CheckValid() != nil || d.AsDuration() <= 0:
		return 0, errors.New("must be above zero, or not set")
	}
	return d.AsDuration(), nil
}

// maskNames checks the paths of an update mask (AIP-134), and returns the names of the fields
// to change. The keys of set are the fields that can be changed; a value is true if the request
// sets the field.
func maskNames(paths []string, set map[string]bool) (named []string, err error) {
	var all []string
	for name, isSet := range set {
		if all = append(all, name); isSet {
			named = append(named, name)
		}
	}
	slices.Sort(all)
	switch {
	case len(paths) == 0 && len(named) == 0:
		return nil, errors.New("names no field to change: to set a field to its zero value, name the field")
	case len(paths) == 0:
		return named, nil
	case slices.Equal(paths, []string{"*"}):
		return all, nil
	case slices.Contains(paths, "*"):
		return nil, errors.New("must not name fields beside *")
	}
	for _, path := range paths {
		if !slices.Contains(all, path) {
			return nil, fmt.Errorf("names an unknown field: %s can be changed", strings.Join(all, ", "))
		}
	}
	return paths, nil
}

// issuerMessage converts an issuer to a message. For nil, issuerMessage returns nil, since
// handlers call issuerMessage before they look at the error.
func (s *Federation) issuerMessage(row *store.Issuer) *watchwordv1.Issuer {
	if row == nil {
		return nil
	}
	m := &watchwordv1.Issuer{
		Name: row.Name, Issuer: row.Issuer, CaPem: row.CAPEM, MaxLifetime: durationpb.New(row.MaxLifetime), AllowPrivate: row.AllowPrivate,
		CreatedAt: timestamppb.New(row.CreatedAt), UpdatedAt: timestamppb.New(row.UpdatedAt),
	}
	switch {
	case row.Jwks != "":
		m.Keys = &watchwordv1.Issuer_Jwks{Jwks: row.Jwks}
	case row.JwksURI != "":
		m.Keys = &watchwordv1.Issuer_JwksUri{JwksUri: row.JwksURI}
	case row.Discovery:
		m.Keys = &watchwordv1.Issuer_Discovery{Discovery: true}
	}
	if s.Keys != nil {
		m.Fetched = fetchedMessage(s.Keys.Fetched(row))
	}
	return m
}

func fetchedMessage(f federation.Fetched) *watchwordv1.IssuerKeys {
	m := &watchwordv1.IssuerKeys{Kids: f.KIDs}
	if !f.At.IsZero() {
		m.FetchedAt = timestamppb.New(f.At)
	}
	if f.Err != nil {
		m.Error = strings.ToValidUTF8(f.Err.Error(), "?") // the text can quote an answer of the issuer, which may not be UTF-8
	}
	return m
}

// bindingMessage converts a binding to a message. For nil, bindingMessage returns nil, since
// handlers call bindingMessage before they look at the error.
func bindingMessage(row *store.Binding) *watchwordv1.Binding {
	if row == nil {
		return nil
	}
	m := &watchwordv1.Binding{Id: row.ID, Issuer: row.Issuer, Subject: row.Subject, UserId: row.UserID, CreatedAt: timestamppb.New(row.CreatedAt)}
	for _, c := range row.Claims {
		bound := &watchwordv1.BoundClaim{Path: c.Path}
		switch value := c.Value.(type) {
		case string:
			bound.Value = &watchwordv1.BoundClaim_StringValue{StringValue: value}
		case float64:
			bound.Value = &watchwordv1.BoundClaim_NumberValue{NumberValue: value}
		case bool:
			bound.Value = &watchwordv1.BoundClaim_BoolValue{BoolValue: value}
		}
		m.Claims = append(m.Claims, bound)
	}
	return m
}
