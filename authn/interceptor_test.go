package authn_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/token/tokentest"
)

// both lists one guarded unary method and one guarded stream.
var both = []struct {
	name   string
	method string
	stream bool
}{
	{"unary", notes + "List", false},
	{"stream", notes + "Watch", true},
}

func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		conn := serveNotes(t, w.Verifier)
		raw := mint(t, w.key)
		as := func(edit func(*token.Claims)) []string { return []string{"Bearer " + mint(t, w.key, edit)} }
		w.watch.tell(endedSession("session-2", time.Now().Add(time.Hour)), raisedVersion("user-3", 8, false))
		for _, test := range []struct {
			name   string
			values []string
			reason string // empty: accepted
		}{
			{"good", []string{"Bearer " + raw}, ""},
			{"scheme in lower case", []string{"bearer " + raw}, ""},
			{"scheme in capitals", []string{"BEARER " + raw}, ""},
			{"nothing", nil, "TOKEN_MISSING"},
			{"empty", []string{""}, "TOKEN_INVALID"},
			{"two", []string{"Bearer " + raw, "Bearer " + raw}, "TOKEN_INVALID"},
			{"two, one of them empty", []string{"", "Bearer " + raw}, "TOKEN_INVALID"},
			{"two in one", []string{"Bearer " + raw + ", Bearer " + raw}, "TOKEN_INVALID"},
			{"another scheme", []string{"Basic " + raw}, "TOKEN_INVALID"},
			{"no scheme", []string{raw}, "TOKEN_INVALID"},
			{"scheme alone", []string{"Bearer"}, "TOKEN_INVALID"},
			{"empty token", []string{"Bearer "}, "TOKEN_INVALID"},
			{"two spaces", []string{"Bearer  " + raw}, ""},
			{"spaces around", []string{"  Bearer   " + raw + "  "}, ""},
			{"a space in the token", []string{"Bearer " + raw[:9] + " " + raw[9:]}, "TOKEN_INVALID"},
			{"text after the token", []string{"Bearer " + raw + " x"}, "TOKEN_INVALID"},
			{"unknown key", []string{"Bearer " + mint(t, newKey(t))}, "TOKEN_INVALID"},
			{"other audience", as(func(c *token.Claims) { c.Audience = []string{"x"} }), "AUDIENCE_MISMATCH"},
			{"expired", as(func(c *token.Claims) { c.ExpiresAt = time.Now(); c.IssuedAt = c.ExpiresAt.Add(-time.Minute) }), "TOKEN_EXPIRED"},
			{"revoked", as(func(c *token.Claims) { c.SessionID = "session-2" }), "TOKEN_REVOKED"},
			{"stale", as(func(c *token.Claims) { c.Subject = "user-3" }), "TOKEN_STALE"},
		} {
			for _, kind := range both {
				caller, err := call(bearing(t.Context(), test.values...), conn, kind.method, kind.stream)
				if test.reason == "" {
					if err != nil || caller != "alice" {
						t.Errorf("%q, %v", caller, err)
					}
				} else {
					refusedBy(t, err, codes.Unauthenticated, test.reason, kind.method)
					if strings.Contains(err.Error(), raw) || caller != "" {
						t.Errorf("%q, %v", caller, err)
					}
				}
				if t.Failed() {
					t.Fatalf("failed for %s, %s", test.name, kind.name)
				}
			}
		}
	})
}

func TestGuardedCallsWithoutABundle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		server, trustConn := serveTrust(t)
		waiting := newVerifier(t, trustConn, authn.WithAudience("internal"))
		<-server.streams
		ctx := bearing(t.Context(), "Bearer "+mint(t, w.key))
		closed := serveNotes(t, w.Verifier)
		w.Close()
		for _, conn := range []*grpc.ClientConn{closed, serveNotes(t, waiting)} {
			for _, kind := range both {
				_, err := call(ctx, conn, kind.method, kind.stream)
				refusedBy(t, err, codes.Unavailable, "BUNDLE_STALE", kind.method)
				_, err = call(t.Context(), conn, kind.method, kind.stream)
				refusedBy(t, err, codes.Unavailable, "BUNDLE_STALE", kind.method)
			}
			if caller, err := call(ctx, conn, notes+"About", false); caller != "no principal" || err != nil {
				t.Errorf("a public method: %q, %v", caller, err)
			}
		}
	})
}

func TestPublicMethods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, authn.WithPublicMethods("/other.v1.Other/Open", "/health.v1.Health/*"))
		conn := serveNotes(t, w.Verifier)
		good := "Bearer " + mint(t, w.key)
		expired := "Bearer " + mint(t, w.key, func(c *token.Claims) {
			c.ExpiresAt = time.Now()
			c.IssuedAt = c.ExpiresAt.Add(-time.Minute)
		})
		for _, m := range []struct {
			method string
			stream bool
		}{
			{notes + "About", false},
			{notes + "WatchAbout", true},
			{"/other.v1.Other/Open", true}, // handled by the handler for unknown services
			{"/health.v1.Health/Anything", true},
		} {
			for _, values := range [][]string{nil, {good}, {expired}, {good, good}, {"Basic x"}} {
				caller, err := call(bearing(t.Context(), values...), conn, m.method, m.stream)
				if caller != "no principal" || err != nil {
					t.Errorf("%s: %q, %v", m.method, caller, err)
				}
			}
		}
		for _, near := range []string{"/other.v1.Other/open", "/other.v1.Other/Opener", "/health.v1.Healthy/Check", "/health.v1/Health"} {
			_, err := call(t.Context(), conn, near, true)
			refusedBy(t, err, codes.Unauthenticated, "TOKEN_MISSING", near)
		}
	})
}

// A handler may call another server in the same process with the handler's own context. A public
// method of the other server must not find the handler's principal.
func TestPublicMethodHidesAnOuterPrincipal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+mint(t, w.key)))
		unary := w.UnaryServerInterceptor()
		_, err := unary(ctx, nil, &grpc.UnaryServerInfo{FullMethod: notes + "List"}, func(ctx context.Context, _ any) (any, error) {
			if _, ok := authn.FromContext(ctx); !ok {
				t.Error("the outer call has no principal")
			}
			return unary(ctx, nil, &grpc.UnaryServerInfo{FullMethod: notes + "About"}, func(ctx context.Context, _ any) (any, error) {
				if p, ok := authn.FromContext(ctx); ok || p != nil {
					t.Errorf("the public method has the principal %v", p)
				}
				return nil, nil
			})
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestRoles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		conn := serveNotes(t, w.Verifier)
		for _, test := range []struct {
			roles    []string
			add, all bool
		}{
			{nil, false, false},
			{[]string{"reader"}, false, false},
			{[]string{"writers", "Writer", "write"}, false, false},
			{[]string{"reader", "writer"}, true, false},
			{[]string{"admin"}, true, true},
		} {
			raw := mint(t, w.key, func(c *token.Claims) { c.Roles = test.roles })
			for _, m := range []struct {
				method string
				stream bool
				ok     bool
			}{
				{notes + "Add", false, test.add}, {notes + "WatchAll", true, test.all},
				{notes + "List", false, true}, {notes + "Mine", false, true}, {notes + "Watch", true, true},
			} {
				_, err := call(bearing(t.Context(), "Bearer "+raw), conn, m.method, m.stream)
				if m.ok {
					if err != nil {
						t.Errorf("%v on %s: %v", test.roles, m.method, err)
					}
					continue
				}
				refusedBy(t, err, codes.PermissionDenied, "ROLE_REQUIRED", m.method)
			}
		}
		_, err := call(bearing(t.Context(), "Bearer x"), conn, notes+"Add", false)
		refusedBy(t, err, codes.Unauthenticated, "TOKEN_INVALID", notes+"Add")
	})
}

// A method name of another form than /service/method, which UnknownServiceHandler lets
// reach an interceptor, is UNIMPLEMENTED.
func TestMalformedMethodNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, authn.WithPublicMethods("/health.v1.Health/*"))
		conn := serveNotes(t, w.Verifier)
		malformed := []string{
			"/", "//", "/notes.v1.NotesService", "/notes.v1.NotesService/", "//About", "//notes.v1.NotesService/About",
			"/notes.v1.NotesService//About", "/notes.v1.NotesService/About/", "/x/notes.v1.NotesService/About",
			"/health.v1.Health/", "/health.v1.Health/a/b", "/health.v1.Health//",
		}
		ctx := bearing(t.Context(), "Bearer "+mint(t, w.key))
		for _, method := range malformed {
			if caller, err := call(ctx, conn, method, true); status.Code(err) != codes.Unimplemented {
				t.Errorf("%q over the wire: %q, %v", method, caller, err)
			}
		}
		for _, method := range append(malformed, "", "notes.v1.NotesService/About", "About", "/notes.v1.NotesService/\xff") {
			_, err := w.UnaryServerInterceptor()(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) {
				t.Errorf("%q reached its handler", method)
				return nil, nil
			})
			if status.Code(err) != codes.Unimplemented {
				t.Errorf("%q: %v", method, err)
			}
		}
	})
}

// An interceptor given before the verifier's sees refused calls; an interceptor given after
// runs for admitted calls alone.
func TestOrderOfInterceptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		var seen []string
		see := func(where string) grpc.ServerOption {
			return grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
				answer, err := next(ctx, req)
				seen = append(seen, where+" "+name(err))
				return answer, err
			})
		}
		opts := append(append([]grpc.ServerOption{see("outside")}, w.ServerOptions()...), see("inside"))
		listener, stop := serve(func(r *grpc.Server) { registerNotes(r, "notes.v1.NotesService") }, opts...)
		defer stop()
		conn := dial(listener)
		defer conn.Close()
		_, _ = call(t.Context(), conn, notes+"List", false)
		_, _ = call(bearing(t.Context(), "Bearer "+mint(t, w.key)), conn, notes+"List", false)
		if want := []string{"outside TOKEN_MISSING", "inside ok", "outside ok"}; !slices.Equal(seen, want) {
			t.Errorf("%q, want %q", seen, want)
		}
	})
}

// The error of Verify names the method of the handler that calls Verify.
func TestVerifyNamesTheMethod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		inner := grpc.ChainUnaryInterceptor(func(ctx context.Context, _ any, _ *grpc.UnaryServerInfo, _ grpc.UnaryHandler) (any, error) {
			_, err := w.VerifyFor(ctx, "x", "internal")
			return nil, err
		})
		conn := serveNotes(t, w.Verifier, inner)
		_, err := call(t.Context(), conn, notes+"About", false)
		refusedBy(t, err, codes.Unauthenticated, "TOKEN_INVALID", notes+"About")
	})
}

// suite makes a verifier that trusts the suite's issuer and has the suite's time.
func suite(t *testing.T) (*world, tokentest.Suite) {
	t.Helper()
	s := tokentest.Load(t)
	server, conn := serveTrust(t)
	w := &world{Verifier: newVerifier(t, conn, authn.WithAudience(s.Audience))}
	state := trustState()
	state.Issuer = s.Issuer
	for _, k := range s.Keys {
		state.Keys = append(state.Keys, &watchwordv1.VerificationKey{Key: k.JWK})
	}
	state.MaxTokenLifetime.Seconds = int64(s.MaxLifetime.Seconds())
	(<-server.streams).tell(snapshot(state), heartbeat(s.Now))
	return w, s
}

func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := suite(t)
		conn := serveNotes(t, w.Verifier)
		for _, c := range s.Cases {
			want := c.Want
			if want == tokentest.OK {
				want = "ok"
			}
			_, err := w.Verify(t.Context(), c.Token)
			if got := name(err); got != want {
				t.Errorf("%s: Verify: %s, want %s", c.Name, got, want)
			}
			if !sendable(c.Token) {
				continue
			}
			for _, kind := range both {
				_, err := call(bearing(t.Context(), "Bearer "+c.Token), conn, kind.method, kind.stream)
				if got := name(err); got != want {
					t.Errorf("%s: %s: %s, want %s", c.Name, kind.name, got, want)
				}
			}
		}
	})
}

// No change of a single character leaves a good token good: at the interceptors, and over a
// connection.
func TestEveryChangeIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := suite(t)
		conn := serveNotes(t, w.Verifier)
		unary, stream := w.UnaryServerInterceptor(), w.StreamServerInterceptor()
		reached := 0
		guarded := func(raw string, asStream bool) (err error) {
			ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+raw))
			if asStream {
				return stream(nil, stillStream{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: notes + "Watch"}, func(any, grpc.ServerStream) error { reached++; return nil })
			}
			_, err = unary(ctx, nil, &grpc.UnaryServerInfo{FullMethod: notes + "List"}, func(context.Context, any) (any, error) { reached++; return nil, nil })
			return err
		}
		for alg, good := range s.Good() {
			check(t, guarded(good, false))
			check(t, guarded(good, true))
			if reached != 2 {
				t.Fatalf("%s: %d handlers", alg, reached)
			}
			n := 0
			for raw := range tokentest.Changes(good) {
				n++ // a character of the token has 67 changes, so every 31st change visits every character
				for _, asStream := range []bool{false, true} {
					if (alg != "EdDSA" || asStream) && n%31 != 0 {
						continue
					}
					if err := guarded(raw, asStream); name(err) != "TOKEN_INVALID" || reached != 2 {
						t.Fatalf("%s: change %d, %q: %v, %d handlers", alg, n, raw, err, reached)
					}
				}
				if n%101 == 0 { // tries some of the changed tokens over a connection too
					for _, kind := range both {
						_, err := call(bearing(t.Context(), "Bearer "+raw), conn, kind.method, kind.stream)
						refusedBy(t, err, codes.Unauthenticated, "TOKEN_INVALID", kind.method)
					}
				}
			}
			reached = 0
		}
	})
}

// stillStream is a stream without messages.
type stillStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s stillStream) Context() context.Context { return s.ctx }

// A call with a malformed header gets a message that says which form is needed, and repeats
// nothing of the header.
func TestTheMessageForAMalformedHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		conn := serveNotes(t, w.Verifier)
		raw := mint(t, w.key)
		for _, values := range [][]string{{""}, {raw}, {"Bearer"}, {"Bearer "}, {"Basic " + raw}, {"Token " + raw}, {"Bearer:" + raw}, {"Bearer " + raw, "Bearer " + raw}} {
			for _, kind := range both {
				_, err := call(bearing(t.Context(), values...), conn, kind.method, kind.stream)
				refusedBy(t, err, codes.Unauthenticated, "TOKEN_INVALID", kind.method)
				if got := status.Convert(err).Message(); !strings.Contains(got, `single value of the form "Bearer TOKEN"`) || strings.Contains(got, "Basic") || strings.Contains(got, raw) {
					t.Errorf("%q: %s", values, got)
				}
			}
		}
		_, err := call(bearing(t.Context(), "Bearer x"), conn, notes+"List", false)
		if got := status.Convert(err).Message(); strings.Contains(got, "form") {
			t.Errorf("a token that is wrong: %s", got)
		}
		if got := w.Status().Refused[watchwordv1.ErrorReason_ERROR_REASON_TOKEN_INVALID]; got != 17 {
			t.Errorf("%d refusals counted", got)
		}
	})
}

// sendable returns whether metadata can hold a token: printable ASCII without a space at
// either end.
func sendable(raw string) bool {
	return raw == strings.TrimSpace(raw) && !strings.ContainsFunc(raw, func(r rune) bool { return r < ' ' || r > '~' })
}

func TestWycheproofIsRefused(t *testing.T) {
	all := tokentest.Wycheproof(t)
	synctest.Test(t, func(t *testing.T) {
		w, _ := suite(t)
		conn := serveNotes(t, w.Verifier)
		for _, raw := range all {
			w.wants(t, raw, "TOKEN_INVALID")
			if !sendable(raw) {
				continue
			}
			for _, kind := range both {
				_, err := call(bearing(t.Context(), "Bearer "+raw), conn, kind.method, kind.stream)
				refusedBy(t, err, codes.Unauthenticated, "TOKEN_INVALID", kind.method)
			}
		}
	})
}
