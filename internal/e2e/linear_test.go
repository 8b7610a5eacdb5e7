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

// What clients did to a session and what they were told is a history. It must be
// linearizable: there is an order of all calls, in which each stands somewhere
// between its beginning and its answer, that the rules of the refresh token allow.
// A call without an answer may have been carried out at any time since, or not
// at all.
//
// The grace does not end during a run, or there is none, so that the rules don't
// depend on time:
//
//	presented      with a grace without end      without a grace
//	the current    a new one                     a new one
//	the one spent  the current one again         a new successor
//	  last
//	any other      the current one again         the session ends
//
// A session that has ended stays so, for every kind of call. Above the current
// one there is none: whoever presents it was answered before the commit, or the
// commit was lost. A server that lost its connection to the database may have done
// a refresh twice, as a client does who got no answer and asks again.
//
// Verify is no part of the order while a replica may not know: it answers from
// memory. It must know of an end as soon as it has itself told anybody of it, and
// any replica must, a while after anyone was told. From then on it must refuse;
// and it may never refuse before the end.

// kind is what a call did.
type kind int

const (
	refreshes kind = iota
	logsOut
	verifies
	repeats // what a refresh that met a fault may have done once more, unseen
)

// outcome is what a call was told.
type outcome int

const (
	unknown  outcome = iota // no answer, or that nobody knows
	done                    // a token, the end of the session, or that a token is good
	refused                 // the session has ended
	detected                // the session ends, since the token was spent before
)

// event is a call to one session and its answer.
type event struct {
	kind       kind
	session    string
	replica    int
	generation int64 // presented
	got        int64 // handed out
	outcome    outcome
	call, ret  int64 // ns since the beginning
	mustKnow   bool  // a Verify by a replica that must know of an end, if there was one
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

// never is when an answer came that did not.
const never = math.MaxInt64

// recorder takes down what happens.
type recorder struct {
	began time.Time
	acked atomic.Int64 // answers that were not from memory
	calls atomic.Int64

	mu     sync.Mutex
	events []event
	roles  []porcupine.Operation
	broken []window // when the way to the database was disturbed
}

// window is a piece of time.
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

// state is one session's.
type state struct {
	current, spent int64
	ended          bool
}

// rules are those of a session's refresh tokens.
type rules struct{ grace bool }

// present is what comes of a refresh. It is false for a token that cannot be.
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

// step returns the states in which a session may be after a call.
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

// lag bounds how long a replica may not know of what another has answered: its way
// to the database may be cut, or there may be none.
const lag = 10 * time.Second

// prepare makes of a session's events what the model judges.
func (r rules) prepare(events []event, broken []window) (history []event) {
	slices.SortStableFunc(events, func(a, b event) int { return cmp.Compare(a.call, b.call) })
	told := map[int]int64{} // by replica: when it first told anybody of the end
	first := int64(never)
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
			// The one asked for first stands for all: what it does, it does once.
			same := event{kind: e.kind, generation: e.generation}
			if e.kind == logsOut {
				same.generation = 0
			}
			if lost[same] {
				continue
			}
			lost[same] = true
		case e.kind == refreshes && disturbed(e, broken) && !(r.grace && e.got == e.generation+1):
			again := e
			again.kind, again.outcome, again.got = repeats, unknown, 0
			history = append(history, again)
		}
		history = append(history, e)
	}
	return history
}

// disturbed reports whether a call may have met a lost connection to the database,
// so that a server did it twice.
func disturbed(e event, broken []window) bool {
	return slices.ContainsFunc(broken, func(w window) bool { return e.ret >= w.from && e.call <= w.to })
}

// judging bounds how long one history is looked at. Most take less than a
// millisecond.
const judging = 10 * time.Second

// check judges all sessions, and returns how many there were.
func (r rules) check(t *testing.T, rec *recorder) int {
	t.Helper()
	sessions := map[string][]event{}
	for _, e := range rec.events {
		sessions[e.session] = append(sessions[e.session], e)
	}
	failed := 0
	for id, events := range sessions {
		history := r.prepare(events, rec.broken)
		verdict := porcupine.CheckOperationsTimeout(r.model(), operations(history), judging)
		if verdict == porcupine.Ok {
			continue
		}
		if failed++; failed <= 3 {
			t.Errorf("session %s: linearizable: %s\n%s", id, verdict, describe(history))
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

// rights is a call about a user's roles: one that sets them, or that reads them.
type rights struct {
	user  string
	set   bool
	roles string
	lost  bool
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

// checkRights judges each user's roles as a register.
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
		if verdict := porcupine.CheckOperationsTimeout(model, history, judging); verdict != porcupine.Ok {
			slices.SortFunc(history, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
			var lines []string
			for _, o := range history {
				lines = append(lines, fmt.Sprintf("%v to %v: %+v", time.Duration(o.Call), time.Duration(o.Return), o.Input))
			}
			t.Errorf("roles of %s: linearizable: %s\n%s", user, verdict, strings.Join(lines, "\n"))
		}
	}
}

// generationOf reads the generation in a refresh token: the eight bytes before its
// MAC.
func generationOf(refreshToken string) int64 {
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(refreshToken, "wwrt_"))
	if err != nil || len(raw) < 24 {
		return 0
	}
	return int64(binary.BigEndian.Uint64(raw[len(raw)-24:]))
}
