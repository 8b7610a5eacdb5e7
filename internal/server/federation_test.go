package server_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/user"
)

// discovered returns an issuer with keys that are discovered.
func discovered(name string) *watchwordv1.Issuer {
	return &watchwordv1.Issuer{Name: name, Issuer: "https://" + name + ".example", Keys: &watchwordv1.Issuer_Discovery{Discovery: true}}
}

// federated holds what a test has made of issuers and bindings.
type federated struct {
	service           string   // the id of a service account
	bindings          []string // ids of bindings
	issuers, bindPage string   // page tokens, of ListIssuers and of ListBindings
}

// federate makes the issuers `one` and `two`, a service account, and two bindings.
func (h *harness) federate(t *testing.T) *federated {
	t.Helper()
	f := &federated{service: user.NewID()}
	h.behind(t, func(tx *feed.Tx) error {
		now := tx.Now()
		return tx.InsertUser(&store.User{ID: f.service, Username: f.service, Kind: store.KindService, Version: now.Unix(), CreatedAt: now, UpdatedAt: now})
	})
	ctx := h.admin.as(t.Context())
	for _, name := range []string{"one", "two"} {
		_, err := h.federation.CreateIssuer(ctx, &watchwordv1.CreateIssuerRequest{Issuer: discovered(name)})
		if err != nil {
			t.Fatal(err)
		}
		f.bind(t, h, &watchwordv1.Binding{Issuer: name, Subject: "bound"})
	}
	issuers, err := h.federation.ListIssuers(ctx, &watchwordv1.ListIssuersRequest{PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	bindings, err := h.federation.ListBindings(ctx, &watchwordv1.ListBindingsRequest{PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	if f.issuers, f.bindPage = issuers.GetNextPageToken(), bindings.GetNextPageToken(); f.issuers == "" || f.bindPage == "" {
		t.Fatal("no next page")
	}
	return f
}

func (f *federated) bind(t *testing.T, h *harness, b *watchwordv1.Binding) *watchwordv1.Binding {
	t.Helper()
	b.UserId = f.service
	made, err := h.federation.CreateBinding(h.admin.as(t.Context()), &watchwordv1.CreateBindingRequest{Binding: b})
	if err != nil {
		t.Fatal(err)
	}
	f.bindings = append(f.bindings, made.GetBinding().GetId())
	return made.GetBinding()
}

// wrongForFederation has one row for each way in which a field reaches its rule; package
// federation tests each rule.
func wrongForFederation(w *population) map[string][]wrong {
	type issuer = watchwordv1.Issuer
	type binding = watchwordv1.Binding
	f := w.federated
	create := func(edit func(*issuer)) proto.Message {
		i := discovered("new")
		edit(i)
		return &watchwordv1.CreateIssuerRequest{Issuer: i}
	}
	update := func(edit func(*issuer), paths ...string) proto.Message {
		i := discovered("one")
		edit(i)
		return &watchwordv1.UpdateIssuerRequest{Issuer: i, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}}
	}
	bind := func(edit func(*binding)) proto.Message {
		b := &binding{Issuer: "one", Subject: "new", UserId: f.service}
		edit(b)
		return &watchwordv1.CreateBindingRequest{Binding: b}
	}
	claim := func(path ...string) *watchwordv1.BoundClaim {
		return &watchwordv1.BoundClaim{Path: path, Value: &watchwordv1.BoundClaim_StringValue{StringValue: "v"}}
	}
	jwks := func(text string) func(*issuer) {
		return func(i *issuer) { i.Keys = &watchwordv1.Issuer_Jwks{Jwks: text} }
	}
	same := func(*issuer) {}
	get := func(v string) proto.Message { return &watchwordv1.GetIssuerRequest{Name: v} }
	remove := func(v string) proto.Message { return &watchwordv1.DeleteIssuerRequest{Name: v} }
	unbind := func(v string) proto.Message { return &watchwordv1.DeleteBindingRequest{Id: v} }
	return map[string][]wrong{
		"FederationService/CreateIssuer": {
			{name: "nothing", req: &watchwordv1.CreateIssuerRequest{}, want: invalid, field: "issuer.name"},
			{name: "name in capitals", req: create(func(i *issuer) { i.Name = "New" }), want: invalid, field: "issuer.name"},
			{name: "no iss", req: create(func(i *issuer) { i.Issuer = "" }), want: invalid, field: "issuer.issuer"},
			{name: "our own iss", req: create(func(i *issuer) { i.Issuer = w.own }), want: invalid, field: "issuer.issuer"},
			{name: "discovery over http", req: create(func(i *issuer) { i.Issuer = "http://new.example" }), want: invalid, field: "issuer.issuer"},
			{name: "no source", req: create(func(i *issuer) { i.Keys = nil }), want: invalid, field: "issuer.jwks"},
			{name: "discovery false", req: create(func(i *issuer) { i.Keys = &watchwordv1.Issuer_Discovery{} }), want: invalid, field: "issuer.jwks"},
			{name: "no document", req: create(jwks("{}")), want: invalid, field: "issuer.jwks"},
			{name: "a private key", req: create(jwks(`{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"k"}]}`)), want: invalid, field: "issuer.jwks"},
			{name: "plain URL", req: create(func(i *issuer) { i.Keys = &watchwordv1.Issuer_JwksUri{JwksUri: "http://localhost"} }), want: invalid, field: "issuer.jwks_uri"},
			{name: "no certificate", req: create(func(i *issuer) { i.CaPem = "x" }), want: invalid, field: "issuer.ca_pem"},
			{name: "no lifetime", req: create(func(i *issuer) { i.MaxLifetime = &durationpb.Duration{} }), want: invalid, field: "issuer.max_lifetime"},
			{name: "no duration", req: create(func(i *issuer) { i.MaxLifetime = &durationpb.Duration{Seconds: 1, Nanos: -1} }), want: invalid, field: "issuer.max_lifetime"},
			{name: "a part of a second", req: create(func(i *issuer) { i.MaxLifetime = durationpb.New(1500 * time.Millisecond) }), want: invalid, field: "issuer.max_lifetime"},
			{name: "taken name", req: create(func(i *issuer) { i.Name = "one" }), want: "ISSUER_EXISTS"},
			{name: "taken iss", req: create(func(i *issuer) { i.Issuer = "https://one.example" }), want: "ISSUER_EXISTS"},
		},
		"FederationService/GetIssuer": concat(rows(badIDs, invalid, "name", get), rows(unknownIDs, "ISSUER_NOT_FOUND", "", get)),
		"FederationService/ListIssuers": concat(
			rows(badPages(map[string]string{"a page token of ListBindings": f.bindPage, "a page token of ListUsers": w.users}), invalid, "page_token",
				func(v string) proto.Message { return &watchwordv1.ListIssuersRequest{PageToken: v} }),
			[]wrong{{name: "negative size", req: &watchwordv1.ListIssuersRequest{PageSize: -1}, want: invalid, field: "page_size"}}),
		"FederationService/UpdateIssuer": concat(
			rows(badIDs, invalid, "issuer.name", func(v string) proto.Message { return update(func(i *issuer) { i.Name = v }) }),
			rows(unknownIDs, "ISSUER_NOT_FOUND", "", func(v string) proto.Message { return update(func(i *issuer) { i.Name = v }) }),
			rows(map[string]string{"unknown path": "nonsense", "path of name": "name", "path of iss": "issuer", "path with the message": "issuer.ca_pem",
				"empty path": "", "created_at": "created_at", "fetched": "fetched", "the oneof": "keys", "star": "*"},
				invalid, "update_mask", func(v string) proto.Message { return update(same, "ca_pem", v) }),
			[]wrong{
				{name: "nothing", req: &watchwordv1.UpdateIssuerRequest{}, want: invalid, field: "issuer.name"},
				{name: "no field", req: &watchwordv1.UpdateIssuerRequest{Issuer: &issuer{Name: "one"}}, want: invalid, field: "update_mask"},
				{name: "another source than the mask", req: update(jwks("{}"), "jwks_uri"), want: invalid, field: "update_mask"},
				{name: "no source", req: update(func(i *issuer) { i.Keys = nil }, "discovery"), want: invalid, field: "issuer.jwks"},
				{name: "another iss", req: update(func(i *issuer) { i.Issuer += "/" }), want: invalid, field: "issuer.issuer"},
				{name: "no document", req: update(jwks("{}")), want: invalid, field: "issuer.jwks"},
				{name: "a CA for a document", req: update(func(i *issuer) { jwks(w.document)(i); i.CaPem = w.ca }, "*"), want: invalid, field: "issuer.ca_pem"},
				{name: "no lifetime", req: update(func(i *issuer) { i.MaxLifetime = &durationpb.Duration{} }), want: invalid, field: "issuer.max_lifetime"},
			}),
		"FederationService/DeleteIssuer": concat(rows(badIDs, invalid, "name", remove), rows(unknownIDs, "ISSUER_NOT_FOUND", "", remove)),
		"FederationService/CreateBinding": concat(
			rows(badIDs, invalid, "binding.user_id", func(v string) proto.Message { return bind(func(b *binding) { b.UserId = v }) }),
			rows(unknownIDs, "USER_NOT_FOUND", "", func(v string) proto.Message { return bind(func(b *binding) { b.UserId = v }) }),
			rows(badIDs, invalid, "binding.issuer", func(v string) proto.Message { return bind(func(b *binding) { b.Issuer = v }) }),
			rows(unknownIDs, "ISSUER_NOT_FOUND", "", func(v string) proto.Message { return bind(func(b *binding) { b.Issuer = v }) }),
			[]wrong{
				{name: "nothing", req: &watchwordv1.CreateBindingRequest{}, want: invalid, field: "binding.issuer"},
				{name: "an id", req: bind(func(b *binding) { b.Id = "AAAAAAAAAAAAAAAA" }), want: invalid, field: "binding.id"},
				{name: "no subject", req: bind(func(b *binding) { b.Subject = "" }), want: invalid, field: "binding.subject"},
				{name: "an ordinary user", req: bind(func(b *binding) { b.UserId = w.alice.id }), want: invalid, field: "binding.user_id"},
				{name: "exists", req: bind(func(b *binding) { b.Subject = "bound" }), want: invalid, field: "binding.subject"},
				{name: "a claim without a value", req: bind(func(b *binding) { b.Claims = []*watchwordv1.BoundClaim{{Path: []string{"a"}}} }), want: invalid, field: "binding.claims"},
				{name: "a claim without a path", req: bind(func(b *binding) { b.Claims = []*watchwordv1.BoundClaim{claim()} }), want: invalid, field: "binding.claims"},
				{name: "too many claims", req: bind(func(b *binding) {
					for i := range 17 {
						b.Claims = append(b.Claims, claim(fmt.Sprint("c", i)))
					}
				}), want: invalid, field: "binding.claims"},
			}),
		"FederationService/ListBindings": concat(
			rows(badPages(map[string]string{"a page token of ListIssuers": f.issuers}), invalid, "page_token",
				func(v string) proto.Message { return &watchwordv1.ListBindingsRequest{PageToken: v} }),
			[]wrong{
				{name: "negative size", req: &watchwordv1.ListBindingsRequest{PageSize: -1}, want: invalid, field: "page_size"},
				{name: "a page token of all", req: &watchwordv1.ListBindingsRequest{Issuer: "one", PageToken: f.bindPage}, want: invalid, field: "page_token"},
				{name: "too long an issuer", req: &watchwordv1.ListBindingsRequest{Issuer: long(65)}, want: invalid, field: "issuer"},
				{name: "too long a user", req: &watchwordv1.ListBindingsRequest{UserId: long(65)}, want: invalid, field: "user_id"},
			}),
		"FederationService/DeleteBinding": concat(rows(badIDs, invalid, "id", unbind), rows(unknownIDs, "BINDING_NOT_FOUND", "", unbind)),
	}
}

// GetIssuer and ListBindings return an issuer and a binding as they were made, a mask changes
// what the mask names, and verifiers refuse what a bound account holds from the moment that
// trust is taken away.
func TestFederation(t *testing.T) {
	h := start(t)
	f := h.federate(t)
	ctx := h.admin.as(t.Context())
	ca, document := newCA(t), keySet(t)
	get := func(name string) *watchwordv1.Issuer {
		t.Helper()
		got, err := h.federation.GetIssuer(ctx, &watchwordv1.GetIssuerRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return got.GetIssuer()
	}
	equal := func(got, want *watchwordv1.Issuer) bool { // but for what the server has fetched between the two answers
		got, want = proto.CloneOf(got), proto.CloneOf(want)
		got.Fetched, want.Fetched = nil, nil
		return proto.Equal(got, want)
	}
	update := func(i *watchwordv1.Issuer, paths ...string) *watchwordv1.Issuer {
		t.Helper()
		got, err := h.federation.UpdateIssuer(ctx, &watchwordv1.UpdateIssuerRequest{Issuer: i, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}})
		if err != nil {
			t.Fatal(err)
		}
		if !equal(got.GetIssuer(), get(i.GetName())) {
			t.Errorf("the answer is %v, and the issuer is %v", got.GetIssuer(), get(i.GetName()))
		}
		return got.GetIssuer()
	}
	same := func(what string, got, want *watchwordv1.Issuer) {
		t.Helper()
		got, want = proto.CloneOf(got), proto.CloneOf(want)
		for _, i := range []*watchwordv1.Issuer{got, want} {
			i.CreatedAt, i.UpdatedAt, i.Fetched = nil, nil, nil
		}
		if !proto.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	holds := h.held(t, f.service)
	made, err := h.federation.CreateIssuer(ctx, &watchwordv1.CreateIssuerRequest{Issuer: &watchwordv1.Issuer{
		Name: "full", Issuer: "https://full.example", Keys: &watchwordv1.Issuer_JwksUri{JwksUri: "https://keys.example"}, CaPem: ca,
		MaxLifetime: durationpb.New(time.Hour), AllowPrivate: true,
	}})
	if err != nil {
		t.Fatal(err)
	}
	if full := made.GetIssuer(); !equal(full, get("full")) || full.GetCaPem() != ca || full.GetJwksUri() != "https://keys.example" || !full.GetAllowPrivate() {
		t.Errorf("%v was made, and %v is there", full, get("full"))
	}
	full := proto.CloneOf(made.GetIssuer())
	f.bind(t, h, &watchwordv1.Binding{Issuer: "full", Subject: "s"})

	full.AllowPrivate = false
	same("a mask of one field", update(&watchwordv1.Issuer{Name: "full"}, "allow_private"), full)
	full.MaxLifetime = durationpb.New(24 * time.Hour)
	same("the default", update(&watchwordv1.Issuer{Name: "full"}, "max_lifetime"), full)
	full.AllowPrivate = true
	same("a populated field", update(&watchwordv1.Issuer{Name: "full", AllowPrivate: true}), full)
	same("the issuer as it was read", update(get("full"), "*"), full)
	wants(t, "after changes that take no trust away", h.verify(t, holds), "ok")
	full.Keys, full.CaPem, full.AllowPrivate = &watchwordv1.Issuer_Jwks{Jwks: document}, "", false
	same("another source", update(&watchwordv1.Issuer{Name: "full", Keys: full.Keys}, "jwks", "ca_pem", "allow_private"), full)
	wants(t, "after a change of the keys", h.verify(t, holds), "TOKEN_REVOKED")

	holds = h.held(t, f.service)
	claims := []*watchwordv1.BoundClaim{
		{Path: []string{"a", "b"}, Value: &watchwordv1.BoundClaim_NumberValue{NumberValue: 1.5}},
		{Path: []string{"c"}, Value: &watchwordv1.BoundClaim_BoolValue{BoolValue: true}},
		{Path: []string{"d"}, Value: &watchwordv1.BoundClaim_StringValue{StringValue: "x"}},
	}
	bound := f.bind(t, h, &watchwordv1.Binding{Issuer: "two", Subject: "t", Claims: claims})
	list, err := h.federation.ListBindings(ctx, &watchwordv1.ListBindingsRequest{Issuer: "two", UserId: f.service})
	if err != nil || len(list.GetBindings()) != 2 || !slices.ContainsFunc(list.GetBindings(), func(b *watchwordv1.Binding) bool { return proto.Equal(b, bound) }) {
		t.Errorf("%v, %v; want %v", list, err, bound)
	}
	wants(t, "after a new binding", h.verify(t, holds), "ok")
	if _, err := h.federation.DeleteBinding(ctx, &watchwordv1.DeleteBindingRequest{Id: bound.GetId()}); err != nil {
		t.Error(err)
	}
	wants(t, "after the removal of a binding", h.verify(t, holds), "TOKEN_REVOKED")

	holds = h.held(t, f.service)
	if _, err := h.federation.DeleteIssuer(ctx, &watchwordv1.DeleteIssuerRequest{Name: "one"}); err != nil {
		t.Error(err)
	}
	wants(t, "after the removal of an issuer", h.verify(t, holds), "TOKEN_REVOKED")
	_, err = h.federation.DeleteIssuer(ctx, &watchwordv1.DeleteIssuerRequest{Name: "one"})
	refusedBy(t, err, "ISSUER_NOT_FOUND", "")

	sizes, names := pages(t, func(token string) (names []string, next string, err error) {
		page, err := h.federation.ListIssuers(ctx, &watchwordv1.ListIssuersRequest{PageSize: 1, PageToken: token})
		for _, i := range page.GetIssuers() {
			names = append(names, i.GetName())
		}
		return names, page.GetNextPageToken(), err
	})
	if !slices.Equal(names, []string{"full", "two"}) || !slices.Equal(sizes, []int{1, 1}) {
		t.Errorf("pages of %v: %v", sizes, names)
	}
}

// held returns an access token of an account, as the account's row stands.
func (h *harness) held(t *testing.T, id string) string {
	t.Helper()
	c := h.claims(t, h.admin)
	c.Subject, c.Username, c.Roles, c.Version, c.SessionID = id, id, nil, h.version(t, id), "AAAAAAAAAAAAAAAA"
	return sign(t, h.signer(t), c)
}

// keySet returns a JSON Web Key Set with a new public key.
func keySet(t *testing.T) string {
	t.Helper()
	key, err := token.GenerateKey(token.EdDSA)
	if err != nil {
		t.Fatal(err)
	}
	jwk := key.Public().JWK()
	return fmt.Sprintf(`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":%q,"x":%q}]}`, jwk.GetKid(), jwk.GetX())
}

// newCA returns a new certificate in PEM.
func newCA(t *testing.T) string {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// An admin sees the keys that the server has of an issuer, or why the server has none, from the
// first look on after the issuer was added or changed.
func TestKeysOfANewIssuerAreShown(t *testing.T) {
	h := start(t)
	ctx := h.admin.as(t.Context())
	one, two := newForeign(t, "web", "https://web.test", "ES256"), newForeign(t, "web", "https://web.test", "RS256")
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, two.jwks(t)) }))
	web.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	web.StartTLS()
	defer web.Close()
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}))
	shows := func(what string, fetched bool, failed string, kids ...string) {
		t.Helper()
		resp, err := h.federation.GetIssuer(ctx, &watchwordv1.GetIssuerRequest{Name: "web"})
		got := resp.GetIssuer().GetFetched()
		if err != nil || !slices.Equal(got.GetKids(), kids) || (got.GetFetchedAt() != nil) != fetched || (failed == "") != (got.GetError() == "") ||
			!strings.Contains(got.GetError(), failed) {
			t.Errorf("%s: %v, %v; want the keys %q, fetched: %t, and the error %q", what, got, err, kids, fetched, failed)
		}
	}
	update := func(i *watchwordv1.Issuer, paths ...string) {
		t.Helper()
		i.Name = "web"
		resp, err := h.federation.UpdateIssuer(ctx, &watchwordv1.UpdateIssuerRequest{Issuer: i, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}})
		if kids := resp.GetIssuer().GetFetched().GetKids(); err != nil || len(kids) > 0 {
			t.Errorf("the answer to a change has the keys %q of before: %v", kids, err)
		}
	}
	if _, err := h.federation.CreateIssuer(ctx, &watchwordv1.CreateIssuerRequest{Issuer: &watchwordv1.Issuer{
		Name: "web", Issuer: "https://web.test", Keys: &watchwordv1.Issuer_Jwks{Jwks: one.jwks(t)},
	}}); err != nil {
		t.Fatal(err)
	}
	shows("a document", false, "", "ES256")
	update(&watchwordv1.Issuer{Keys: &watchwordv1.Issuer_JwksUri{JwksUri: web.URL}, CaPem: ca, AllowPrivate: true}, "jwks_uri", "ca_pem", "allow_private")
	shows("a URL", true, "", "RS256")
	update(&watchwordv1.Issuer{}, "ca_pem")
	shows("a CA that the server does not trust", false, "certificate")
}
