package session_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/session/sessiontest"
)

// party is a client, or a thief, with refresh tokens of a session.
type party struct {
	name string
	held string // the newest refresh token that the party received
	// received is true if the party got an answer since there are two parties. last is the time
	// of the party's last request. met is true if the other party has come back after the grace
	// since then, so that the next request of this party finds the theft.
	received, met bool
	last          time.Time
}

// history holds what happens to one session, and a model of what must follow. The model
// has two invariants.
//
// Alone: a client that is alone and honest is refused in two cases only. First, the client
// has the answer of a later request, and an abandoned request arrives when its token was
// spent more than the grace ago. Second, the client has repeated too many tokens in a row.
//
// Found: as long as the owner and a thief both hold tokens, reuse is detected. At the
// latest, one of them comes back after the grace, and then the other presents the
// newest token that it received: that token is spent, and the session ends.
//
// Also: if an answer was lost and a late retry got another token in its place, the
// token of the lost answer is dead: a client that presents it ends the session. And
// after a session has ended, for whatever reason, none of its tokens works from the
// acknowledgement on.
//
// Repeats: a session ends at a repeat above the limit, and only then; see [runs].
type history struct {
	*sessiontest.World
	*runs
	owner   *party
	thief   *party // nil: no token was stolen
	given   []string
	minted  []*session.Tokens
	lingers []*linger
	spent   map[string]time.Time // when each refresh token was spent, or was sent again late
	next    map[string]string    // the successor of each token, as the newest answer gave it
	dead    map[string]bool      // successors that were lost, and that another token has replaced
	tainted bool                 // a request that the owner gave up has arrived too late
	ended   bool
	born    time.Time
	used    time.Time // the last refresh that was done
}

// linger is a request that the owner gave up and that has not arrived.
type linger struct {
	token     string
	overtaken bool // a refresh that began later was answered before
}

// afterGrace is the time after which the grace period of a token has certainly ended: spans of
// the length grace begin at fixed times, so a grace period lasts for one to two spans.
const afterGrace = 2 * grace

func begin(t *testing.T, w *sessiontest.World) *history {
	tokens := w.Login(t)
	now := time.Now()
	return &history{
		World: w, runs: newRuns(tokens.Refresh), owner: &party{name: "owner", held: tokens.Refresh, last: now},
		given: []string{tokens.Refresh}, minted: []*session.Tokens{tokens}, born: now, used: now, spent: map[string]time.Time{},
		next: map[string]string{}, dead: map[string]bool{},
	}
}

func (h *history) expired() bool {
	now := time.Now()
	return !now.Before(h.used.Add(idle)) || !now.Before(h.born.Add(lifetime).Truncate(time.Second))
}

// ask presents the newest token that a party holds; the answer may be lost.
func (h *history) ask(p *party, lost bool) {
	now := time.Now()
	mustFind, over := p.met, h.over(p.held)
	tokens, err := h.Sessions.Refresh(context.Background(), p.held, nil)
	switch {
	case h.ended:
		h.wants(err, "after the end", session.ErrRevoked)
		return
	case h.expired():
		h.wants(err, "of a session that is too old", session.ErrRefreshExpired)
		return
	case h.dead[p.held] && err == nil:
		failf("a dead token was taken")
	case mustFind && err == nil:
		failf("the %s went on after the other had come back", p.name)
	case over && err == nil:
		failf("the %s repeated in one generation more than allowed", p.name)
	case errors.Is(err, session.ErrRefreshReused):
		if h.thief == nil && !h.tainted && !over {
			failf("an honest client that is alone was refused")
		}
		h.end()
		return
	case err != nil:
		failf("the %s was refused: %v", p.name, err)
	}
	h.used = now
	if other := h.other(p); other != nil && other.received && now.Sub(other.last) >= afterGrace && p.held != other.held {
		// The other party's token may have been spent just now, with the same token as its own:
		// then the other party is the second one, and within the grace period.
		spent, ok := h.spent[other.held]
		other.met = other.met || !ok || now.Sub(spent) >= afterGrace
	}
	h.spend(p.held, tokens)
	p.last = now
	if lost {
		return
	}
	p.held, p.received = tokens.Refresh, h.thief != nil
	h.given = append(h.given, tokens.Refresh)
	if p != h.owner {
		return
	}
	for _, l := range h.lingers {
		l.overtaken = true
	}
}

func (h *history) other(p *party) *party {
	if p == h.owner {
		return h.thief
	}
	return h.owner
}

// arrive lets a request come in that the owner gave up long ago.
func (h *history) arrive() {
	l := h.lingers[0]
	h.lingers = h.lingers[1:]
	if spent, ok := h.spent[l.token]; ok && l.overtaken && time.Since(spent) >= grace {
		h.tainted = true // the grace period runs from the first use of the token
	}
	over := h.over(l.token)
	tokens, err := h.Sessions.Refresh(context.Background(), l.token, nil)
	switch {
	case h.ended:
		h.wants(err, "a late arrival after the end", session.ErrRevoked)
	case h.expired():
		h.wants(err, "a late arrival, too old", session.ErrRefreshExpired)
	case over && err == nil:
		failf("a late arrival repeated in one generation more than allowed")
	case errors.Is(err, session.ErrRefreshReused):
		if h.thief == nil && !h.tainted && !over {
			failf("an honest client's own late arrival ended its session")
		}
		h.end()
	case err != nil:
		failf("a late arrival: %v", err)
	default:
		h.used = time.Now()
		h.spend(l.token, tokens)
	}
}

// spend notes that a token was spent, and which tokens the answer had.
func (h *history) spend(token string, got *session.Tokens) {
	h.note(token, got.Refresh)
	if _, ok := h.spent[token]; !ok {
		h.spent[token] = time.Now()
	}
	// A late retry is possible only for the token that was spent last, and only if no
	// client has presented the token that it got before.
	if before, ok := h.next[token]; ok && before != got.Refresh && time.Since(h.spent[token]) >= grace && h.spent[before].IsZero() {
		h.dead[before] = true
		h.spent[token] = time.Now()
	}
	h.next[token] = got.Refresh
	h.minted = append(h.minted, got)
}

func (h *history) wants(err error, what string, want error) {
	if !errors.Is(err, want) {
		failf("%s: %v, want %v", what, err, want)
	}
}

// end checks that nothing of the session works any more: no refresh token that
// was ever handed out, and no access token that has not expired.
func (h *history) end() {
	h.ended = true
	for _, token := range h.given[max(0, len(h.given)-3):] {
		_, err := h.Sessions.Refresh(context.Background(), token, nil)
		h.wants(err, "after the end", session.ErrRevoked)
	}
	for _, tokens := range h.minted[max(0, len(h.minted)-3):] {
		if got := h.Verdict(tokens.Access); got == sessiontest.Good {
			failf("an access token passes after the end of its session")
		}
	}
}

// Random histories of one session must give the results of the model: on the real code, with a
// real database and the real verifier.
func TestHistories(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		limit := rapid.IntRange(1, 4).Draw(rt, "limit")
		histories := rapid.SliceOfN(rapid.SliceOfN(rapid.Custom(drawStep), 1, 25), 1, 5).Draw(rt, "histories")
		var wrong any
		synctest.Test(t, func(t *testing.T) {
			defer func() { wrong = recover() }() // a failure, which must not end the bubble
			w := sessiontest.Slow(t, sessiontest.Repeats(limit))
			for _, steps := range histories {
				h := begin(t, w)
				h.limit = limit
				for _, s := range steps {
					h.step(t, s)
				}
			}
		})
		if wrong != nil {
			rt.Fatal(wrong)
		}
	})
}

// step is one step of a history, taken only if the step is possible; Chance decides what the
// step leaves open.
type step struct {
	What   string
	Lost   bool // the answer of this step gets lost
	Wait   time.Duration
	Chance int
}

func drawStep(rt *rapid.T) step {
	what := []string{"owner", "owner", "owner", "thief", "thief", "thief", "wait", "wait", "wait", "give up", "steal", "arrive", "arrive"}
	if rapid.IntRange(0, 19).Draw(rt, "rarely") == 0 {
		what = []string{"logout", "revoke", "password"}
	}
	return step{
		What: rapid.SampledFrom(what).Draw(rt, "what"),
		Lost: rapid.IntRange(0, 9).Draw(rt, "lost") < 3,
		Wait: rapid.SampledFrom([]time.Duration{
			0, time.Second, grace / 2, grace - time.Microsecond, grace, grace + time.Second, afterGrace, time.Minute, time.Hour, 3 * time.Hour, 10 * time.Hour,
		}).Draw(rt, "wait"),
		Chance: rapid.IntRange(0, 1000).Draw(rt, "chance"),
	}
}

func (h *history) step(t *testing.T, s step) {
	ctx := context.Background()
	done := func(err error) {
		if err != nil {
			failf("%s: %v", s.What, err)
		}
		h.end()
	}
	switch {
	case s.What == "owner":
		h.ask(h.owner, s.Lost)
	case s.What == "thief" && h.thief != nil:
		h.ask(h.thief, s.Lost)
	case s.What == "give up":
		h.lingers = append(h.lingers, &linger{token: h.owner.held})
	case s.What == "arrive" && len(h.lingers) > 0:
		h.arrive()
	case s.What == "steal" && h.thief == nil: // steals the newest token, or an earlier one
		token := h.minted[max(0, len(h.minted)-1-s.Chance%4)].Refresh // a token from an answer that got lost can be stolen too
		h.thief = &party{name: "thief", held: token, last: time.Now()}
		h.owner.received, h.owner.met = false, false
	case s.What == "wait":
		time.Sleep(s.Wait)
	case h.ended || h.expired():
	case s.What == "logout":
		done(h.Sessions.Logout(ctx, h.given[s.Chance%len(h.given)]))
	case s.What == "revoke":
		by := caller.Caller{Subject: caller.Subject{Kind: caller.User, ID: h.Alice.ID}, SessionID: h.minted[0].SessionID,
			Name: h.Alice.Username, Roles: h.Alice.Roles, Version: h.version(t)}
		done(h.Sessions.Revoke(ctx, by, h.minted[0].SessionID))
	case s.What == "password":
		_, err := h.Users.SetPassword(ctx, caller.AtCommandLine, h.Alice.ID, sessiontest.Parse(t, sessiontest.Password))
		done(err)
	}
}

func failf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// version returns Alice's version now.
func (h *history) version(t *testing.T) int64 {
	row, err := h.Users.Get(context.Background(), h.Alice.ID)
	if err != nil {
		t.Fatal(err)
	}
	return row.Version
}
