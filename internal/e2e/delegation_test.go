package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	statuses "github.com/watchword-auth/watchword/internal/refusal"
)

// A hop is a service of a chain, with a guarded gRPC server in this process. Service i is one of
// the services for the audience "s"+i, and calls the next service on behalf of its callers.
type hop struct {
	audience string
	account  *watchwordv1.User
	own      *watchwordv1.TokenPair // a token for watchword, as the service's source has one
	verifier *authn.Verifier        // accepts tokens for the audience
	conn     *grpc.ClientConn       // leads to the service, without credentials
	next     *grpc.ClientConn       // from the service to the next one, by OnBehalfOf; nil: the last service
	shown    string                 // the token with which Alice, or the service before, called the service last
}

// chain is a server with Alice, and five services that call each other in her name.
type chain struct {
	*server
	c        *client
	issuer   string                   // the issuer of the server, and so the audience of assertions
	platform *authntest.ForeignIssuer // the platform of the services, which signs their assertions
	admin    *watchwordv1.TokenPair   // tokens of admin for the audience watchword
	alice    *watchwordv1.TokenPair   // tokens of alice for the first service
	links    []*hop
}

func startChain(t *testing.T, args ...string) *chain {
	t.Helper()
	s := serve(t, t.TempDir(), append(args, chainAudiences...)...)
	return newChain(t, s, "http://"+s.httpAddr, 5)
}

// chainAudiences are the flags of a server for a chain of five services, s0 to s4.
var chainAudiences = []string{"--audience", "s0", "--audience", "s1", "--audience", "s2", "--audience", "s3", "--audience", "s4"}

// newChain makes a chain of the given number of services, on a server with an issuer.
func newChain(t *testing.T, s *server, issuer string, services int) *chain {
	t.Helper()
	ch := &chain{server: s, c: dial(t, s.grpcAddr), issuer: issuer, platform: authntest.NewForeignIssuer("https://platform.test"), links: make([]*hop, services)}
	ch.admin = ch.c.login(t, "admin", s.admin, "watchword")
	password := newPassword()
	ch.c.create(t, ch.admin, "alice", password, "reader")
	trusted := &watchwordv1.Issuer{Name: "platform", Issuer: "https://platform.test", Keys: &watchwordv1.Issuer_Jwks{Jwks: ch.platform.JWKS()}}
	if _, err := watchwordv1.NewFederationServiceClient(ch.c.conn).CreateIssuer(bearer(callCtx(t), ch.admin), &watchwordv1.CreateIssuerRequest{Issuer: trusted}); err != nil {
		t.Fatal(err)
	}
	for i := range ch.links {
		l := &hop{audience: fmt.Sprint("s", i)}
		l.account = ch.account(t, i)
		l.verifier = ch.verifierFor(t, l.audience)
		l.serve(t)
		ch.links[i] = l
	}
	for i := range ch.links {
		ch.signIn(t, i)
	}
	ch.alice = ch.c.login(t, "alice", password, "s0")
	if _, err := ch.call(t, services-1); err != nil {
		t.Fatal(err)
	}
	return ch
}

// account makes the account of service i, and binds the account to assertions of the platform.
func (ch *chain) account(t *testing.T, i int) *watchwordv1.User {
	t.Helper()
	request := &watchwordv1.CreateUserRequest{Username: fmt.Sprint("service", i), Kind: watchwordv1.UserKind_USER_KIND_SERVICE, Audiences: []string{fmt.Sprint("s", i)}}
	if i < len(ch.links)-1 {
		request.DelegatesTo = []string{fmt.Sprint("s", i+1)}
	}
	made, err := ch.c.CreateUser(bearer(callCtx(t), ch.admin), request)
	if err != nil {
		t.Fatal(err)
	}
	binding := &watchwordv1.Binding{Issuer: "platform", Subject: request.GetUsername(), UserId: made.GetUser().GetId()}
	if _, err := watchwordv1.NewFederationServiceClient(ch.c.conn).CreateBinding(bearer(callCtx(t), ch.admin), &watchwordv1.CreateBindingRequest{Binding: binding}); err != nil {
		t.Fatal(err)
	}
	return made.GetUser()
}

// verifierFor returns a verifier with a connection of its own.
func (ch *chain) verifierFor(t *testing.T, audience string) *authn.Verifier {
	t.Helper()
	v, err := authn.NewVerifier(callCtx(t), dialConn(t, ch.grpcAddr, insecure.NewCredentials()), authn.WithAudience(audience),
		authn.WithMethodRule(chainMethod, &watchwordv1.Access{}), authn.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

// signIn lets service i sign in by the platform's assertions, as a service does when it starts.
func (ch *chain) signIn(t *testing.T, i int) {
	t.Helper()
	l := ch.links[i]
	assertion := func(context.Context) (string, error) {
		return noteSecret(ch.platform.Assertion(l.account.GetUsername(), ch.issuer, nil)), nil
	}
	subject, _ := assertion(t.Context())
	resp, err := ch.c.ExchangeToken(callCtx(t), &watchwordv1.ExchangeTokenRequest{SubjectToken: subject, Audience: []string{"watchword"}})
	if err != nil {
		t.Fatal(err)
	}
	l.own = noteTokens(&watchwordv1.TokenPair{AccessToken: resp.GetAccessToken()})
	if i == len(ch.links)-1 {
		return
	}
	source, err := tokensource.Workload(ch.c.conn, assertion)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { source.Close() })
	next := ch.links[i+1]
	l.next, err = grpc.NewClient(next.conn.Target(), append(tokensource.OnBehalfOf(source, ch.c.conn, next.audience), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.next.Close() })
}

const chainMethod = "/chain.Service/Call"

// serve runs the service on loopback. The one method calls as many further services as the
// request says, and returns how many services were called.
func (l *hop) serve(t *testing.T) {
	t.Helper()
	server := grpc.NewServer(l.verifier.ServerOptions()...)
	server.RegisterService(&grpc.ServiceDesc{ServiceName: "chain.Service", Methods: []grpc.MethodDesc{{MethodName: "Call",
		Handler: func(_ any, ctx context.Context, decode func(any) error, guard grpc.UnaryServerInterceptor) (any, error) {
			further := new(wrapperspb.Int32Value)
			if err := decode(further); err != nil {
				return nil, err
			}
			return guard(ctx, further, &grpc.UnaryServerInfo{FullMethod: chainMethod}, func(ctx context.Context, _ any) (any, error) {
				return l.handle(ctx, further.GetValue())
			})
		},
	}}}, nil)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	l.conn = dialConn(t, listener.Addr().String(), insecure.NewCredentials())
}

func (l *hop) handle(ctx context.Context, further int32) (*wrapperspb.Int32Value, error) {
	l.shown = noteSecret(strings.TrimPrefix(metadata.ValueFromIncomingContext(ctx, "authorization")[0], "Bearer "))
	answer := new(wrapperspb.Int32Value)
	if further > 0 {
		if err := l.next.Invoke(ctx, chainMethod, wrapperspb.Int32(further-1), answer); err != nil {
			return nil, err
		}
	}
	answer.Value++
	return answer, nil
}

// call lets Alice call the first service, which calls as many further services as further says.
func (ch *chain) call(t *testing.T, further int) (called int32, err error) {
	t.Helper()
	answer := new(wrapperspb.Int32Value)
	err = ch.links[0].conn.Invoke(bearer(callCtx(t), ch.alice), chainMethod, wrapperspb.Int32(int32(further)), answer)
	return answer.GetValue(), err
}

// wantCall checks that Alice's call reaches five services.
func (ch *chain) wantCall(t *testing.T) {
	t.Helper()
	if called, err := ch.call(t, 4); called != 5 || err != nil {
		t.Errorf("the call reached %d services: %v", called, err)
	}
}

// ask calls a service alone, with a token.
func (l *hop) ask(ctx context.Context, raw string) error {
	return l.conn.Invoke(bearer(ctx, &watchwordv1.TokenPair{AccessToken: raw}), chainMethod, wrapperspb.Int32(0), new(wrapperspb.Int32Value))
}

// delegate calls DelegateToken as a service.
func (ch *chain) delegate(t *testing.T, own, subject, audience string) (string, error) {
	t.Helper()
	resp, err := ch.c.DelegateToken(bearer(callCtx(t), &watchwordv1.TokenPair{AccessToken: own}), &watchwordv1.DelegateTokenRequest{SubjectToken: subject, Audience: audience})
	return noteSecret(resp.GetAccessToken()), err
}

// reason returns the reason of an error, and "ok" for nil.
func reason(err error) string {
	if err == nil {
		return "ok"
	}
	return strings.TrimPrefix(authn.Reason(err).String(), "ERROR_REASON_")
}

// verdicts returns what each service answers to a call with the token that it was called with
// last.
func (ch *chain) verdicts(ctx context.Context) (all []string) {
	for _, l := range ch.links {
		all = append(all, reason(l.ask(ctx, l.shown)))
	}
	return all
}

// Five services call each other in Alice's name, by OnBehalfOf. Every token is tried at every
// service, and as the own token and as the subject's token of every delegation: each token works
// only at the service that the token is for. A disabled service takes back what the service holds,
// and nothing else. After a logout, no service accepts a token of the session.
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
			if got := reason(l.ask(callCtx(t), raw)); got != want {
				t.Errorf("token %d at service %d: %s, want %s", n, at, got, want)
			}
			p, err := l.verifier.Verify(t.Context(), raw)
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
	ch.explains(t)
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

// explains checks what `watchword explain` says of refused tokens of a service: which services act
// for Alice, and how a service gets another token.
func (ch *chain) explains(t *testing.T) {
	t.Helper()
	wantExit(t, 0, cli(t, ch.dir, "", "service", "set", "service1", "--role", "reader"))
	for raw, wants := range map[string][]string{
		ch.links[2].shown: {
			fmt.Sprintf("service1/%s, service0/%s\n", ch.links[1].account.GetId(), ch.links[0].account.GetId()),
			"TOKEN_REVOKED", "The service service1 must get another token for its caller.",
		},
		ch.links[1].own.GetAccessToken(): {"TOKEN_STALE", "The service must exchange the token of its platform again."},
	} {
		for _, want := range wants {
			if r := cli(t, ch.dir, raw, "explain"); !strings.Contains(r.stdout, want) {
				t.Errorf("explain says, without %q:\n%s%s", want, r.stdout, r.stderr)
			}
		}
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
	ch.wantCall(t)
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
	if called, err := ch.call(t, 2); called != 3 || err != nil {
		t.Errorf("a call up to the disabled service reached %d services: %v", called, err)
	}
	if _, err := ch.call(t, 4); reason(err) != "TOKEN_REVOKED" { // the own token of service 2
		t.Errorf("a call through the disabled service: %v", err)
	}
	for i, want := range []string{"ok", "ok", "TOKEN_REVOKED", "SUBJECT_TOKEN_REFUSED"} {
		l := ch.links[i]
		if _, err := ch.delegate(t, l.own.GetAccessToken(), l.shown, fmt.Sprint("s", i+1)); reason(err) != want {
			t.Errorf("service %d delegates: %s, want %s", i, reason(err), want)
		}
	}
	set(false)
	ch.signIn(t, 2)
	ch.wantCall(t)
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
