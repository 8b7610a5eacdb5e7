package federation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
	"github.com/watchword-auth/watchword/internal/user"
)

var operator = caller.AtCommandLine

// world is the administration of a new database, with the issuer `prod`.
type world struct {
	*Registry
	users *user.Users
	keys  string // a key set of an issuer, in JSON
}

// eachEngine runs a test with a new database, once for each engine.
func eachEngine(t *testing.T, test func(t *testing.T, w *world)) {
	t.Parallel()
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) {
		w := newWorld(t, new(t), document(t))
		w.issuer(t, "prod")
		test(t, w)
	})
}

// newWorld returns the administration of a new database. keys is the document with the keys of
// the issuers.
func newWorld(t *testing.T, uri, keys string) *world {
	s := storetest.Open(t, uri)
	log := audit.New(s, slog.New(slog.DiscardHandler))
	return &world{NewRegistry(s, feed.Direct(s), log), user.New(s, feed.Direct(s), password.NewPool(password.Config{}), log), keys}
}

func (w *world) issuer(t *testing.T, name string) *store.Issuer {
	t.Helper()
	row, err := w.CreateIssuer(t.Context(), operator, store.Issuer{Name: name, Issuer: "https://" + name, Jwks: w.keys})
	if err != nil {
		t.Fatal(err)
	}
	return row
}

// account makes a service account, and returns the id.
func (w *world) account(t *testing.T, name string, kind store.UserKind) string {
	t.Helper()
	row := &store.User{ID: user.NewID(), Username: name, Kind: kind, Version: 7, CreatedAt: time.Now(), UpdatedAt: time.Now()}
	if err := w.store.Write(t.Context(), func(tx *store.Tx) error { return tx.InsertUser(row) }); err != nil {
		t.Fatal(err)
	}
	return row.ID
}

func (w *world) bind(t *testing.T, issuer, subject, id string) *store.Binding {
	t.Helper()
	row, err := w.CreateBinding(t.Context(), operator, store.Binding{Issuer: issuer, Subject: subject, UserID: id})
	if err != nil {
		t.Fatal(err)
	}
	return row
}

// ends returns the ids of the accounts that a change has revoked, and checks that each has
// one event and a raised version.
func (w *world) ends(t *testing.T, change func()) (ids []string) {
	t.Helper()
	var head int64
	read := func(fn func(*store.Tx) error) {
		t.Helper()
		if err := w.store.Read(t.Context(), fn); err != nil {
			t.Fatal(err)
		}
	}
	read(func(tx *store.Tx) (err error) { head, err = tx.Head(); return err })
	change()
	read(func(tx *store.Tx) error {
		events, err := tx.Events(head, 1000)
		for _, e := range events {
			u, errUser := tx.User(e.Subject)
			if errUser != nil || e.Kind != store.VersionRevoked || e.Version != u.Version || u.RevokedBelow != u.Version || u.Version <= 7 {
				t.Errorf("event %+v of %+v, %v", e, u, errUser)
			}
			ids = append(ids, e.Subject)
		}
		return err
	})
	slices.Sort(ids)
	return ids
}

// records returns the details of the newest n records, the newest first, after the type and
// the username.
func (w *world) records(t *testing.T, n int) (lines []string) {
	t.Helper()
	err := w.store.Read(t.Context(), func(tx *store.Tx) error {
		rows, _, err := tx.Audit(store.AuditFilter{}, n, n)
		for _, r := range rows {
			lines = append(lines, strings.TrimSpace(r.Type+" "+r.UserName)+" "+r.Detail)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func sorted(ids ...string) []string { slices.Sort(ids); return ids }

func TestIssuersAreKept(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		ca, _ := newCA(t)
		made, err := w.CreateIssuer(t.Context(), operator, store.Issuer{Name: "aws", Issuer: "https://aws", Discovery: true, CAPEM: ca, AllowPrivate: true})
		if err != nil || made.MaxLifetime != 24*time.Hour {
			t.Fatalf("%+v, %v", made, err)
		}
		if got, err := w.Issuer(t.Context(), "aws"); err != nil || *got != *made {
			t.Errorf("%+v, %v; want %+v", got, err, made)
		}
		for _, taken := range []store.Issuer{{Name: "aws", Issuer: "https://other", Jwks: w.keys}, {Name: "other", Issuer: "https://aws", Jwks: w.keys}} {
			if _, err := w.CreateIssuer(t.Context(), operator, taken); !errors.Is(err, ErrIssuerExists) {
				t.Errorf("%s, %s: %v", taken.Name, taken.Issuer, err)
			}
		}
		if err := w.store.Write(t.Context(), func(tx *store.Tx) error { return tx.SetSetting(store.OwnIssuer, "https://own") }); err != nil {
			t.Fatal(err)
		}
		_, err = w.CreateIssuer(t.Context(), operator, store.Issuer{Name: "own", Issuer: "https://own", Jwks: w.keys})
		wantField(t, "the server's own issuer", err, "issuer")
		if _, err := w.Issuer(t.Context(), "own"); !errors.Is(err, ErrIssuerNotFound) {
			t.Errorf("an issuer that was refused: %v", err)
		}
		if err := w.DeleteIssuer(t.Context(), operator, "aws"); err != nil {
			t.Error(err)
		}
		for what, err := range map[string]error{
			"get": func() error { _, err := w.Issuer(t.Context(), "aws"); return err }(), "delete": w.DeleteIssuer(t.Context(), operator, "aws"),
			"update": func() error { _, err := w.UpdateIssuer(t.Context(), operator, "aws", Change{}); return err }(),
			"bind": func() error {
				_, err := w.CreateBinding(t.Context(), operator, store.Binding{Issuer: "aws", Subject: "s"})
				return err
			}(),
		} {
			if !errors.Is(err, ErrIssuerNotFound) {
				t.Errorf("%s a removed issuer: %v", what, err)
			}
		}
		want := []string{
			"issuer.deleted name: aws, issuer: https://aws, keys: discovered, own CA: true, private addresses: true, longest lifetime: 24h0m0s; bindings removed: 0, service accounts with revoked tokens: 0",
			"issuer.created name: aws, issuer: https://aws, keys: discovered, own CA: true, private addresses: true, longest lifetime: 24h0m0s",
			"issuer.created name: prod, issuer: https://prod, keys: a document, own CA: false, private addresses: false, longest lifetime: 24h0m0s",
		}
		if got := w.records(t, 10); !slices.Equal(got, want) {
			t.Errorf("the record has\n%s", strings.Join(got, "\n"))
		}
	})
}

// A page has no more than fits into a gRPC message, whatever the issuers have.
func TestPagesOfIssuers(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		large := w.keys + strings.Repeat(" ", maxJwksLength-len(w.keys))
		var want []string
		for i := range 70 {
			name := fmt.Sprintf("p-%02d", i)
			if _, err := w.CreateIssuer(t.Context(), operator, store.Issuer{Name: name, Issuer: name, Jwks: large}); err != nil {
				t.Fatal(err)
			}
			want = append(want, name)
		}
		want = append(want, "prod")
		for _, limit := range []int{1, 16, 40, 1000} {
			var got []string
			pages := 0
			for after := ""; ; pages++ {
				rows, next, err := w.Issuers(t.Context(), after, limit)
				if err != nil || len(rows) == 0 || len(rows) > min(limit, maxPageLength/maxJwksLength+1) {
					t.Fatalf("%d issuers after %q, %v", len(rows), after, err)
				}
				for _, row := range rows {
					got = append(got, row.Name)
				}
				if after = next; next == "" {
					break
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("pages of %d have %v", limit, got)
			}
		}
	})
}

// Only a change of an issuer's keys, URL or CA ends the tokens of the bound accounts, and the
// tokens of other accounts stay valid.
func TestAChangeOfTrustEndsTokens(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		ca, _ := newCA(t)
		w.issuer(t, "other")
		a, b, c := w.account(t, "a", store.KindService), w.account(t, "b", store.KindService), w.account(t, "c", store.KindService)
		w.bind(t, "prod", "one", a)
		w.bind(t, "prod", "two", a)
		w.bind(t, "prod", "three", b)
		w.bind(t, "other", "one", c)
		text := func(s string) *string { return &s }
		hour, yes := time.Hour, true
		before, err := w.Issuer(t.Context(), "prod")
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			what   string
			change Change
			ends   []string
		}{
			{"nothing", Change{}, nil},
			{"the same document", Change{Source: &KeySource{Jwks: w.keys}}, nil},
			{"lifetime", Change{MaxLifetime: &hour}, nil},
			{"document", Change{Source: &KeySource{Jwks: document(t)}}, sorted(a, b)},
			{"URL in place of the document", Change{Source: &KeySource{JwksURI: "https://keys"}}, sorted(a, b)},
			{"URL", Change{Source: &KeySource{JwksURI: "https://keys2"}}, sorted(a, b)},
			{"private addresses", Change{AllowPrivate: &yes}, nil},
			{"CA", Change{CAPEM: &ca}, sorted(a, b)},
			{"the same CA with a text", Change{CAPEM: text("# CA\n" + ca)}, nil},
			{"no CA", Change{CAPEM: text("")}, sorted(a, b)},
			{"discovery", Change{Source: &KeySource{Discovery: true}}, sorted(a, b)},
		} {
			var after *store.Issuer
			began := time.Now().Truncate(time.Microsecond)
			ended := w.ends(t, func() {
				if after, err = w.UpdateIssuer(t.Context(), operator, "prod", step.change); err != nil {
					t.Fatal(err)
				}
			})
			if !slices.Equal(ended, step.ends) {
				t.Errorf("%s ends the tokens of %v, want %v", step.what, ended, step.ends)
			}
			if changed := *after != *before; changed != after.UpdatedAt.After(before.UpdatedAt) || changed && after.UpdatedAt.Before(began) {
				t.Errorf("%s: changed is %t, and updated_at goes from %v to %v", step.what, changed, before.UpdatedAt, after.UpdatedAt)
			}
			before = after
		}
		if got := w.records(t, 2); !strings.HasSuffix(got[0], "; the tokens of 2 service accounts are revoked") || !strings.HasPrefix(got[0], "issuer.updated name: prod,") {
			t.Errorf("the record has %q", got)
		}
		ended := w.ends(t, func() {
			_, err := w.UpdateIssuer(t.Context(), operator, "prod", Change{Source: &KeySource{JwksURI: "http://keys"}})
			wantField(t, "a URL over http", err, "jwks_uri")
		})
		if now, err := w.Issuer(t.Context(), "prod"); err != nil || *now != *before || len(ended) > 0 {
			t.Errorf("a refused change: %+v, %v, %v", now, err, ended)
		}
	})
}

func TestRemovalEndsTokens(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		w.issuer(t, "other")
		a, b := w.account(t, "a", store.KindService), w.account(t, "b", store.KindService)
		one, two, three := w.bind(t, "prod", "one", a), w.bind(t, "prod", "two", b), w.bind(t, "other", "three", a)
		remove := func(b *store.Binding) func() {
			return func() {
				if err := w.DeleteBinding(t.Context(), operator, b.ID); err != nil {
					t.Error(err)
				}
			}
		}
		if ended := w.ends(t, remove(one)); !slices.Equal(ended, []string{a}) {
			t.Errorf("the removal of a binding ends %v", ended)
		}
		if err := w.DeleteBinding(t.Context(), operator, one.ID); !errors.Is(err, ErrBindingNotFound) {
			t.Errorf("a second removal: %v", err)
		}
		again, _, err := w.Bindings(t.Context(), store.BindingFilter{}, "", 10)
		if err != nil || len(again) != 2 {
			t.Errorf("%d bindings, %v", len(again), err)
		}
		w.bind(t, "prod", "one", a)
		ended := w.ends(t, func() {
			if err := w.DeleteIssuer(t.Context(), operator, "prod"); err != nil {
				t.Error(err)
			}
		})
		if !slices.Equal(ended, sorted(a, b)) {
			t.Errorf("the removal of an issuer ends %v", ended)
		}
		if got := w.records(t, 3); !slices.Equal(sorted(got...), []string{
			"binding.deleted a issuer: prod, subject: one", "binding.deleted b issuer: prod, subject: two",
			"issuer.deleted name: prod, issuer: https://prod, keys: a document, own CA: false, private addresses: false, longest lifetime: 24h0m0s; bindings removed: 2, service accounts with revoked tokens: 2",
		}) {
			t.Errorf("the record has %q", got)
		}
		ended = w.ends(t, func() {
			if err := w.users.Delete(t.Context(), operator, a); err != nil {
				t.Error(err)
			}
		})
		rest, _, err := w.Bindings(t.Context(), store.BindingFilter{}, "", 10)
		if err != nil || len(rest) != 0 || !slices.Equal(ended, []string{a}) {
			t.Errorf("after the account was deleted: %+v, %v, %v", rest, err, ended)
		}
		if got := w.records(t, 2); !slices.Contains(got, "binding.deleted a issuer: other, subject: three") {
			t.Errorf("the record has %q", got)
		}
		_, _ = two, three
	})
}

func TestBindingsAreKept(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		service, person, gone := w.account(t, "orders", store.KindService), w.account(t, "alice", store.KindUser), w.account(t, "gone", store.KindService)
		if err := w.users.Delete(t.Context(), operator, gone); err != nil {
			t.Fatal(err)
		}
		claims := []store.BoundClaim{{Path: []string{"ref"}, Value: "refs/heads/main"}, {Path: []string{"kubernetes.io", "namespace"}, Value: "shop"}, {Path: []string{"n"}, Value: 7.0}}
		made, err := w.CreateBinding(t.Context(), operator, store.Binding{Issuer: "prod", Subject: "s", Claims: claims, UserID: service})
		if err != nil {
			t.Fatal(err)
		}
		if want := `binding.created orders issuer: prod, subject: s, claim kubernetes.io namespace: shop, claim n: 7, claim ref: refs/heads/main`; w.records(t, 1)[0] != want {
			t.Errorf("the record has %q", w.records(t, 1))
		}
		slices.Reverse(claims)
		for name, c := range map[string]struct {
			row   store.Binding
			field string
			err   error
		}{
			"the same claims in another order": {store.Binding{Issuer: "prod", Subject: "s", Claims: claims, UserID: service}, "subject", nil},
			"the same claims for a user":       {store.Binding{Issuer: "prod", Subject: "s", Claims: claims, UserID: person}, "user_id", nil},
			"a user":                           {store.Binding{Issuer: "prod", Subject: "other", UserID: person}, "user_id", nil},
			"a deleted account":                {store.Binding{Issuer: "prod", Subject: "other", UserID: gone}, "", user.ErrNotFound},
			"an unknown account":               {store.Binding{Issuer: "prod", Subject: "other", UserID: "x"}, "", user.ErrNotFound},
			"an unknown issuer":                {store.Binding{Issuer: "x", Subject: "other", UserID: service}, "", ErrIssuerNotFound},
		} {
			_, err := w.CreateBinding(t.Context(), operator, c.row)
			if c.err != nil && !errors.Is(err, c.err) || c.err == nil {
				wantField(t, name, err, c.field)
			}
		}
		fewer := w.bind(t, "prod", "s", service) // fewer claims: another binding
		_, err = w.CreateBinding(t.Context(), operator, store.Binding{Issuer: "prod", Subject: "s", UserID: service})
		wantField(t, "a second binding without claims", err, "subject")
		rows, next, err := w.Bindings(t.Context(), store.BindingFilter{UserID: service}, "", 1)
		if err != nil || len(rows) != 1 || next != rows[0].ID {
			t.Fatalf("%+v, %q, %v", rows, next, err)
		}
		more, end, err := w.Bindings(t.Context(), store.BindingFilter{UserID: service}, next, 1)
		if err != nil || len(more) != 1 || end != "" || !slices.Equal(sorted(rows[0].ID, more[0].ID), sorted(made.ID, fewer.ID)) {
			t.Errorf("%+v, %q, %v", more, end, err)
		}
	})
}

// Each bound has an error that names the field, and a bound for one thing does not limit another
// thing.
func TestBounds(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		full, free := w.account(t, "full", store.KindService), w.account(t, "free", store.KindService)
		fill := func(n int, make func(i int) *store.Binding) {
			t.Helper()
			for begin := 0; begin < n; begin += 200 { // a transaction may take a bounded time
				err := w.store.Write(t.Context(), func(tx *store.Tx) (err error) {
					for i := begin; i < min(n, begin+200); i++ {
						b := make(i)
						b.ID = user.NewID()
						err = errors.Join(err, tx.InsertBinding(b))
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		try := func(issuer, subject, id string) error {
			_, err := w.CreateBinding(t.Context(), operator, store.Binding{Issuer: issuer, Subject: subject, UserID: id})
			return err
		}
		fill(maxOfUser, func(i int) *store.Binding {
			return &store.Binding{Issuer: "prod", Subject: fmt.Sprint(i), UserID: full}
		})
		wantField(t, "too many of an account", try("prod", "new", full), "user_id")
		wantField(t, "of another account", try("prod", "new", free), "")
		fill(maxOfSubject, func(i int) *store.Binding {
			return &store.Binding{Issuer: "prod", Subject: "same", UserID: fmt.Sprint("x", i), Claims: []store.BoundClaim{{Path: []string{"n"}, Value: float64(i)}}}
		})
		wantField(t, "too many of a subject", try("prod", "same", free), "subject")
		fill(maxOfIssuer-maxOfSubject-maxOfUser-1, func(i int) *store.Binding {
			return &store.Binding{Issuer: "prod", Subject: fmt.Sprint("y", i), UserID: fmt.Sprint("y", i)}
		})
		wantField(t, "too many of an issuer", try("prod", "newer", free), "issuer")
		w.issuer(t, "other")
		wantField(t, "of another issuer", try("other", "newer", free), "")
		for i := range maxIssuers - 2 {
			w.issuer(t, fmt.Sprintf("issuer-%d", i))
		}
		_, err := w.CreateIssuer(t.Context(), operator, store.Issuer{Name: "more", Issuer: "more", Jwks: w.keys})
		wantField(t, "too many issuers", err, "name")
		if ended := w.ends(t, func() {
			if err := w.DeleteIssuer(t.Context(), operator, "prod"); err != nil {
				t.Error(err)
			}
		}); !slices.Equal(ended, sorted(full, free)) {
			t.Errorf("the removal ends %v", ended)
		}
	})
}

// If a binding is made while its issuer or its account is removed, the binding is refused or is
// removed too.
func TestNoBindingIsLeftBehind(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		for round := range 20 {
			issuer := fmt.Sprint("issuer-", round)
			w.issuer(t, issuer)
			id := w.account(t, fmt.Sprint("account", round), store.KindService)
			var tasks sync.WaitGroup
			var bound, removed error
			tasks.Go(func() {
				_, bound = w.CreateBinding(context.Background(), operator, store.Binding{Issuer: issuer, Subject: "s", UserID: id})
			})
			tasks.Go(func() {
				if round%2 == 0 {
					removed = w.DeleteIssuer(context.Background(), operator, issuer)
				} else {
					removed = w.users.Delete(context.Background(), operator, id)
				}
			})
			tasks.Wait()
			rest, _, err := w.Bindings(t.Context(), store.BindingFilter{}, "", 10)
			if err != nil || len(rest) > 0 || removed != nil || bound != nil && !errors.Is(bound, ErrIssuerNotFound) && !errors.Is(bound, user.ErrNotFound) {
				t.Fatalf("%d bindings are left, %v; bound: %v, removed: %v", len(rest), err, bound, removed)
			}
		}
	})
}

// The caller is checked in the transaction: a verifier may be behind.
func TestTheCallerIsChecked(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		id := w.account(t, "a", store.KindService)
		b := w.bind(t, "prod", "s", id)
		by := caller.Caller{Subject: caller.Subject{Kind: caller.User, ID: "gone"}, Roles: []string{caller.Admin}}
		hour := time.Hour
		for what, try := range map[string]func() error{
			"CreateIssuer": func() error {
				_, err := w.CreateIssuer(t.Context(), by, store.Issuer{Name: "new", Issuer: "new", Jwks: w.keys})
				return err
			},
			"UpdateIssuer": func() error {
				_, err := w.UpdateIssuer(t.Context(), by, "prod", Change{MaxLifetime: &hour})
				return err
			},
			"DeleteIssuer": func() error { return w.DeleteIssuer(t.Context(), by, "prod") },
			"CreateBinding": func() error {
				_, err := w.CreateBinding(t.Context(), by, store.Binding{Issuer: "prod", Subject: "new", UserID: id})
				return err
			},
			"DeleteBinding": func() error { return w.DeleteBinding(t.Context(), by, b.ID) },
		} {
			var err error
			if ended := w.ends(t, func() { err = try() }); !errors.Is(err, caller.ErrRevoked) || len(ended) > 0 {
				t.Errorf("%s: %v, ends %v", what, err, ended)
			}
		}
	})
}
