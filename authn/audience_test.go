package authn_test

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

// The audience of a method's option replaces the verifier's audiences, whether the verifier
// names audiences or accepts any. AUDIENCE_MISMATCH comes before TOKEN_EXPIRED and
// ROLE_REQUIRED.
func TestAudienceOfAMethod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := authntest.New()
		writer := func(audience ...string) authntest.User {
			return authntest.User{Name: "alice", Roles: []string{"writer"}, Audience: audience}
		}
		reader := func(audience ...string) authntest.User { return authntest.User{Name: "alice", Audience: audience} }
		old := map[bool]string{ // the key says whether the token is for billing
			true:  issuer.Token(writer("billing")),
			false: issuer.Token(writer("internal")),
		}
		issuer.Advance(authntest.MaxLifetime)
		own := serveNotes(t, issuer.NewVerifier(t, authn.WithAudience("internal")))
		any := serveNotes(t, issuer.NewVerifier(t, authn.WithAnyAudience()))
		ruled := serveNotes(t, issuer.NewVerifier(t, authn.WithAudience("internal"),
			authn.WithMethodRule(notes+"List", &watchwordv1.Access{Audience: []string{"billing", "office"}, Roles: []string{"writer"}})))
		for _, test := range []struct {
			name  string
			token string
			bill  string // the answer of a method that asks for billing or office, and for a writer
			list  string // the answer of a method that asks for no audience, at the verifier with WithAudience
		}{
			{"the method's audience", issuer.Token(writer("billing")), "ok", "AUDIENCE_MISMATCH"},
			{"the method's other audience", issuer.Token(writer("office")), "ok", "AUDIENCE_MISMATCH"},
			{"both audiences", issuer.Token(writer("internal", "office")), "ok", "ok"},
			{"the verifier's audience", issuer.Token(writer("internal")), "AUDIENCE_MISMATCH", "ok"},
			{"the verifier's audience, no role", issuer.Token(reader("internal")), "AUDIENCE_MISMATCH", "ok"},
			{"the method's audience, no role", issuer.Token(reader("billing")), "ROLE_REQUIRED", "AUDIENCE_MISMATCH"},
			{"an expired token for the method", old[true], "TOKEN_EXPIRED", "AUDIENCE_MISMATCH"},
			{"an expired token for the verifier", old[false], "AUDIENCE_MISMATCH", "TOKEN_EXPIRED"},
		} {
			ctx := authntest.Bearer(t.Context(), test.token)
			for range 2 { // the second round finds each token in the cache
				for method, stream := range map[string]bool{notes + "Bill": false, notes + "WatchBills": true} {
					for where, conn := range map[string]*grpc.ClientConn{"WithAudience": own, "WithAnyAudience": any} {
						if _, err := call(ctx, conn, method, stream); name(err) != test.bill {
							t.Errorf("%s: %s, %s: %v, want %s", test.name, where, method, err, test.bill)
						}
					}
				}
				if _, err := call(ctx, ruled, notes+"List", false); name(err) != test.bill {
					t.Errorf("%s: List with WithMethodRule: %v, want %s", test.name, err, test.bill)
				}
				if _, err := call(ctx, own, notes+"List", false); name(err) != test.list {
					t.Errorf("%s: List: %v, want %s", test.name, err, test.list)
				}
			}
		}
	})
}

// A call refused for its audience or its roles tells the caller and the log which names were
// compared. The log gets one line a second at most.
func TestRefusalsSayWhatWasCompared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, log := authntest.New(), new(logBuffer)
		conn := serveNotes(t, issuer.NewVerifier(t, authn.WithAudience("internal"), authn.WithLogger(slog.New(slog.NewTextHandler(log, nil)))))
		for _, c := range []struct {
			user           authntest.User
			method         string
			caller, logged []string
		}{
			{authntest.User{Name: "alice", Audience: []string{"billing"}}, "List",
				[]string{"AUDIENCE", `"billing"`, `"internal"`}, []string{"another audience", "billing", "internal", "List"}},
			{authntest.User{Name: "alice", Roles: []string{"reader"}, Audience: []string{"internal"}}, "Add",
				[]string{"ROLE", `"reader"`, `"writer"`}, []string{"lacks the roles", "reader", "writer", "Add"}},
		} {
			for range 3 {
				_, err := call(authntest.Bearer(t.Context(), issuer.Token(c.user)), conn, notes+c.method, false)
				for _, text := range c.caller[1:] {
					if !strings.Contains(err.Error(), text) || !strings.HasPrefix(name(err), c.caller[0]) {
						t.Errorf("%s: %v, want %s", c.method, err, text)
					}
				}
			}
			lines := strings.Split(strings.TrimSpace(log.String()), "\n")
			last := lines[len(lines)-1]
			for _, text := range c.logged {
				if !strings.Contains(last, text) {
					t.Errorf("%s: the log has %q, want %s", c.method, last, text)
				}
			}
			if n := strings.Count(log.String(), c.logged[0]); n != 1 {
				t.Errorf("%s: %d lines", c.method, n)
			}
			time.Sleep(time.Second)
		}
	})
}

// The checks of an open stream ask for the method's audience too.
func TestStreamOfAMethodWithAnAudience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := authntest.New()
		listener, stop := serve(func(r *grpc.Server) {
			r.RegisterService(&grpc.ServiceDesc{ServiceName: "notes.v1.NotesService", Streams: []grpc.StreamDesc{{
				StreamName: "WatchBills", ServerStreams: true,
				Handler: func(_ any, stream grpc.ServerStream) error {
					if err := stream.SendMsg(caller(stream.Context())); err != nil {
						return err
					}
					<-stream.Context().Done()
					return stream.Context().Err()
				},
			}}}, nil)
		}, issuer.NewVerifier(t, authn.WithAudience("internal")).ServerOptions()...)
		t.Cleanup(stop)
		conn := dial(listener)
		t.Cleanup(func() { conn.Close() })
		raw := issuer.Token(authntest.User{Name: "alice", Roles: []string{"writer"}, Audience: []string{"billing"}})
		stream, err := conn.NewStream(authntest.Bearer(t.Context(), raw), &grpc.StreamDesc{ServerStreams: true}, notes+"WatchBills")
		check(t, err)
		check(t, stream.SendMsg(empty))
		check(t, stream.RecvMsg(newText()))
		ended := make(chan error, 1)
		go func() { ended <- stream.RecvMsg(newText()) }()
		time.Sleep(10 * time.Minute)
		select {
		case err := <-ended:
			t.Fatalf("the stream ended with a good token: %v", err)
		default:
		}
		issuer.EndSession(raw)
		if err := <-ended; name(err) != "TOKEN_REVOKED" {
			t.Error(err)
		}
	})
}

// A verifier refuses to start if a method's option has an audience that no call could satisfy,
// or that another rule contradicts.
func TestContradictionsOfAnAudience(t *testing.T) {
	for name, test := range map[string]struct {
		access *watchwordv1.Access
		opts   []authn.Option
		text   string
	}{
		"public":            {&watchwordv1.Access{Public: true, Audience: []string{"billing"}}, nil, "public"},
		"empty":             {&watchwordv1.Access{Audience: []string{"billing", ""}}, nil, "empty audience"},
		"WithPublicMethods": {&watchwordv1.Access{Audience: []string{"billing"}}, []authn.Option{authn.WithPublicMethods("/broken.v1.NotesService/Extra")}, "WithPublicMethods"},
	} {
		t.Run(name, func(t *testing.T) {
			register(t, notesFile("broken.v1", encoded(test.access)))
			_, err := authn.NewVerifier(t.Context(), newHandFed(), append(test.opts, authn.WithAudience("internal"))...)
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "/broken.v1.NotesService/Extra") || !strings.Contains(err.Error(), test.text) {
				t.Error(err)
			}
		})
	}
}

// forEverybody are the methods of Watchword that ask for no role. A new method is for admins,
// until a line is added here.
var forEverybody = []string{
	"AuthService/ChangePassword", "AuthService/ExchangeToken", "AuthService/Login", "AuthService/Logout", "AuthService/Refresh", "AuthService/Verify",
	"SessionService/ListSessions", "SessionService/RevokeSession", "SessionService/RevokeUserSessions", // these two methods serve a caller's own sessions
	"TrustService/GetKeySet", "TrustService/GetTime", "TrustService/ReportWatcher", "TrustService/WatchBundle",
}

// Every method in the descriptors of watchword.v1 asks for the role admin and for the audience
// watchword alone, unless the method is in forEverybody. The methods in forEverybody ask for
// neither, but DelegateToken asks for the audience. Every method that asks for a token refuses a
// delegated token, after the check of the audience and before the check of the role.
func TestAudienceOfAdminMethods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		conn := serveNotes(t, w.Verifier)
		var open []string
		judge := func(service protoreflect.ServiceDescriptor, m protoreflect.MethodDescriptor) {
			short := string(service.Name()) + "/" + string(m.Name())
			method := "/" + string(service.FullName()) + "/" + string(m.Name())
			var actors []token.Actor
			as := func(audience string, roles ...string) string {
				raw := mint(t, w.key, func(c *token.Claims) { c.Audience, c.Roles, c.Actors = []string{audience}, roles, actors })
				_, err := call(bearing(t.Context(), "Bearer "+raw), conn, method, true)
				return name(err)
			}
			if _, err := call(t.Context(), conn, method, true); name(err) == "TOKEN_MISSING" {
				actors = searching
				audience := map[bool]string{true: "internal", false: "watchword"}[slices.Contains(forEverybody, short)]
				got := []string{as(audience, "admin"), as(audience), as("other", "admin")}
				if want := []string{"DELEGATION_DENIED", "DELEGATION_DENIED", "AUDIENCE_MISMATCH"}; !slices.Equal(got, want) {
					t.Errorf("%s, delegated: %q, want %q", short, got, want)
				}
				actors = nil
			}
			if slices.Contains(forEverybody, short) {
				open = append(open, short)
				if got := as("internal"); got != "ok" { // the verifier's own audience
					t.Errorf("%s: %s", short, got)
				}
				return
			}
			got := []string{as("watchword", "admin"), as("watchword"), as("internal", "admin"), as("internal")}
			want := []string{"ok", "ROLE_REQUIRED", "AUDIENCE_MISMATCH", "AUDIENCE_MISMATCH"}
			if short == "AuthService/DelegateToken" { // the method is for service accounts, whatever their roles
				want[1] = "ok"
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", short, got, want)
			}
		}
		protoregistry.GlobalFiles.RangeFilesByPackage("watchword.v1", func(file protoreflect.FileDescriptor) bool {
			for i := range file.Services().Len() {
				service := file.Services().Get(i)
				for j := range service.Methods().Len() {
					judge(service, service.Methods().Get(j))
				}
			}
			return true
		})
		if slices.Sort(open); !slices.Equal(open, forEverybody) {
			t.Errorf("methods for everybody: %q, want %q", open, forEverybody)
		}
	})
}
