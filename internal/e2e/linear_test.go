package e2e

import (
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// The calls to a session and the answers form a history. The history must be linearizable:
// there must be an order of all calls that the rules of refresh tokens allow, with each
// call between the call's start and the answer. The server may have carried out a call
// without an answer at any time after the start, or never.
//
// In a run, the grace never ends, or there is no grace. So the rules do not depend on time:
//
//	presented token       with an endless grace     without a grace
//	the current token     a new token               a new token
//	the last spent token  the current token again   another new token
//	an older token        the current token again   the session ends
//
// After a session's end, every kind of call is refused. A client cannot present a token
// above the current generation: otherwise the server answered before the commit, or lost
// the commit. After a lost connection to the database, a server may have carried out a
// refresh twice, as a client does that repeats a call without an answer.
//
// Verify answers from memory. While a replica may lack news, Verify stays out of the order.
// A replica knows of an end at the latest after an answer of its own that showed the end,
// and after lag since any replica's answer. From then on, Verify must refuse. Before the
// end, Verify must never refuse.

// kind is the kind of a call.
type kind int

const (
	refreshes kind = iota
	logsOut
	verifies
	repeats // a possible second run of a refresh, after a lost connection to the database
)

// outcome is the answer to a call.
type outcome int

const (
	unknown  outcome = iota // no answer, or an error that leaves the result open
	done                    // success: the answer has a new token, ends the session, or says that the token is good
	refused                 // the session has ended before
	detected                // the session ends now, because an old token was presented
)

// event holds a call to a session, and the answer.
type event struct {
	kind       kind
	session    string
	replica    int
	generation int64 // the generation of the presented token
	got        int64 // the generation of the new token
	outcome    outcome
	call, ret  int64 // start and answer, in ns since the recorder's start
	mustKnow   bool  // for a verify: whether the replica must know of an earlier end
}

func (e event) String() string {
	name := []string{"refresh", "logout", "verify", "perhaps refresh"}[e.kind]
	told := []string{"no answer", "done", "refused: ended", "refused: reused"}[e.outcome]
	if e.got != 0 {
		told = fmt.Sprint(e.got)
	}
	ret := time.Duration(e.ret)
	if e.ret == never {
		ret = -1
	}
	return fmt.Sprintf("%12v to %12v at %d: %s %d: %s", time.Duration(e.call), ret, e.replica, name, e.generation, told)
}

// never is the time of the answer for a call without an answer.
const never = math.MaxInt64

// recorder records calls and answers.
type recorder struct {
	began time.Time
	acked atomic.Int64 // answers from the database, so not those of Verify
	calls atomic.Int64

	mu     sync.Mutex
	events []event
	roles  []porcupine.Operation
	broken []window // times with a disturbed connection to the database
}

// window is a span of time, in ns since the recorder's start.
type window struct{ from, to int64 }

func newRecorder() *recorder { return &recorder{began: time.Now()} }

func (r *recorder) now() int64 { return int64(time.Since(r.began)) }

func (r *recorder) add(e event) {
	e.ret = r.now()
	if e.outcome == unknown {
		e.ret = never
	} else if e.kind != verifies {
		r.acked.Add(1)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// state is a session's state in the model.
type state struct {
	current, spent int64 // generations
	ended          bool
}

// rules are the rules for refresh tokens, with an endless grace or without a grace.
type rules struct{ grace bool }

// present returns the result of a refresh with a token of a generation. ok is false for a
// generation that no client can have.
func (r rules) present(s state, generation int64) (next state, told outcome, got int64, ok bool) {
	switch {
	case s.ended:
		return s, refused, 0, true
	case generation > s.current:
		return s, unknown, 0, false
	case generation == s.current:
		return state{current: s.current + 1, spent: s.current}, done, s.current + 1, true
	case r.grace:
		return s, done, s.current, true
	case generation == s.spent:
		return state{current: s.current + 1, spent: s.spent}, done, s.current + 1, true
	}
	s.ended = true
	return s, detected, 0, true
}

// step returns the possible states of a session after a call.
func (r rules) step(s state, e event) []state {
	switch e.kind {
	case refreshes, repeats:
		next, told, got, ok := r.present(s, e.generation)
		switch {
		case e.kind == repeats:
			return []state{s, next}
		case e.outcome == unknown:
			return []state{next}
		case ok && told == e.outcome && got == e.got:
			return []state{next}
		}
		return nil
	case logsOut:
		s.ended = true
		return []state{s}
	}
	if s.ended == (e.outcome == refused) {
		return []state{s}
	}
	return nil
}

func (r rules) model() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init: func() []any { return []any{state{current: 1}} },
		Step: func(s, in, _ any) (next []any) {
			for _, n := range r.step(s.(state), in.(event)) {
				next = append(next, n)
			}
			return next
		},
		Hash: func(s any) uint64 { return uint64(s.(state).current) },
	}
	return m.ToModel()
}

// lag bounds the time until a replica knows of other replicas' answers. The connection to
// the database may be cut, or the database may be down.
const lag = 10 * time.Second

// prepare converts a session's events to a history for the model.
func (r rules) prepare(events []event, broken []window) (history []event) {
	slices.SortStableFunc(events, func(a, b event) int { return cmp.Compare(a.call, b.call) })
	told := map[int]int64{} // by replica, the time of the first answer that showed the session's end
	first := int64(never)   // the earliest time in told
	for _, e := range events {
		if e.outcome == refused && e.kind != verifies || e.outcome == detected || e.kind == logsOut && e.outcome == done {
			if at, ok := told[e.replica]; !ok || e.ret < at {
				told[e.replica] = e.ret
			}
			first = min(first, e.ret)
		}
	}
	lost := map[event]bool{}
	for _, e := range events {
		switch {
		case e.kind == verifies:
			at, ok := told[e.replica]
			e.mustKnow = ok && at < e.call || first < e.call-int64(lag)
			if e.outcome == unknown || e.outcome == done && !e.mustKnow {
				continue
			}
		case e.outcome == unknown && (r.grace || e.kind == logsOut):
			// Lost calls of the same kind and generation have the same effect, and a
			// second effect changes nothing. So the earliest lost call stands for all.
			same := event{kind: e.kind, generation: e.generation}
			if e.kind == logsOut {
				same.generation = 0
			}
			if lost[same] {
				continue
			}
			lost[same] = true
		case e.kind == refreshes && mayRunTwice(e, broken) && !(r.grace && e.got == e.generation+1):
			again := e
			again.kind, again.outcome, again.got = repeats, unknown, 0
			history = append(history, again)
		}
		history = append(history, e)
	}
	return history
}

// mayRunTwice reports whether a call overlaps a disturbed connection to the database, so
// the server may have carried out the call twice.
func mayRunTwice(e event, broken []window) bool {
	return slices.ContainsFunc(broken, func(w window) bool { return e.ret >= w.from && e.call <= w.to })
}

// judgeTimeout bounds Porcupine's time for a history. Most histories take less than a
// millisecond.
const judgeTimeout = 10 * time.Second

// checkSessions judges the histories of all sessions, and returns the number of sessions.
func (r rules) checkSessions(t *testing.T, rec *recorder) int {
	t.Helper()
	sessions := map[string][]event{}
	for _, e := range rec.events {
		sessions[e.session] = append(sessions[e.session], e)
	}
	failed := 0
	for id, events := range sessions {
		history := r.prepare(events, rec.broken)
		verdict := porcupine.CheckOperationsTimeout(r.model(), operations(history), judgeTimeout)
		if verdict == porcupine.Ok {
			continue
		}
		if failed++; failed <= 3 {
			t.Errorf("session %s: Porcupine returned %s for the history, want Ok:\n%s", id, verdict, describe(history))
		}
	}
	if failed > 0 {
		t.Errorf("%d of %d sessions have no linearizable history", failed, len(sessions))
	}
	return len(sessions)
}

func operations(history []event) (ops []porcupine.Operation) {
	for _, e := range history {
		ops = append(ops, porcupine.Operation{ClientId: e.replica, Input: e, Call: e.call, Return: e.ret})
	}
	return ops
}

func describe(history []event) string {
	var lines []string
	for _, e := range history {
		lines = append(lines, e.String())
	}
	return strings.Join(lines, "\n")
}

// rights is a call that sets or reads a user's roles.
type rights struct {
	user  string
	set   bool // sets the roles; false: reads the roles
	roles string
	lost  bool // got no answer
}

func (r *recorder) addRights(c rights, call int64) {
	ret := int64(never)
	if !c.lost {
		ret = r.now()
		r.acked.Add(1)
	}
	if c.lost && !c.set {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.roles = append(r.roles, porcupine.Operation{Input: c, Call: call, Return: ret})
}

// checkRights judges the calls on each user's roles. The model is a register: a read must
// return the roles of the last set.
func checkRights(t *testing.T, rec *recorder) {
	t.Helper()
	users := map[string][]porcupine.Operation{}
	for _, o := range rec.roles {
		user := o.Input.(rights).user
		users[user] = append(users[user], o)
	}
	model := porcupine.Model{
		Init: func() any { return "" },
		Step: func(s, in, _ any) (bool, any) {
			c := in.(rights)
			return c.set || s == c.roles, c.roles
		},
	}
	for user, history := range users {
		history = withoutUnread(history)
		if verdict := porcupine.CheckOperationsTimeout(model, history, judgeTimeout); verdict != porcupine.Ok {
			slices.SortFunc(history, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
			var lines []string
			for _, o := range history {
				lines = append(lines, fmt.Sprintf("%v to %v: %+v", time.Duration(o.Call), time.Duration(o.Return), o.Input))
			}
			t.Errorf("roles of %s: Porcupine returned %s for the history, want Ok:\n%s", user, verdict, strings.Join(lines, "\n"))
		}
	}
}

// withoutUnread leaves out each set that got no answer, and that no read has seen: such a set fits
// every history, as the last one of all. Without the sets of an outage, Porcupine need not try
// every order of them.
func withoutUnread(history []porcupine.Operation) []porcupine.Operation {
	seen := map[string]bool{}
	for _, o := range history {
		if c := o.Input.(rights); !c.set {
			seen[c.roles] = true
		}
	}
	return slices.DeleteFunc(history, func(o porcupine.Operation) bool {
		c := o.Input.(rights)
		return c.set && c.lost && !seen[c.roles]
	})
}

// generationOf returns the generation in a refresh token, the eight bytes before the MAC.
func generationOf(refreshToken string) int64 {
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(refreshToken, "wwrt_"))
	if err != nil || len(raw) < 24 {
		return 0
	}
	return int64(binary.BigEndian.Uint64(raw[len(raw)-24:]))
}
