package authn_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

// searching are the actors of a delegated token: search called last, and notes called search.
var searching = []token.Actor{
	{Subject: "service-search", Username: "search", Version: 7},
	{Subject: "service-notes", Username: "notes", Version: 7},
}

// delegated adds actors to a token, and asService removes the session from a token.
func delegated(c *token.Claims) { c.Actors = searching }
func asService(c *token.Claims) { c.SessionID = "" }

// A principal tells its kind and its actors, and a caller that changes the returned slices does
// not change the principal.
func TestKindAndActors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		for _, test := range []struct {
			edits  []func(*token.Claims)
			kind   string
			actors string
		}{
			{nil, "USER_KIND_USER", "[]"},
			{[]func(*token.Claims){asService}, "USER_KIND_SERVICE", "[]"},
			{[]func(*token.Claims){delegated}, "USER_KIND_USER", "[search (service-search) notes (service-notes)]"},
			{[]func(*token.Claims){asService, delegated}, "USER_KIND_SERVICE", "[search (service-search) notes (service-notes)]"},
		} {
			p, err := w.Verify(t.Context(), mint(t, w.key, test.edits...))
			check(t, err)
			all := p.Actors()
			if p.Kind().String() != test.kind || fmt.Sprint(all) != test.actors {
				t.Errorf("%v %v, want %s %s", p.Kind(), all, test.kind, test.actors)
			}
			last, ok := p.Actor()
			if ok != (len(all) > 0) || ok && (last != all[0] || last.Subject() != "service-search" || last.Username() != "search") {
				t.Errorf("%v, %t", last, ok)
			}
			if ok {
				if all[0] = all[1]; fmt.Sprint(p.Actors()) != test.actors {
					t.Error("a caller has changed the principal")
				}
			}
			if logged := p.LogValue().String(); strings.Contains(logged, "actors") != ok {
				t.Error(logged)
			}
		}
	})
}

// A revocation of the session, of the subject or of any actor takes a delegated token back, also
// a token in the cache and a token without a session. TOKEN_REVOKED comes before every other
// reason.
func TestRevokedActors(t *testing.T) {
	raise := func(user string, revoked bool) *message { return raisedVersion(user, 8, revoked) }
	until := time.Now().Add(time.Hour)
	for name, test := range map[string]struct {
		news              []*message
		own, service, act string // the answers for alice's token, for one without a session and for a delegated one
	}{
		"session":                     {[]*message{endedSession("session-1", until)}, "TOKEN_REVOKED", "ok", "TOKEN_REVOKED"},
		"no session at all":           {[]*message{endedSession("", until)}, "ok", "ok", "ok"},
		"subject revoked":             {[]*message{raise("user-1", true)}, "TOKEN_REVOKED", "TOKEN_REVOKED", "TOKEN_REVOKED"},
		"subject stale":               {[]*message{raise("user-1", false)}, "TOKEN_STALE", "TOKEN_STALE", "TOKEN_STALE"},
		"last actor revoked":          {[]*message{raise("service-search", true)}, "ok", "ok", "TOKEN_REVOKED"},
		"last actor stale":            {[]*message{raise("service-search", false)}, "ok", "ok", "TOKEN_STALE"},
		"first actor revoked":         {[]*message{raise("service-notes", true)}, "ok", "ok", "TOKEN_REVOKED"},
		"first actor stale":           {[]*message{raise("service-notes", false)}, "ok", "ok", "TOKEN_STALE"},
		"another service":             {[]*message{raise("service-mail", true)}, "ok", "ok", "ok"},
		"an earlier version":          {[]*message{raisedVersion("service-notes", 7, true)}, "ok", "ok", "ok"},
		"subject stale, actor gone":   {[]*message{raise("user-1", false), raise("service-notes", true)}, "TOKEN_STALE", "TOKEN_STALE", "TOKEN_REVOKED"},
		"last stale, first gone":      {[]*message{raise("service-search", false), raise("service-notes", true)}, "ok", "ok", "TOKEN_REVOKED"},
		"last gone, first stale":      {[]*message{raise("service-search", true), raise("service-notes", false)}, "ok", "ok", "TOKEN_REVOKED"},
		"session ended, actor stale":  {[]*message{endedSession("session-1", until), raise("service-notes", false)}, "TOKEN_REVOKED", "ok", "TOKEN_REVOKED"},
		"revoked and stale, an actor": {[]*message{raise("service-notes", true), raise("service-notes", false)}, "ok", "ok", "TOKEN_REVOKED"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := start(t)
				tokens := map[string]string{mint(t, w.key): test.own, mint(t, w.key, asService): test.service, mint(t, w.key, delegated): test.act}
				for raw := range tokens { // puts each token into the cache
					w.wants(t, raw, "ok")
				}
				w.watch.tell(test.news...)
				tokens[mint(t, w.key, delegated, func(c *token.Claims) { c.ID = "never seen" })] = test.act
				for raw, want := range tokens {
					w.wants(t, raw, want)
				}
			})
		})
	}
}

// After delegated_not_before a delegated token of an earlier iat is TOKEN_INVALID, before any
// other reason but those of the key; every other token is as before. The latest moment stays: in
// a later trust state with an earlier moment or none, and across a restart.
func TestDelegatedNotBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, path := startKept(t)
		at := time.Now().Add(10 * time.Second)
		say := func(w *world, moment time.Time) {
			state := trustState(w.key)
			if !moment.IsZero() {
				state.DelegatedNotBefore = timestamppb.New(moment)
			}
			w.watch.tell(change(&watchwordv1.Change{TrustState: state}))
		}
		since := func(issued time.Time, edits ...func(*token.Claims)) string {
			return mint(t, w.key, append([]func(*token.Claims){delegated, func(c *token.Claims) { c.IssuedAt = issued }}, edits...)...)
		}
		seen := since(time.Now())
		w.wants(t, seen, "ok")
		check := func(w *world) {
			t.Helper()
			w.wants(t, seen, "TOKEN_INVALID")
			w.wants(t, since(at.Add(-time.Second), func(c *token.Claims) { c.Audience = []string{"other"} }), "TOKEN_INVALID")
			w.wants(t, since(at.Add(-time.Second)), "TOKEN_INVALID")
			w.wants(t, since(at), "ok")
			w.wants(t, mint(t, w.key), "ok")
			w.wants(t, mint(t, w.key, asService), "ok")
		}
		say(w, at)
		check(w)
		say(w, at.Add(-5*time.Second))
		check(w)
		say(w, time.Time{})
		check(w)
		w.Close()
		again := start(t, authn.WithSnapshotFile(path))
		again.key = w.key
		say(again, time.Time{})
		check(again)
		say(again, at.Add(time.Nanosecond)) // iat counts whole seconds, and so is before this moment
		again.wants(t, since(at), "TOKEN_INVALID")
		again.wants(t, since(at.Add(time.Second)), "ok")
	})
}

// The option `delegated: REFUSE` refuses a delegated token after every fault of the token, and
// before a role that the subject lacks.
func TestAMethodRefusesDelegatedTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rule := &watchwordv1.Access{Delegated: watchwordv1.Access_REFUSE}
		w := start(t, tokenNeeded(foreign+"*"), authn.WithMethodRule(foreign+"Mine", rule))
		conn := serveNotes(t, w.Verifier)
		elsewhere, services := serveForeign(t, w.Verifier)
		check(t, w.CheckServices(services))
		other := func(c *token.Claims) { c.Audience = []string{"other"} }
		writer := func(c *token.Claims) { c.Roles = []string{"writer"} }
		as := func(edits ...func(*token.Claims)) string { return "Bearer " + mint(t, w.key, edits...) }
		for _, test := range []struct {
			method string
			bearer string
			want   string
		}{
			{notes + "Own", as(), "ok"},
			{notes + "Own", as(asService), "ok"},
			{notes + "Own", as(delegated), "DELEGATION_DENIED"},
			{notes + "Own", as(delegated, asService), "DELEGATION_DENIED"},
			{notes + "Own", as(delegated, other), "AUDIENCE_MISMATCH"},
			{notes + "WatchOwn", as(), "ROLE_REQUIRED"},
			{notes + "WatchOwn", as(writer), "ok"},
			{notes + "WatchOwn", as(delegated), "DELEGATION_DENIED"},
			{notes + "WatchOwn", as(delegated, writer), "DELEGATION_DENIED"},
			{notes + "WatchOwn", as(delegated, writer, other), "AUDIENCE_MISMATCH"},
			{notes + "Mine", as(delegated), "ok"},
			{notes + "Add", as(delegated), "ROLE_REQUIRED"},
			{foreign + "Mine", as(), "ok"},
			{foreign + "Mine", as(delegated), "DELEGATION_DENIED"},
			{foreign + "List", as(delegated), "ok"},
		} {
			on := conn
			if strings.HasPrefix(test.method, foreign) {
				on = elsewhere
			}
			_, err := call(bearing(t.Context(), test.bearer), on, test.method, strings.Contains(test.method, "Watch"))
			if got := name(err); got != test.want {
				t.Errorf("%s: %s, want %s", test.method, got, test.want)
			}
			if test.want == "DELEGATION_DENIED" {
				refusedBy(t, err, codes.PermissionDenied, test.want, test.method)
			}
		}
		// The token itself is good.
		w.wants(t, mint(t, w.key, delegated), "ok")
	})
}

// A verifier refuses to start with a value of the field that a newer version may know.
func TestAnUnknownRuleForDelegatedTokens(t *testing.T) {
	register(t, notesFile("newer.v1", encoded(&watchwordv1.Access{Delegated: 2})))
	_, err := authn.NewVerifier(t.Context(), newHandFed(), authn.WithAudience("internal"), authn.WithoutWaiting())
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "/newer.v1.NotesService/Extra") || !strings.Contains(err.Error(), "update Watchword") {
		t.Error(err)
	}
}
