package authn_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

func TestCheckServices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, authn.WithPublicMethods(notes+"List", "/grpc.health.v1.Health/*", "/gone.v1.Gone/*", notes+"Wacth"), tokenNeeded(notes+"Lits"))
		server := grpc.NewServer(w.ServerOptions()...)
		registerNotes(server, "notes.v1.NotesService")
		healthpb.RegisterHealthServer(server, health.NewServer())
		err := w.CheckServices(server.GetServiceInfo())
		if status.Code(err) != codes.FailedPrecondition {
			t.Fatal(err)
		}
		lines := strings.Split(err.Error(), "\n\t")[1:]
		want := []string{"/gone.v1.Gone/*: named in WithPublicMethods", notes + "Lits: named in WithMethodRule", notes + "Wacth: named in", notes + "Watch: no rule"}
		if len(lines) != len(want) || !slices.EqualFunc(lines, want, strings.HasPrefix) {
			t.Errorf("%q, want %q", lines, want)
		}

		// Every method of Watchword's own services has a rule.
		fine := start(t)
		own := grpc.NewServer(fine.ServerOptions()...)
		watchwordv1.RegisterAuthServiceServer(own, watchwordv1.UnimplementedAuthServiceServer{})
		watchwordv1.RegisterTrustServiceServer(own, watchwordv1.UnimplementedTrustServiceServer{})
		watchwordv1.RegisterUserServiceServer(own, watchwordv1.UnimplementedUserServiceServer{})
		watchwordv1.RegisterSessionServiceServer(own, watchwordv1.UnimplementedSessionServiceServer{})
		watchwordv1.RegisterKeyServiceServer(own, watchwordv1.UnimplementedKeyServiceServer{})
		watchwordv1.RegisterAuditServiceServer(own, watchwordv1.UnimplementedAuditServiceServer{})
		if err := fine.CheckServices(own.GetServiceInfo()); err != nil {
			t.Error(err)
		}
	})
}

// A guarded service must not ask for tokens with the audience of Watchword's admins; Watchword
// itself is allowed to ask for such tokens.
func TestCheckServicesFindsTheAdminsAudience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := authntest.New()
		byRule := func(audience string) authn.Option {
			return authn.WithMethodRule("/pay.v1.Pay/*", &watchwordv1.Access{Audience: []string{"billing", audience}})
		}
		pay := grpc.ServiceInfo{Methods: []grpc.MethodInfo{{Name: "Send"}}}
		for name, test := range map[string]struct {
			opts  []authn.Option
			wrong []string
		}{
			"own audience":      {[]authn.Option{authn.WithAudience("pay"), byRule("pay")}, nil},
			"the verifier's":    {[]authn.Option{authn.WithAudience("pay", "watchword"), byRule("pay")}, []string{"WithAudience: "}},
			"a rule's":          {[]authn.Option{authn.WithAudience("pay"), byRule("watchword")}, []string{"/pay.v1.Pay/Send: "}},
			"both":              {[]authn.Option{authn.WithAudience("watchword"), byRule("watchword")}, []string{"/pay.v1.Pay/Send: ", "WithAudience: "}},
			"any, and a rule's": {[]authn.Option{authn.WithAnyAudience(), byRule("watchword")}, []string{"/pay.v1.Pay/Send: "}},
		} {
			v := issuer.NewVerifier(t, test.opts...)
			v.ServerOptions()
			services := map[string]grpc.ServiceInfo{"pay.v1.Pay": pay}
			var lines []string
			if err := v.CheckServices(services); err != nil {
				lines = strings.Split(err.Error(), "\n\t")[1:]
			}
			if !slices.EqualFunc(lines, test.wrong, strings.HasPrefix) || slices.ContainsFunc(lines, func(line string) bool { return !strings.Contains(line, "audience watchword") }) {
				t.Errorf("%s: %q, want %q", name, lines, test.wrong)
			}
			services["watchword.v1.AuthService"] = grpc.ServiceInfo{}
			check(t, v.CheckServices(services))
		}
	})
}

// register adds descriptors to the program's descriptors until the end of the test.
func register(t *testing.T, files ...protoreflect.FileDescriptor) {
	t.Helper()
	all, before := new(protoregistry.Files), protoregistry.GlobalFiles
	add := func(f protoreflect.FileDescriptor) bool {
		if err := all.RegisterFile(f); err != nil {
			t.Error(err)
		}
		return true
	}
	before.RangeFiles(add)
	for _, f := range files {
		add(f)
	}
	protoregistry.GlobalFiles = all
	t.Cleanup(func() { protoregistry.GlobalFiles = before })
}

// If a server takes only one of the verifier's two interceptors, CheckServices names the
// interceptor that is missing.
func TestCheckServicesMissesAnInterceptor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, test := range map[string]struct {
			take func(*authn.Verifier)
			want []string // kinds of calls that are not guarded
		}{
			"none":        {func(*authn.Verifier) {}, []string{"unary", "streaming"}},
			"unary":       {func(v *authn.Verifier) { v.UnaryServerInterceptor() }, []string{"streaming"}},
			"stream":      {func(v *authn.Verifier) { v.StreamServerInterceptor() }, []string{"unary"}},
			"one by one":  {func(v *authn.Verifier) { v.StreamServerInterceptor(); v.UnaryServerInterceptor() }, nil},
			"by options":  {func(v *authn.Verifier) { v.ServerOptions() }, nil},
			"another one": {func(*authn.Verifier) { start(t).ServerOptions() }, []string{"unary", "streaming"}},
		} {
			w := start(t)
			test.take(w.Verifier)
			err := w.CheckServices(nil)
			var missing []string
			for _, kind := range []string{"unary", "streaming"} {
				if err != nil && strings.Contains(err.Error(), "interceptor for "+kind+" calls") {
					missing = append(missing, kind)
				}
			}
			if !slices.Equal(missing, test.want) || (err != nil) != (test.want != nil) {
				t.Errorf("%s: %v, want %q", name, err, test.want)
			}
		}
	})
}

// unusable has options that no verifier can act on. Every call of such a method is refused.
var unusable = map[string]struct {
	option []byte
	want   string // a part of the error at the start
}{
	"contradiction":    {encoded(&watchwordv1.Access{Public: true, Roles: []string{"admin"}}), "is public, and sets another field too"},
	"role of capitals": {encoded(&watchwordv1.Access{Roles: []string{"reader", "Admin"}}), `no user can have the role "Admin"`},
	"empty role":       {encoded(&watchwordv1.Access{Roles: []string{""}}), `no user can have the role ""`},
	"role of blanks":   {encoded(&watchwordv1.Access{Roles: []string{"admin "}}), `no user can have the role "admin "`},
	"two in one":       {encoded(&watchwordv1.Access{Roles: []string{"admin,editor"}}), `no user can have the role "admin,editor"`},
	"role too long":    {encoded(&watchwordv1.Access{Roles: []string{strings.Repeat("a", 65)}}), "no user can have the role"},
	"from the future":  {append(encoded(&watchwordv1.Access{Roles: []string{"reader"}}), 0xf8, 0x7f, 1), "update Watchword's module"},
	"only the future":  {[]byte{0xf8, 0x7f, 1}, "update Watchword's module"},
	"public, and more": {append(encoded(&watchwordv1.Access{Public: true}), 0xf8, 0x7f, 1), "update Watchword's module"},
	"not a message":    {[]byte{0xff}, "cannot be read"},
	"not UTF-8":        {[]byte{0x12, 1, 0xff}, "cannot be read"},
}

func encoded(access *watchwordv1.Access) []byte {
	raw, err := proto.Marshal(access)
	if err != nil {
		panic(err)
	}
	return raw
}

func TestUnusableOptions(t *testing.T) {
	for name, test := range unusable {
		t.Run(name, func(t *testing.T) {
			register(t, notesFile("broken.v1", test.option))
			_, err := authn.NewVerifier(t.Context(), newHandFed(), authn.WithAudience("internal"))
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "/broken.v1.NotesService/Extra: ") || !strings.Contains(err.Error(), test.want) {
				t.Error(err)
			}
		})
	}
}

// If a descriptor registered after NewVerifier has an option that cannot be used, CheckServices
// and each call return an error.
func TestUnusableOptionInALateDescriptor(t *testing.T) {
	for name, test := range unusable {
		t.Run(name, func(t *testing.T) { unusableLate(t, test.option) })
	}
}

func unusableLate(t *testing.T, option []byte) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		register(t, notesFile("broken.v1", option))
		const method = "/broken.v1.NotesService/Extra"
		err := w.CheckServices(map[string]grpc.ServiceInfo{"broken.v1.NotesService": {Methods: []grpc.MethodInfo{{Name: "Extra"}}}})
		if err == nil || !strings.Contains(err.Error(), method) {
			t.Error(err)
		}
		conn := serveNotes(t, w.Verifier)
		ctx := bearing(t.Context(), "Bearer "+mint(t, w.key, func(c *token.Claims) { c.Roles = []string{"admin"} }))
		if _, err := call(ctx, conn, method, true); status.Code(err) != codes.Internal || strings.Contains(err.Error(), "roles") {
			t.Error(err)
		}
	})
}

// An undecoded option counts, also for a method called before its descriptor was registered.
func TestOptionOfALateDescriptor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, tokenNeeded("/late.v1/*"))
		conn := serveNotes(t, w.Verifier)
		ctx := bearing(t.Context(), "Bearer "+mint(t, w.key))
		const method = "/late.v1.NotesService/Extra"
		if caller, err := call(ctx, conn, method, true); status.Code(err) != codes.PermissionDenied || caller != "" {
			t.Errorf("before: %q, %v", caller, err)
		}
		register(t, notesFile("late.v1", encoded(&watchwordv1.Access{Roles: []string{"admin"}})))
		_, err := call(ctx, conn, method, true)
		refusedBy(t, err, codes.PermissionDenied, "ROLE_REQUIRED", method)

		// A method with a similar name does not get the rule.
		if caller, err := call(ctx, conn, "/late.v1/NotesService.Extra", true); err != nil || caller != "alice" {
			t.Errorf("%q, %v", caller, err)
		}
	})
}

// A public pattern for a whole service opens the methods without an option, and no method that
// has an option of its own: not a method with the empty option, and not a method with roles.
func TestAPatternForAServiceLeavesOptionsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, authn.WithPublicMethods(notes+"*", notes+"About"))
		conn := serveNotes(t, w.Verifier)
		for _, m := range notesMethods {
			caller, err := call(t.Context(), conn, notes+m.name, m.stream)
			if m.access == nil || m.access.GetPublic() {
				if err != nil || caller != "no principal" {
					t.Errorf("%s: %q, %v", m.name, caller, err)
				}
				continue
			}
			refusedBy(t, err, codes.Unauthenticated, "TOKEN_MISSING", notes+m.name)
		}
		reader := bearing(t.Context(), "Bearer "+mint(t, w.key))
		_, err := call(reader, conn, notes+"Add", false)
		refusedBy(t, err, codes.PermissionDenied, "ROLE_REQUIRED", notes+"Add")
		w.ServerOptions()
		server := grpc.NewServer()
		registerNotes(server, "notes.v1.NotesService")
		check(t, w.CheckServices(server.GetServiceInfo()))
	})
}
