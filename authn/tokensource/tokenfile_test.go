package tokensource_test

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/jwt"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

var notesAccount = authntest.User{Name: "notes", Kind: watchwordv1.UserKind_USER_KIND_SERVICE, Lifetime: accessLife}

// A process with gRPC's own JWT file credentials calls a guarded service for two hours, by the
// file of a Source that no call uses, while Watchword is away for half of the time.
func TestTokenFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "access-token")
		issuer, auth := authntest.New(), startAuth(t)
		auth.mint = func(int) string { return issuer.Token(notesAccount) }
		source, err := tokensource.Workload(auth.dial(t, nil), tokensource.File(assertionFile(t, "a.b.c")), tokensource.WithTokenFile(path))
		check(t, err)
		defer source.Close()
		synctest.Wait()

		creds, err := jwt.NewTokenFileCallCredentials(path)
		check(t, err)
		verifier := issuer.NewVerifier(t, authn.WithAudience("test"), tokenNeeded(unaryMethod))
		conn := serve(t, func(*grpc.Server) {}, append(verifier.ServerOptions(), grpc.UnknownServiceHandler(new(guardedService).handle))...).
			dial(t, nil, grpc.WithPerRPCCredentials(creds), grpc.WithTransportCredentials(says{info: private}))
		seen := map[string]bool{}
		for i := range 2 * 360 {
			switch i % 18 {
			case 8: // Watchword is away for a minute and a half
				auth.when(always(refusal(codes.Unavailable, "ISSUER_UNAVAILABLE", "")), nil)
			case 17:
				auth.when(nil, nil)
			}
			raw, err := call(t.Context(), conn, unaryMethod, false)
			check(t, err)
			seen[raw] = true
			time.Sleep(10 * time.Second)
		}
		if len(seen) < 24 {
			t.Errorf("%d tokens of five minutes in two hours", len(seen))
		}
		info, err := os.Stat(path)
		check(t, err)
		if info.Mode() != 0o600 {
			t.Errorf("mode %v", info.Mode())
		}
		check(t, source.Close())
		if _, err := os.Stat(path); err != nil {
			t.Errorf("after Close: %v", err)
		}
	})
}

// If the token file cannot be written, calls still get tokens. The file is written as soon as
// the folder is there, with the present token. A token that a service has refused is removed
// from the file.
func TestTokenFileThatCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "later", "access-token")
		c := withWorkload(t, tokensource.File(assertionFile(t, "a.b.c")), tokensource.WithTokenFile(path))
		synctest.Wait()
		c.goesWith(t, "access-1")
		check(t, os.Mkdir(filepath.Dir(path), 0o700))
		time.Sleep(time.Minute)
		wantFile := func(want string) {
			t.Helper()
			synctest.Wait()
			if content, err := os.ReadFile(path); string(content) != want || err != nil {
				t.Fatalf("%q, %v; want %s", content, err, want)
			}
		}
		wantFile("access-1")
		saw(t, c.auth, "exchange:a.b.c")
		c.service.refuses(func(method, token string) error {
			if token == "access-1" {
				return refusal(codes.Unauthenticated, "TOKEN_REVOKED", method)
			}
			return nil
		})
		c.failsWith(t, "TOKEN_REVOKED")
		wantFile("access-2")
		saw(t, c.auth, "exchange:a.b.c") // the Source has asked for nothing more
	})
}
