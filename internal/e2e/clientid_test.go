package e2e

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// clientOf returns the claim client_id of a token; nil: the token has none.
func clientOf(t *testing.T, raw string) any {
	t.Helper()
	var claims map[string]any
	if err := json.Unmarshal(unbase64(strings.Split(raw, ".")[1]), &claims); err != nil {
		t.Fatal(err)
	}
	return claims["client_id"]
}

// With --client-id, client_id names the client of a user and the service that asked for a
// delegated token. A server without the flag accepts these tokens, delegates and refreshes them,
// and gives tokens without the claim; and the other way round.
func TestClientID(t *testing.T) {
	ch := startChain(t, "--client-id", "web")
	check := func(when string, want ...any) {
		t.Helper()
		for n, l := range ch.links {
			if got := clientOf(t, l.shown); got != want[n] {
				t.Errorf("%s: client_id of token %d is %v, want %v", when, n, got, want[n])
			}
		}
		for n, verdict := range ch.verdicts(t.Context()) {
			if verdict != "ok" {
				t.Errorf("%s: token %d: %s", when, n, verdict)
			}
		}
	}
	id := func(n int) any { return ch.links[n].account.GetId() }
	check("with the flag", "web", id(0), id(1), id(2), id(3))

	// A second server on the same database has no --client-id, as in a rolling restart.
	second := serve(t, ch.dir, "--issuer", "http://"+ch.httpAddr, "--audience", "s0,s1,s2,s3,s4")
	first := ch.c
	ch.c = dial(t, second.grpcAddr)
	ch.startAgain(t)
	check("after a delegation without the flag", "web", nil, nil, nil, nil)
	ch.refresh(t)
	check("after a refresh without the flag", nil, nil, nil, nil, nil)
	ch.c = first
	ch.startAgain(t)
	check("after a delegation with the flag", nil, id(0), id(1), id(2), id(3))
	ch.refresh(t)
	check("after a refresh with the flag", "web", id(0), id(1), id(2), id(3))

	cmd := exec.Command(watchword(t), "explain", "--datastore-uri", database(ch.dir))
	cmd.Env, cmd.Stdin = environment(), strings.NewReader(ch.links[1].shown)
	r := run(t, cmd)
	wantExit(t, 0, r)
	if got := strings.Join(strings.Fields(r.stdout), " "); !strings.Contains(got, "client "+ch.links[0].account.GetId()+" ") || !strings.Contains(got, "verdict passes now") {
		t.Errorf("explain says\n%s", r.stdout)
	}
}

// refresh renews Alice's tokens, and the tokens with which the services are called.
func (ch *chain) refresh(t *testing.T) {
	t.Helper()
	resp, err := ch.c.Refresh(callCtx(t), &watchwordv1.RefreshRequest{RefreshToken: ch.alice.GetRefreshToken()})
	if err != nil {
		t.Fatal(err)
	}
	ch.alice = noteTokens(resp.GetTokens())
	ch.wantCall(t)
}

// startAgain starts the services again: the services sign in and delegate at the server of ch.c.
func (ch *chain) startAgain(t *testing.T) {
	t.Helper()
	for i := range ch.links {
		ch.signIn(t, i)
	}
	ch.wantCall(t)
}
