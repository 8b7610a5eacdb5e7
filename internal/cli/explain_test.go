package cli_test

import (
	"encoding/base64"
	"strings"
	"testing"
)

// explain says the same on a running server and on its database, and never prints the token.
func TestExplain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, false)
	db, addr := w.way[0], w.server
	live, ended := w.bob[0], w.bob[1]
	forged := func(claims string) string {
		part := base64.RawURLEncoding.EncodeToString
		return part([]byte(`{"alg":"EdDSA","typ":"at+jwt","kid":"no-such-kid-here"}`)) + "." + part([]byte(claims)) + "." + part(make([]byte, 64))
	}
	done(t, "", append([]string{"session", "revoke", ended.GetSessionId()}, addr...)...) // the server knows at once
	parts := strings.Split(live.GetAccessToken(), ".")
	for _, c := range []struct {
		what, token, flag string
		says              []string
	}{
		{"a live one", live.GetAccessToken(), "", []string{"user bob/", "session " + live.GetSessionId(), "client -\n", "actors -\n", "EdDSA, in the key set", ", of this server", "audience internal", "verdict passes now, at the services"}},
		{"a live one, at its service", live.GetAccessToken(), "--audience=internal", []string{"verdict passes now\n"}},
		{"a live one, elsewhere", live.GetAccessToken(), "--audience=billing", []string{"verdict refused: AUDIENCE_MISMATCH: ", "must ask for a token for this audience"}},
		{"of an ended session", ended.GetAccessToken(), "", []string{"verdict refused: TOKEN_REVOKED: ", "must log in again"}},
		{"with another signature", parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2])), "", []string{"user bob/", "verdict refused: TOKEN_INVALID: "}},
		{"of another server", forged(`{"iss":"https://elsewhere.test","sub":"eve","client_id":"web","aud":["internal"],"exp":1}`), "", []string{
			"user eve", "client web\n", "key no-such-kid-here EdDSA, not in the key set", "https://elsewhere.test, of another server", "expires 1970-01-01T00:00:01Z, ", "verdict refused: TOKEN_INVALID: "}},
		{"delegated", forged(`{"sub":"a1","username":"alice","act":{"sub":"s2","username":"bills","act":{"sub":"s1","username":"notes"}}}`), "", []string{
			"user alice/a1", "actors bills/s2, notes/s1\n"}},
		{"of a stranger who acts", forged(`{"act":{}}`), "", []string{"actors -\n"}},
		{"of the far future", forged(`{"exp":1e10}`), "", []string{"expires 2286-11-20T17:46:40Z\n"}},
		{"without an audience", forged(`{}`), "", []string{"user -", "verdict refused: TOKEN_INVALID: "}},
		{"a refresh token", live.GetRefreshToken(), "", []string{"has the form of a refresh token"}},
		{"nothing of ours", "rubbish.of.others", "", []string{"no token of Watchword"}},
	} {
		for _, way := range [][]string{addr, {db}} {
			args := append([]string{"explain"}, way...)
			if c.flag != "" {
				args = append(args, c.flag)
			}
			out := done(t, c.token, args...)
			if plain := spaces.ReplaceAllString(out, " "); strings.Contains(out, c.token) || !containsAll(plain, c.says) {
				t.Errorf("%s, %v:\n%swant %q", c.what, way, out, c.says)
			}
		}
	}
	fails(t, 2, "standard input is empty", "", "explain", db)
}

func containsAll(text string, parts []string) bool {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return false
		}
	}
	return true
}
