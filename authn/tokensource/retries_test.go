package tokensource_test

import (
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// repeatable holds the methods of the API that Dial's connections call again.
var repeatable = map[string]bool{
	watchwordv1.AuthService_Login_FullMethodName:           true,
	watchwordv1.AuthService_Refresh_FullMethodName:         true,
	watchwordv1.AuthService_Verify_FullMethodName:          true,
	watchwordv1.AuthService_Logout_FullMethodName:          true,
	watchwordv1.TrustService_GetKeySet_FullMethodName:      true,
	watchwordv1.TrustService_ListWatchers_FullMethodName:   true,
	watchwordv1.UserService_GetUser_FullMethodName:         true,
	watchwordv1.UserService_ListUsers_FullMethodName:       true,
	watchwordv1.SessionService_ListSessions_FullMethodName: true,
	watchwordv1.KeyService_ListKeys_FullMethodName:         true,
	watchwordv1.AuditService_ListEvents_FullMethodName:     true,

	watchwordv1.AuthService_ExchangeToken_FullMethodName:      true,
	watchwordv1.AuthService_DelegateToken_FullMethodName:      true,
	watchwordv1.FederationService_GetIssuer_FullMethodName:    true,
	watchwordv1.FederationService_ListIssuers_FullMethodName:  true,
	watchwordv1.FederationService_ListBindings_FullMethodName: true,
}

// Of every method of the API, a call is sent five times if a second call does no harm, and
// otherwise once. The option RoundRobin changes nothing about the number.
func TestDialCallsAgain(t *testing.T) {
	for name, opts := range map[string][]grpc.DialOption{
		"Dial": nil, "RoundRobin": {tokensource.RoundRobin()}, "the manual": {grpc.WithDefaultServiceConfig(manualConfig(t))},
	} {
		synctest.Test(t, func(t *testing.T) {
			service := startWatched(t)
			var mu sync.Mutex
			attempts := map[string]int{}
			service.refuses(func(method, _ string) error {
				mu.Lock()
				defer mu.Unlock()
				attempts[method]++
				return status.Error(codes.Unavailable, "the server is stopping")
			})
			conn, _, _, _ := dialSevered(t, service, opts...)
			var found int
			protoregistry.GlobalFiles.RangeFilesByPackage("watchword.v1", func(file protoreflect.FileDescriptor) bool {
				for i := range file.Services().Len() {
					for j := range file.Services().Get(i).Methods().Len() {
						m := file.Services().Get(i).Methods().Get(j)
						method := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
						err := conn.Invoke(t.Context(), method, new(emptypb.Empty), new(emptypb.Empty))
						want := 1
						if repeatable[method] {
							want, found = 5, found+1
						}
						if status.Code(err) != codes.Unavailable || attempts[method] != want {
							t.Errorf("%s: %s was sent %d times, want %d; %v", name, method, attempts[method], want, err)
						}
					}
				}
				return true
			})
			if found != len(repeatable) {
				t.Errorf("%s: the API has %d of the %d methods", name, found, len(repeatable))
			}
		})
	}
}

// manualConfig returns the service config for other languages in docs/migrations.md.
func manualConfig(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/migrations.md")
	check(t, err)
	_, after, begins := strings.Cut(string(text), "```json\n")
	config, _, ends := strings.Cut(after, "```")
	if !begins || !ends {
		t.Fatal("docs/migrations.md has no block of JSON")
	}
	return config
}

// While every replica is away, the client stops retrying after some calls, and then sends each
// call once.
func TestRetriesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := startWatched(t)
		var mu sync.Mutex
		attempts := 0
		service.refuses(func(string, string) error {
			mu.Lock()
			defer mu.Unlock()
			attempts++
			return status.Error(codes.Unavailable, "the server is stopping")
		})
		conn, _, _, _ := dialSevered(t, service)
		const calls = 1000
		for range calls {
			_ = conn.Invoke(t.Context(), watchwordv1.AuthService_Verify_FullMethodName, new(emptypb.Empty), new(emptypb.Empty))
		}
		if retried := attempts - calls; retried == 0 || retried > 250 {
			t.Errorf("%d calls were sent again %d times, want 250 times at most", calls, retried)
		}
	})
}
