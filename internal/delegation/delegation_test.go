package delegation_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/delegation"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/session/sessiontest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/user"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// world has the user Alice, logged in with a token for the audience "internal", and two
// services. The service notes accepts tokens for "internal", and may get delegated tokens for
// "billing". The service bills accepts tokens for "billing", and may get delegated tokens for
// "internal".
type world struct {
	*sessiontest.World
	*delegation.Service
	notes, bills caller.Caller
	alice        string // Alice's token for "internal"
}

func newWorld(t *testing.T, of *sessiontest.World) *world {
	t.Helper()
	w := &world{World: of, Service: &delegation.Service{Feed: of.Feed, Issuer: of.Tokens, Verifier: of.Verifier, Audit: of.Audit}}
	of.Service(t, "first") // only then the database has service accounts
	w.notes, w.bills = w.service(t, "notes", "internal", "billing"), w.service(t, "bills", "billing", "internal")
	w.setRoles(t, w.Alice.ID, "admin", "reader", "writer")
	w.alice = w.Login(t).Access
	return w
}

func (w *world) service(t *testing.T, name user.Name, audience, to string) caller.Caller {
	t.Helper()
	row, err := w.Users.CreateService(t.Context(), caller.AtCommandLine, user.Service{
		Name: name, Roles: user.Roles{"helper"}, Audiences: user.Audiences{audience}, DelegatesTo: user.Audiences{to},
	})
	check(t, err)
	return w.as(t, row.ID)
}

// as returns the caller with a new token of a service account for watchword.
func (w *world) as(t *testing.T, id string) caller.Caller {
	t.Helper()
	row := w.row(t, id)
	return caller.Caller{
		Subject: caller.Subject{Kind: caller.Service, ID: id}, Name: row.Username, Version: row.TokenVersion(), Roles: row.Roles,
		Audience: []string{caller.AdminAudience},
	}
}

func (w *world) row(t *testing.T, id string) (row *store.User) {
	t.Helper()
	check(t, w.Store.Read(t.Context(), func(tx *store.Tx) (err error) {
		row, err = tx.User(id)
		return err
	}))
	return row
}

func (w *world) setRoles(t *testing.T, id string, roles ...string) {
	t.Helper()
	_, err := w.Users.Update(t.Context(), caller.AtCommandLine, id, user.Change{Roles: new(user.Roles(roles))})
	check(t, err)
}

// behind changes a user's row without an event, so that no verifier hears of the change.
func (w *world) behind(t *testing.T, id string, change func(*store.User)) {
	t.Helper()
	check(t, w.Store.Write(t.Context(), func(tx *store.Tx) error {
		row, err := tx.User(id)
		if err != nil {
			return err
		}
		change(row)
		return tx.UpdateUser(row)
	}))
}

// ask delegates, and returns the token or the reason of the refusal.
func (w *world) ask(t *testing.T, by caller.Caller, subject, audience string, roles ...string) (raw, reason string) {
	t.Helper()
	got, err := w.Delegate(t.Context(), by, delegation.Request{Subject: subject, Audience: audience, Roles: roles})
	if err == nil {
		return got.Access, "ok"
	}
	var denied *delegation.Denied
	var refused *delegation.SubjectRefused
	var recorded audit.Refusal
	if !errors.As(err, &recorded) || recorded.ActorID != by.ID {
		t.Errorf("the record of %v has the actor %q", err, recorded.ActorID)
	}
	switch {
	case errors.As(err, &denied):
		if recorded.Detail != denied.Error() {
			t.Errorf("the record of %v says %q", err, recorded.Detail)
		}
		return "", "DENIED " + denied.Error()
	case errors.As(err, &refused):
		reason := strings.TrimPrefix(refused.Reason.String(), "ERROR_REASON_")
		if recorded.Detail != "subject_reason: "+reason {
			t.Errorf("the record of %v says %q", err, recorded.Detail)
		}
		return "", reason
	case errors.Is(err, delegation.ErrRoles):
		return "", "ROLES"
	case errors.Is(err, caller.ErrRevoked):
		return "", "CALLER REVOKED"
	case errors.Is(err, caller.ErrStale):
		return "", "CALLER STALE"
	}
	return "", err.Error()
}

// must delegates to the other of the two services.
func (w *world) must(t *testing.T, by caller.Caller, subject string, roles ...string) string {
	t.Helper()
	raw, reason := w.ask(t, by, subject, map[string]string{w.notes.ID: "billing", w.bills.ID: "internal"}[by.ID], roles...)
	if reason != "ok" {
		t.Fatal(reason)
	}
	return raw
}

func (w *world) principal(t *testing.T, raw string) *authn.Principal {
	t.Helper()
	p, err := w.World.Verifier.Verify(t.Context(), raw)
	check(t, err)
	return p
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestDelegatedToken(t *testing.T) {
	sessiontest.EachEngine(t, func(t *testing.T, of *sessiontest.World) {
		w := newWorld(t, of)
		own := w.principal(t, w.alice)
		first := w.principal(t, w.must(t, w.notes, w.alice))
		second := w.principal(t, w.must(t, w.bills, w.must(t, w.notes, w.alice), "reader"))
		for p, want := range map[*authn.Principal]string{
			first:  fmt.Sprintf("[billing] [reader writer] [notes (%s)]", w.notes.ID),
			second: fmt.Sprintf("[internal] [reader] [bills (%s) notes (%s)]", w.bills.ID, w.notes.ID),
		} {
			if got := fmt.Sprint(p.Audience(), p.Roles(), p.Actors()); strings.ReplaceAll(got, "][", "] [") != want {
				t.Errorf("%s, want %s", got, want)
			}
			got := []any{p.Subject(), p.Username(), p.SessionID(), p.TokenVersion(), p.ExpiresAt(), p.Kind()}
			if want := []any{own.Subject(), own.Username(), own.SessionID(), own.TokenVersion(), own.ExpiresAt(), own.Kind()}; !reflect.DeepEqual(got, want) {
				t.Errorf("%v, want %v", got, want)
			}
			if p.Actors()[0].TokenVersion() != w.row(t, p.Actors()[0].Subject()).TokenVersion() || p.TokenID() == own.TokenID() {
				t.Error("the actor's version, or the id of the token")
			}
		}
	})
}

func TestForgeries(t *testing.T) {
	w := newWorld(t, sessiontest.New(t))
	billed := w.must(t, w.notes, w.alice) // a token for billing, delegated by notes
	five := w.alice
	for i := range token.MaxActors {
		five = w.must(t, []caller.Caller{w.notes, w.bills}[i%2], five)
	}
	admins, err := w.Logins.Login(t.Context(), "alice", sessiontest.Parse(t, sessiontest.Password), []string{caller.AdminAudience}, "")
	check(t, err)
	of := func(by caller.Caller, change func(*caller.Caller)) caller.Caller { change(&by); return by }
	for name, test := range map[string]struct {
		by       caller.Caller
		subject  string
		audience string
		roles    []string
		want     string
	}{
		"a token that notes was not shown":    {w.notes, billed, "billing", nil, "DENIED the subject's token is for none"},
		"bills was not shown Alice's own":     {w.bills, w.alice, "internal", nil, "DENIED the subject's token is for none"},
		"to where notes may not":              {w.notes, w.alice, "internal", nil, "DENIED delegates_to"},
		"the audience watchword":              {w.notes, w.alice, caller.AdminAudience, nil, "DENIED delegates_to"},
		"a token for watchword":               {w.notes, admins.Access, "billing", nil, "DENIED the subject's token is for none"},
		"a sixth actor":                       {w.bills, five, "internal", nil, "DENIED the subject's token has 5 actors"},
		"a user":                              {of(w.notes, func(c *caller.Caller) { c.Kind = caller.User }), w.alice, "billing", nil, "DENIED only a service"},
		"the operator":                        {caller.AtCommandLine, w.alice, "billing", nil, "DENIED only a service"},
		"nobody":                              {caller.Caller{}, w.alice, "billing", nil, "DENIED only a service"},
		"own token for internal":              {of(w.notes, func(c *caller.Caller) { c.Audience = []string{"internal"} }), w.alice, "billing", nil, "DENIED a service delegates with"},
		"own token for both":                  {of(w.notes, func(c *caller.Caller) { c.Audience = []string{"watchword", "internal"} }), w.alice, "billing", nil, "DENIED a service delegates with"},
		"own token of another name":           {of(w.notes, func(c *caller.Caller) { c.Name = "bills" }), w.alice, "billing", nil, "CALLER STALE"},
		"own token of other roles":            {of(w.notes, func(c *caller.Caller) { c.Roles = nil }), w.alice, "billing", nil, "CALLER STALE"},
		"own token of a later version":        {of(w.notes, func(c *caller.Caller) { c.Version++ }), w.alice, "billing", nil, "CALLER STALE"},
		"own token of Alice":                  {of(w.notes, func(c *caller.Caller) { c.ID = w.Alice.ID }), w.alice, "billing", nil, "CALLER REVOKED"},
		"own token of an unknown account":     {of(w.notes, func(c *caller.Caller) { c.ID = "unknown" }), w.alice, "billing", nil, "CALLER REVOKED"},
		"no token":                            {w.notes, "token", "billing", nil, "TOKEN_INVALID"},
		"a changed token":                     {w.notes, w.alice[:len(w.alice)-10] + "AAAAAAAAAA", "billing", nil, "TOKEN_INVALID"},
		"a role that Alice lacks":             {w.notes, w.alice, "billing", []string{"reader", "owner"}, "ROLES"},
		"the role admin":                      {w.notes, w.alice, "billing", []string{"admin"}, "ROLES"},
		"a role that was narrowed away":       {w.bills, w.must(t, w.notes, w.alice, "reader"), "internal", []string{"writer"}, "ROLES"},
		"the roles of the service, not Alice": {w.notes, w.alice, "billing", []string{"helper"}, "ROLES"},
	} {
		if raw, got := w.ask(t, test.by, test.subject, test.audience, test.roles...); raw != "" || !strings.HasPrefix(got, test.want) {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
}

// A change of any row that a token depends on refuses the delegation, with the reason of the
// token concerned, although no verifier has heard of the change. All rows are read in one state
// of the database.
func TestRowsThatHaveChanged(t *testing.T) {
	disable := func(u *store.User) { u.Disabled = true }
	revoke := func(u *store.User) { u.Version++; u.RevokedBelow = u.Version }
	raise := func(u *store.User) { u.Version++ }
	rename := func(u *store.User) { u.Username += "2" }
	remove := func(u *store.User) { u.DeletedAt = time.Now() }
	rows := func(id func(*world) string, change func(*store.User)) func(*testing.T, *world) {
		return func(t *testing.T, w *world) { w.behind(t, id(w), change) }
	}
	alice := func(w *world) string { return w.Alice.ID }
	notes := func(w *world) string { return w.notes.ID }
	bills := func(w *world) string { return w.bills.ID }
	for name, test := range map[string]struct {
		change      func(*testing.T, *world)
		notes, then string // the answers to notes for Alice's own token, and to bills for the token that notes had got
	}{
		"nothing":           {func(*testing.T, *world) {}, "ok", "ok"},
		"subject disabled":  {rows(alice, disable), "TOKEN_REVOKED", "TOKEN_REVOKED"},
		"subject revoked":   {rows(alice, revoke), "TOKEN_REVOKED", "TOKEN_REVOKED"},
		"subject raised":    {rows(alice, raise), "TOKEN_STALE", "TOKEN_STALE"},
		"subject renamed":   {rows(alice, rename), "TOKEN_STALE", "TOKEN_STALE"},
		"subject deleted":   {rows(alice, remove), "TOKEN_REVOKED", "TOKEN_REVOKED"},
		"a role is gone":    {rows(alice, func(u *store.User) { u.Roles = []string{"admin", "reader"} }), "TOKEN_STALE", "TOKEN_STALE"},
		"admin is gone":     {rows(alice, func(u *store.User) { u.Roles = []string{"reader", "writer"} }), "TOKEN_STALE", "ok"},
		"notes disabled":    {rows(notes, disable), "CALLER REVOKED", "TOKEN_REVOKED"},
		"notes revoked":     {rows(notes, revoke), "CALLER REVOKED", "TOKEN_REVOKED"},
		"notes raised":      {rows(notes, raise), "CALLER STALE", "TOKEN_STALE"},
		"notes deleted":     {rows(notes, remove), "CALLER REVOKED", "TOKEN_REVOKED"},
		"bills disabled":    {rows(bills, disable), "ok", "CALLER REVOKED"},
		"bills raised":      {rows(bills, raise), "ok", "CALLER STALE"},
		"notes: delegates":  {rows(notes, func(u *store.User) { u.DelegatesTo = nil }), "DENIED delegates_to of the service does not hold the audience", "ok"},
		"notes: audiences":  {rows(notes, func(u *store.User) { u.Audiences = nil }), "DENIED the subject's token is for none of the audiences of the service", "ok"},
		"alice, then notes": {func(t *testing.T, w *world) { w.behind(t, alice(w), raise); w.behind(t, notes(w), disable) }, "CALLER REVOKED", "TOKEN_REVOKED"},
		"session ended": {func(t *testing.T, w *world) {
			id := w.principal(t, w.alice).SessionID()
			check(t, w.Store.Write(t.Context(), func(tx *store.Tx) error { return tx.EndSession(id) }))
		}, "TOKEN_REVOKED", "TOKEN_REVOKED"},
		"session deleted": {func(t *testing.T, w *world) {
			id := w.principal(t, w.alice).SessionID()
			check(t, w.Store.Write(t.Context(), func(tx *store.Tx) error { return tx.DeleteSessions([]string{id}) }))
		}, "TOKEN_REVOKED", "TOKEN_REVOKED"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, sessiontest.New(t))
			billed := w.must(t, w.notes, w.alice)
			test.change(t, w)
			if _, got := w.ask(t, w.notes, w.alice, "billing"); got != test.notes {
				t.Errorf("notes: %s, want %s", got, test.notes)
			}
			if _, got := w.ask(t, w.bills, billed, "internal"); got != test.then {
				t.Errorf("bills: %s, want %s", got, test.then)
			}
		})
	}
}

// Tokens that were minted before the floor for versions rose stay valid.
func TestVersionsBelowTheFloor(t *testing.T) {
	w := newWorld(t, sessiontest.New(t))
	billed := w.must(t, w.notes, w.alice)
	check(t, w.Store.Write(t.Context(), func(tx *store.Tx) error { return tx.RaiseFloor(1 << 40) }))
	w.must(t, w.bills, billed)
	fresh := w.Login(t).Access
	if v := w.principal(t, fresh).TokenVersion(); v != 1<<40 {
		t.Fatal(v)
	}
	w.must(t, w.as(t, w.bills.ID), w.must(t, w.as(t, w.notes.ID), fresh))
}

// A service account can be the subject.
func TestAServiceAsSubject(t *testing.T) {
	w := newWorld(t, sessiontest.New(t))
	raw, _, err := w.Tokens.Mint(t.Context(), time.Now(), issuer.Subject{
		UserID: w.bills.ID, Username: w.bills.Name, Roles: w.bills.Roles, Version: w.bills.Version, Audience: []string{"internal"},
	})
	check(t, err)
	p := w.principal(t, w.must(t, w.notes, raw))
	if p.SessionID() != "" || p.Subject() != w.bills.ID || len(p.Actors()) != 1 {
		t.Error(p.SessionID(), p.Subject(), p.Actors())
	}
	w.behind(t, w.bills.ID, func(u *store.User) { u.Disabled = true })
	if _, got := w.ask(t, w.notes, raw, "billing"); got != "TOKEN_REVOKED" {
		t.Error(got)
	}
}

// A withdrawn key takes every delegated token back, also a delegated token that another key has
// signed. A token that is delegated afterwards is good at once, and a second withdrawal in the
// same second takes this token back too.
func TestAWithdrawnKey(t *testing.T) {
	sessiontest.EachEngine(t, func(t *testing.T, of *sessiontest.World) {
		w := newWorld(t, of)
		verdict := func(raw string) string {
			_, err := w.World.Verifier.Verify(t.Context(), raw)
			return strings.TrimPrefix(authn.Reason(err).String(), "ERROR_REASON_")
		}
		withdraw := func() {
			keys, err := w.Keyring.List(t.Context())
			check(t, err)
			for _, k := range keys {
				if k.State == issuer.Next { // the next key has signed nothing, so Alice's token stays good
					_, err = w.Keyring.Revoke(t.Context(), caller.AtCommandLine, k.KID)
					check(t, err)
					return
				}
			}
			t.Fatal("no key is next")
		}
		first := w.must(t, w.notes, w.alice)
		withdraw()
		second := w.must(t, w.notes, w.alice)
		if got := []string{verdict(first), verdict(second), verdict(w.alice)}; !reflect.DeepEqual(got, []string{"TOKEN_INVALID", "UNSPECIFIED", "UNSPECIFIED"}) {
			t.Error(got)
		}
		if _, got := w.ask(t, w.bills, first, "internal"); got != "TOKEN_INVALID" {
			t.Error(got)
		}
		began := time.Now()
		withdraw()
		if got := verdict(second); got != "TOKEN_INVALID" {
			t.Error(got)
		}
		third := w.must(t, w.bills, w.must(t, w.notes, w.alice))
		if got := verdict(third); got != "UNSPECIFIED" {
			t.Error(got)
		}
		if at := w.principal(t, third).IssuedAt(); at.Before(began.Add(5*time.Second)) || time.Until(at) > 15*time.Second {
			t.Errorf("the time of issue is %v ahead of the withdrawal, and %v of now", at.Sub(began), time.Until(at))
		}

		// A server that starts later reads the moment of the withdrawal, too.
		before := w.moment(t)
		again, err := feed.Open(t.Context(), w.Store, feed.Origin{Issuer: "https://auth.test", DatabaseID: "database"}, slog.New(slog.DiscardHandler))
		check(t, err)
		if got := again.Hub().TrustState().GetDelegatedNotBefore().AsTime(); !got.Equal(before) || before.IsZero() {
			t.Error(got, before)
		}
	})
}

// The commit of a key's withdrawal waits for a standby, so other transactions see the withdrawal
// later than the moment that the withdrawal has stored. A token that was delegated in between is
// taken back, and a new token is good at once. The stored moment is raised once.
func TestAWithdrawalThatWaitsForItsCommit(t *testing.T) {
	sessiontest.EachEngine(t, func(t *testing.T, of *sessiontest.World) {
		w := newWorld(t, of)
		verdict := func(raw string) string {
			_, err := w.World.Verifier.Verify(t.Context(), raw)
			return strings.TrimPrefix(authn.Reason(err).String(), "ERROR_REASON_")
		}
		before, began := w.must(t, w.notes, w.alice), time.Now()
		passed := w.principal(t, before).IssuedAt() // the latest moment that leaves the token good
		check(t, feed.Direct(w.Store).Write(t.Context(), func(tx *feed.Tx) error {
			return errors.Join(tx.RaiseDelegatedNotBefore(passed), tx.KeysChanged())
		}))
		for ; verdict(before) != "TOKEN_INVALID"; time.Sleep(10 * time.Millisecond) {
			if time.Since(began) > 30*time.Second {
				t.Fatal("the token that was delegated in between is still good")
			}
		}
		raised := w.moment(t)
		if got := verdict(w.must(t, w.notes, w.alice)); got != "UNSPECIFIED" {
			t.Error(got)
		}
		if raised.Before(began.Add(5*time.Second)) || !w.moment(t).Equal(raised) {
			t.Errorf("the moment is %v, and was %v; the token was delegated before %v", w.moment(t), raised, began)
		}
	})
}

// moment returns the moment from which delegated tokens are valid.
func (w *world) moment(t *testing.T) (at time.Time) {
	t.Helper()
	check(t, w.Store.Read(t.Context(), func(tx *store.Tx) (err error) {
		at, err = tx.DelegatedNotBefore()
		return err
	}))
	return at
}

// The subject's token of a withdrawn key is refused by a server whose verifier has not heard of
// the withdrawal: the server first reads the events up to its own reading of the rows.
func TestAServerThatIsBehind(t *testing.T) {
	w := newWorld(t, sessiontest.Slow(t)) // a feed that reads the database only after its own changes
	keys, err := w.Keyring.List(t.Context())
	check(t, err)
	var signs string
	for _, k := range keys {
		if k.State == issuer.Signing {
			signs = k.KID
		}
	}
	_, err = w.Elsewhere.Revoke(t.Context(), caller.AtCommandLine, signs)
	check(t, err)
	if _, got := w.ask(t, w.notes, w.alice, "billing"); got != "TOKEN_INVALID" {
		t.Error(got)
	}
}

// If the clock was ahead at a withdrawal and was set back, delegated tokens begin at the moment
// of the withdrawal, as long as verifiers accept such tokens, and later delegations fail. A
// subject's token that ends before that is as good as expired.
func TestAMomentAhead(t *testing.T) {
	w := newWorld(t, sessiontest.New(t))
	set := func(ahead time.Duration) time.Time {
		at := time.Now().Add(ahead).Truncate(time.Second)
		check(t, w.Store.Write(t.Context(), func(tx *store.Tx) error { return tx.RaiseDelegatedNotBefore(at) }))
		return at
	}
	at := set(3 * time.Minute)
	if p := w.principal(t, w.must(t, w.notes, w.alice)); !p.IssuedAt().Equal(at) {
		t.Error(p.IssuedAt(), at)
	}
	short, _, err := w.Tokens.Mint(t.Context(), time.Now(), issuer.Subject{
		UserID: w.bills.ID, Username: w.bills.Name, Roles: w.bills.Roles, Version: w.bills.Version, Audience: []string{"internal"}, SessionEnd: at,
	})
	check(t, err)
	if _, got := w.ask(t, w.notes, short, "billing"); got != "TOKEN_EXPIRED" {
		t.Error(got)
	}
	set(time.Hour)
	if _, got := w.ask(t, w.notes, w.alice, "billing"); !strings.Contains(got, "the clock was ahead") {
		t.Error(got)
	}
	set(time.Minute) // the moment never falls
	if _, got := w.ask(t, w.notes, w.alice, "billing"); !strings.Contains(got, "the clock was ahead") {
		t.Error(got)
	}
}

// Delegations share one record of a service, an audience and an hour, and no delegation has a
// record of its own. The record of a refused delegation names the service and the subject.
func TestRecords(t *testing.T) {
	w := newWorld(t, sessiontest.New(t))
	for range 3 {
		w.must(t, w.bills, w.must(t, w.notes, w.alice))
	}
	w.must(t, w.notes, w.alice)
	check(t, w.World.Audit.Flush(context.Background()))
	var got []string
	check(t, w.Store.Read(t.Context(), func(tx *store.Tx) error {
		records, _, err := tx.Audit(store.AuditFilter{Type: "token.delegated"}, 100, 100)
		for _, r := range records {
			got = append(got, fmt.Sprintf("%s %t %s %d %q%q%q", r.ActorName, r.Success, r.Detail, r.Count, r.UserID, r.SessionID, r.Source))
		}
		return err
	}))
	for _, want := range []string{`notes true audience: billing 4 """"""`, `bills true audience: internal 3 """"""`} {
		if len(got) != 2 || got[0] != want && got[1] != want {
			t.Errorf("%q, want %s", got, want)
		}
	}
	_, err := w.Delegate(t.Context(), w.notes, delegation.Request{Subject: w.alice, Audience: "internal"})
	if text := fmt.Sprintf("%+v", err); !strings.Contains(text, "delegates_to") {
		t.Error(text)
	}
}
