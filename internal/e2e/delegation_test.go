package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	tokens "github.com/watchword-auth/watchword/internal/issuer"
	statuses "github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
)

// hop is a service of a chain: service i is one of the services for the audience "s"+i, and may
// carry its callers' identity on to the next service.
type hop struct {
	audience string
	account  *watchwordv1.User
	own      *watchwordv1.TokenPair // a token for watchword
	verifier *authn.Verifier        // accepts tokens for the audience
	shown    string                 // the token with which Alice, or the service before, calls the service
}

// chain is a server with Alice, and five services that call each other in her name.
type chain struct {
	*server
	c     *client
	admin *watchwordv1.TokenPair // for watchword
	alice *watchwordv1.TokenPair // for the first service
	links []*hop
}

func startChain(t *testing.T, args ...string) *chain {
	t.Helper()
	for i := range 5 {
		args = append(args, "--audience", fmt.Sprint("s", i))
	}
	s := serve(t, t.TempDir(), args...)
	ch := &chain{server: s, c: dial(t, s.grpcAddr)}
	ch.admin = ch.c.login(t, "admin", s.admin, "watchword")
	password := newPassword()
	ch.c.create(t, ch.admin, "alice", password, "reader")
	for i := range 5 {
		l := &hop{audience: fmt.Sprint("s", i)}
		request := &watchwordv1.CreateUserRequest{Username: fmt.Sprint("service", i), Kind: watchwordv1.UserKind_USER_KIND_SERVICE, Audiences: []string{l.audience}}
		if i < 4 {
			request.DelegatesTo = []string{fmt.Sprint("s", i+1)}
		}
		made, err := ch.c.CreateUser(bearer(callCtx(t), ch.admin), request)
		if err != nil {
			t.Fatal(err)
		}
		l.account = made.GetUser()
		l.verifier = ch.verifierFor(t, l.audience)
		ch.links = append(ch.links, l)
	}
	ch.signServicesIn(t)
	ch.alice = ch.c.login(t, "alice", password, "s0")
	ch.call(t)
	return ch
}

// verifierFor returns a verifier with a connection of its own.
func (ch *chain) verifierFor(t *testing.T, audience string) *authn.Verifier {
	t.Helper()
	v, err := authn.NewVerifier(callCtx(t), dialConn(t, ch.grpcAddr, insecure.NewCredentials()), authn.WithAudience(audience), authn.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

// signServicesIn mints the services' own tokens for watchword, with the server's master key.
func (ch *chain) signServicesIn(t *testing.T) {
	t.Helper()
	s, err := store.Open(t.Context(), database(ch.dir))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	master, err := seal.Load(filepath.Join(ch.dir, "watchword.db.master-key"))
	if err != nil {
		t.Fatal(err)
	}
	keys := tokens.NewKeySet(master, slog.New(slog.DiscardHandler))
	if err := keys.Load(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	mint := tokens.New(s, keys, "http://"+ch.httpAddr, "", 5*time.Minute)
	for _, l := range ch.links {
		err := s.Read(t.Context(), func(tx *store.Tx) error {
			row, err := tx.User(l.account.GetId())
			if err != nil {
				return err
			}
			l.account.Disabled = row.Disabled
			l.own, err = &watchwordv1.TokenPair{}, nil
			l.own.AccessToken, _, err = mint.Mint(t.Context(), tx.Now(), tokens.Subject{
				UserID: row.ID, Username: row.Username, Version: row.TokenVersion(), Audience: []string{"watchword"},
			})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		noteSecret(l.own.GetAccessToken())
	}
}

// delegate calls DelegateToken as a service.
func (ch *chain) delegate(t *testing.T, own, subject, audience string) (string, error) {
	t.Helper()
	resp, err := ch.c.DelegateToken(bearer(callCtx(t), &watchwordv1.TokenPair{AccessToken: own}), &watchwordv1.DelegateTokenRequest{SubjectToken: subject, Audience: audience})
	return noteSecret(resp.GetAccessToken()), err
}

// call makes the tokens with which the services are called: Alice calls the first service, and
// each service calls the next one.
func (ch *chain) call(t *testing.T) {
	t.Helper()
	ch.links[0].shown = ch.alice.GetAccessToken()
	for i, l := range ch.links[:4] {
		var err error
		if ch.links[i+1].shown, err = ch.delegate(t, l.own.GetAccessToken(), l.shown, ch.links[i+1].audience); err != nil {
			t.Fatalf("service %d: %v", i, err)
		}
	}
}

// reason returns the reason of an error, and "ok" for nil.
func reason(err error) string {
	if err == nil {
		return "ok"
	}
	return strings.TrimPrefix(authn.Reason(err).String(), "ERROR_REASON_")
}

// verdicts returns what each service answers to the token that it is called with.
func (ch *chain) verdicts(ctx context.Context) (all []string) {
	for _, l := range ch.links {
		_, err := l.verifier.Verify(ctx, l.shown)
		all = append(all, reason(err))
	}
	return all
}

// Five services call each other in Alice's name. Every token is tried at every service, and as
// the own token and as the subject's token of every delegation: no token works where it is not
// for. A disabled service takes back what it holds, and nothing else. After a logout, no service
// accepts its token.
func TestAChainOfServices(t *testing.T) {
	ch := startChain(t)
	shown := []string{}
	for _, l := range ch.links {
		shown = append(shown, l.shown)
	}
	for _, l := range ch.links {
		shown = append(shown, l.own.GetAccessToken())
	}
	for at, l := range ch.links {
		for n, raw := range shown {
			want := "AUDIENCE_MISMATCH"
			if n == at {
				want = "ok"
			}
			p, err := l.verifier.Verify(t.Context(), raw)
			if got := reason(err); got != want {
				t.Errorf("token %d at service %d: %s, want %s", n, at, got, want)
			}
			if err == nil && (p.Username() != "alice" || len(p.Actors()) != at || at > 0 && p.Actors()[0].Subject() != ch.links[at-1].account.GetId()) {
				t.Errorf("token %d: %v, by %v", n, p, p.Actors())
			}
		}
	}
	for n, own := range shown {
		_, err := ch.c.ListUsers(bearer(callCtx(t), &watchwordv1.TokenPair{AccessToken: own}), &watchwordv1.ListUsersRequest{})
		if got := reason(err); n < 5 && got != "AUDIENCE_MISMATCH" || n >= 5 && got != "ROLE_REQUIRED" {
			t.Errorf("token %d at UserService: %s", n, got)
		}
		for m, subject := range shown {
			for a := range 5 {
				_, err := ch.delegate(t, own, subject, fmt.Sprint("s", a))
				want := "DELEGATION_DENIED"
				switch {
				case n < 5:
					want = "AUDIENCE_MISMATCH" // no token for watchword
				case m == n-5 && a == m+1:
					want = "ok"
				}
				if got := reason(err); got != want {
					t.Errorf("token %d delegates token %d to s%d: %s, want %s", n, m, a, got, want)
				}
			}
		}
	}
	ch.withdrawAKey(t)
	ch.disableTheMiddle(t)
	if err := ch.c.logout(callCtx(t), ch.alice); err != nil {
		t.Fatal(err)
	}
	ch.await(t, []string{"TOKEN_REVOKED", "TOKEN_REVOKED", "TOKEN_REVOKED", "TOKEN_REVOKED", "TOKEN_REVOKED"})
	_, err := ch.delegate(t, ch.links[3].own.GetAccessToken(), ch.links[3].shown, "s4")
	why, method := statuses.SubjectReason(err), statuses.Method(err)
	if got := reason(err); got != "SUBJECT_TOKEN_REFUSED" || why != watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED || method != "" {
		t.Errorf("%s for %v, and the method %q: the service's own token is good", got, why, method)
	}
	for _, want := range []string{`"service0"`, `"audience: s1"`, `"DELEGATION_DENIED"`, `"SUBJECT_TOKEN_REFUSED"`, `"subject_reason: TOKEN_REVOKED"`} { // the counts are written within a second
		eventually(t, 10*time.Second, "the record of delegations", func() error {
			r := cli(t, ch.dir, "", "audit", "--type", "token.delegated", "--json")
			if !strings.Contains(r.stdout, want) {
				return fmt.Errorf("no %s in %s", want, r.stdout)
			}
			return nil
		})
	}
}

// await waits until every service knows what has happened.
func (ch *chain) await(t *testing.T, want []string) {
	t.Helper()
	eventually(t, propagation, "the services", func() error {
		if got := ch.verdicts(t.Context()); !slices.Equal(got, want) {
			return fmt.Errorf("%q, want %q", got, want)
		}
		return nil
	})
}

// withdrawAKey withdraws a key at the command line. The key has signed nothing, but what was
// delegated might stem from a token of the key. New delegated tokens are good at once.
func (ch *chain) withdrawAKey(t *testing.T) {
	t.Helper()
	var next string
	for line := range strings.Lines(cli(t, ch.dir, "", "key", "list", "--json").stdout) {
		var key struct{ KID, State string }
		if err := json.Unmarshal([]byte(line), &key); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(key.State, "_NEXT") {
			next = key.KID
		}
	}
	wantExit(t, 0, cli(t, ch.dir, "", "key", "revoke", next))
	ch.await(t, []string{"ok", "TOKEN_INVALID", "TOKEN_INVALID", "TOKEN_INVALID", "TOKEN_INVALID"})
	ch.call(t)
	ch.await(t, []string{"ok", "ok", "ok", "ok", "ok"})
}

// disableTheMiddle disables service 2 for a while. Tokens in which service 2 is an actor are
// revoked. New ones are good after service 2 is enabled again.
func (ch *chain) disableTheMiddle(t *testing.T) {
	t.Helper()
	middle := ch.links[2]
	set := func(disabled bool) {
		if _, err := ch.c.UpdateUser(bearer(callCtx(t), ch.admin), &watchwordv1.UpdateUserRequest{
			User: &watchwordv1.User{Id: middle.account.GetId(), Disabled: disabled}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"disabled"}},
		}); err != nil {
			t.Fatal(err)
		}
	}
	set(true)
	ch.await(t, []string{"ok", "ok", "ok", "TOKEN_REVOKED", "TOKEN_REVOKED"})
	for i, want := range []string{"ok", "ok", "TOKEN_REVOKED", "SUBJECT_TOKEN_REFUSED"} {
		l := ch.links[i]
		if _, err := ch.delegate(t, l.own.GetAccessToken(), l.shown, fmt.Sprint("s", i+1)); reason(err) != want {
			t.Errorf("service %d delegates: %s, want %s", i, reason(err), want)
		}
	}
	set(false)
	ch.signServicesIn(t)
	ch.call(t)
	ch.await(t, []string{"ok", "ok", "ok", "ok", "ok"})
}

// After a logout, 200 verifiers refuse the tokens of a chain: those of the last service as soon as
// those of the first.
func TestSlowALogoutReachesTheLastService(t *testing.T) {
	slow(t)
	ch := startChain(t)
	const each = 40
	verifiers := make([][]*authn.Verifier, len(ch.links))
	for i, l := range ch.links {
		for range each {
			v := ch.verifierFor(t, l.audience)
			if _, err := v.Verify(t.Context(), l.shown); err != nil {
				t.Fatal(err)
			}
			verifiers[i] = append(verifiers[i], v)
		}
	}
	began := time.Now()
	if err := ch.c.logout(callCtx(t), ch.alice); err != nil {
		t.Fatal(err)
	}
	answered := time.Now()
	took := make([][]time.Duration, len(ch.links))
	var mu sync.Mutex
	var tasks sync.WaitGroup
	for i, l := range ch.links {
		for _, v := range verifiers[i] {
			tasks.Go(func() {
				for time.Since(answered) < propagation {
					if _, err := v.Verify(t.Context(), l.shown); reason(err) == "TOKEN_REVOKED" {
						break
					}
					time.Sleep(time.Millisecond)
				}
				mu.Lock()
				defer mu.Unlock()
				took[i] = append(took[i], time.Since(answered))
			})
		}
	}
	tasks.Wait()
	var all []time.Duration
	for i := range took {
		slices.Sort(took[i])
		t.Logf("service %d: %d verifiers refused within %v of the logout's answer, half of them within %v", i, each, took[i][each-1], took[i][each/2])
		all = append(all, took[i]...)
	}
	slices.SortFunc(all, cmp.Compare[time.Duration])
	t.Logf("the logout took %v; of %d verifiers 99 in 100 refused within %v of its answer", answered.Sub(began), len(all), all[len(all)*99/100-1])
	if slowest := all[len(all)-1]; slowest >= propagation {
		t.Errorf("a verifier still accepts its token after %v", slowest)
	}
}
