package server_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

// Every method gets every kind of wrong request. Each refusal is the documented one, and nothing
// is written to the database.
func TestWrongInput(t *testing.T) {
	h := start(t)
	w := newPopulation(t, h)
	table := wrongInput(w)
	db := h.reader(t)
	before := db.dump(t)
	unwritten := func(t *testing.T) {
		t.Helper()
		if after := db.dump(t); after != before {
			t.Errorf("something was written:\n%s", difference(before, after))
			before = after
		}
	}
	eachMethod(t, func(t *testing.T, name string, m method) {
		rows, ok := table[name]
		if !ok {
			t.Fatal("the table has no row for this method")
		}
		for _, row := range append(undecodable(m), rows...) {
			t.Run(row.name, func(t *testing.T) {
				ctx := t.Context()
				switch {
				case row.by != nil:
					ctx = row.by.as(ctx)
				case !m.access().GetPublic():
					ctx = h.admin.as(ctx)
				}
				if row.header != "" {
					ctx = metadata.AppendToOutgoingContext(ctx, "x-anything", row.header)
				}
				_, err := m.call(ctx, h.conn, row.req)
				refusedBy(t, err, row.want, row.field)
				unwritten(t)
			})
		}
	})
	for _, line := range []string{"panic", `"msg":"internal error"`} {
		if strings.Contains(logged.String(), line) {
			t.Errorf("the log holds %s", line)
		}
	}
}

// undecodable returns the requests that gRPC refuses before any code of this project runs.
func undecodable(m method) []wrong {
	rows := []wrong{
		{name: "undecodable bytes", req: raw{0x0a, 0x05, 'x'}, want: "Internal"},
		// The field has an unknown number, which the decoder would accept.
		{name: "too large", req: raw(protowire.AppendBytes(protowire.AppendTag(nil, 4095, protowire.BytesType), make([]byte, 65<<10))),
			want: "ResourceExhausted"},
		{name: "headers too large", req: m.empty(), header: strings.Repeat("x", 20<<10), want: "INVALID_REQUEST", field: "metadata"},
	}
	if request, ok := notUTF8(m.Input()); ok {
		rows = append(rows, wrong{name: "not UTF-8", req: request, want: "Internal"})
	}
	return rows
}

// A token with one changed, missing or added character, at any position, is refused.
func TestTokensAreRefusedAtEveryPosition(t *testing.T) {
	h := start(t)
	a := h.make(t)
	before := h.dump(t)
	access, refresh := a.GetAccessToken(), a.GetRefreshToken()
	for i := range access {
		wants(t, "tampered access token", h.verify(t, tamper(access, i)), "TOKEN_INVALID")
		if i > 0 && i%7 == 0 {
			wants(t, "cut access token", h.verify(t, access[:i]), "TOKEN_INVALID")
			wants(t, "character inserted", h.verify(t, access[:i]+"A"+access[i:]), "TOKEN_INVALID")
		}
	}
	logout := func(token string) string {
		_, err := h.auth.Logout(t.Context(), &watchwordv1.LogoutRequest{RefreshToken: token})
		return outcome(err)
	}
	for i := range refresh {
		bad := []string{tamper(refresh, i), refresh[:i] + "\n" + refresh[i:], refresh[:i] + refresh[i+1:], refresh[:i] + "-" + refresh[i:]}
		if i > 0 {
			bad = append(bad, refresh[:i])
		}
		for _, token := range bad {
			if token == refresh {
				t.Fatal("not tampered")
			}
			wants(t, "tampered refresh token", h.refresh(t, token), "REFRESH_TOKEN_INVALID")
			wants(t, "tampered refresh token", logout(token), "REFRESH_TOKEN_INVALID")
		}
	}
	for _, more := range []string{"=", "==", " ", "\n", "\r\n", "A", "AAAA", "."} {
		wants(t, "longer access token", h.verify(t, access+more), "TOKEN_INVALID")
		wants(t, "longer refresh token", h.refresh(t, refresh+more), "REFRESH_TOKEN_INVALID")
		wants(t, "longer refresh token", h.refresh(t, more+refresh), "REFRESH_TOKEN_INVALID")
		wants(t, "longer refresh token", logout(refresh+more), "REFRESH_TOKEN_INVALID")
	}
	if after := h.dump(t); after != before {
		t.Errorf("something was written:\n%s", difference(before, after))
	}
	wants(t, "the access token", h.verify(t, access), "ok")
	wants(t, "the refresh token", h.refresh(t, refresh), "ok")
}

// badToken is an access token that must be refused, and the reason for the refusal.
type badToken struct{ name, raw, want string }

// badTokens returns access tokens that must be refused. All but the last have a good signature by the
// server's key. The first token has expired.
func badTokens(t *testing.T, h *harness) []badToken {
	t.Helper()
	key := h.signer(t)
	foreign, err := token.GenerateKey(token.EdDSA)
	if err != nil {
		t.Fatal(err)
	}
	minted := func(key *token.SigningKey, edit func(*token.Claims)) string {
		c := h.claims(t, h.admin)
		edit(c)
		return sign(t, key, c)
	}
	gone := h.insertSessions(t, h.admin.id, 1)[0]
	if _, err := h.sessions.RevokeSession(h.admin.as(t.Context()), &watchwordv1.RevokeSessionRequest{SessionId: gone}); err != nil {
		t.Fatal(err)
	}
	return []badToken{
		{"expired", minted(key, func(c *token.Claims) { c.IssuedAt, c.ExpiresAt = ago(time.Minute), ago(time.Second) }), "TOKEN_EXPIRED"},
		{"revoked", minted(key, func(c *token.Claims) { c.SessionID = gone }), "TOKEN_REVOKED"},
		{"another audience", minted(key, func(c *token.Claims) { c.Audience = []string{"elsewhere"} }), "AUDIENCE_MISMATCH"},
		{"another issuer", minted(key, func(c *token.Claims) { c.Issuer += "/" }), "TOKEN_INVALID"},
		{"lives too long", minted(key, func(c *token.Claims) { c.ExpiresAt = c.IssuedAt.Add(5*time.Minute + time.Second) }), "TOKEN_INVALID"},
		{"a stranger's key", minted(foreign, func(*token.Claims) {}), "TOKEN_INVALID"},
	}
}

// The server takes the roles, the audience and all other claims of a signed token as they are.
// A token that is made in the same way with good claims passes, so the tokens of badTokens with a good
// signature are refused for their claims.
func TestGoodTokenOfTheSameMaking(t *testing.T) {
	h := shared(t)
	wants(t, "as the server makes them", h.verify(t, sign(t, h.signer(t), h.claims(t, h.admin))), "ok")
}

// A signed token can name a session that never was: a method that changes the database checks
// the session's row, and refuses the token.
func TestTokenOfASessionThatNeverWas(t *testing.T) {
	h := start(t)
	c := h.claims(t, h.admin)
	c.SessionID = "AAAAAAAAAAAAAAAA"
	raw := sign(t, h.signer(t), c)
	before := h.dump(t)
	wants(t, "Verify, which asks no database", h.verify(t, raw), "ok")
	_, err := h.users.CreateUser(bearing(t.Context(), raw), &watchwordv1.CreateUserRequest{Username: "nobody", Password: "a long password"})
	refusedBy(t, err, "TOKEN_REVOKED", "")
	methodNamed(t, err, watchwordv1.UserService_CreateUser_FullMethodName)
	if h.dump(t) != before {
		t.Error("something was written")
	}
}

func methodNamed(t *testing.T, err error, want string) {
	t.Helper()
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetMetadata()["method"] != want {
			t.Errorf("%s names the method %q, want %q", info.GetReason(), info.GetMetadata()["method"], want)
		}
	}
}

// A narrower audience can be asked for, at login and at each refresh.
func TestNarrowing(t *testing.T) {
	h := shared(t)
	a := h.make(t)
	if err := h.login(a, "billing", "internal", "billing"); err != nil {
		t.Fatal(err)
	}
	check := func(accessToken string, good ...string) {
		t.Helper()
		for _, audience := range append([]string{"elsewhere"}, audiences...) {
			want := "AUDIENCE_MISMATCH"
			for _, g := range good {
				if g == audience {
					want = "ok"
				}
			}
			_, err := h.auth.Verify(t.Context(), &watchwordv1.VerifyRequest{AccessToken: accessToken, Audience: audience})
			wants(t, "Verify for "+audience, outcome(err), want)
		}
	}
	check(a.GetAccessToken(), "billing", "internal")
	for _, audience := range [][]string{{"billing"}, {"internal"}, {"internal", "billing"}, nil} {
		resp, err := h.auth.Refresh(t.Context(), &watchwordv1.RefreshRequest{RefreshToken: a.GetRefreshToken(), Audience: audience})
		if err != nil {
			t.Fatal(err)
		}
		a.TokenPair = resp.GetTokens()
		if audience == nil {
			audience = []string{"billing", "internal"}
		}
		check(a.GetAccessToken(), audience...)
	}
	// A change of password keeps the audience of the session that asked for it.
	resp, err := h.auth.ChangePassword(a.as(t.Context()), &watchwordv1.ChangePasswordRequest{CurrentPassword: a.password, NewPassword: "another password for it"})
	if err != nil {
		t.Fatal(err)
	}
	check(resp.GetTokens().GetAccessToken(), "billing", "internal")
}
