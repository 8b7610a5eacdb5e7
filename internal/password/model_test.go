package password

import (
	"context"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// The pool keeps its promises under any sequence of calls. The model knows the state of
// each turn and nothing about the order.
func TestPoolAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{Params: cheap, Parallel: rapid.IntRange(1, 3).Draw(t, "parallel"), Queue: rapid.IntRange(1, 6).Draw(t, "queue")}
		cfg.Reserved = rapid.IntRange(-1, cfg.Queue).Draw(t, "reserved")
		m := &model{pool: NewPool(cfg)}
		callers := []Caller{Stranger("a"), Stranger("b"), Stranger("c"), User("d"), Admin("e"), Admin("f")}
		t.Repeat(map[string]func(*rapid.T){
			"enter": func(t *rapid.T) { m.enter(t, rapid.SampledFrom(callers).Draw(t, "caller")) },
			"ready": func(t *rapid.T) {
				if turn := m.draw(t); turn.state == waiting {
					turn.getReady(context.Background())
				}
			},
			"end": func(t *rapid.T) { m.draw(t).End() },
			"":    m.check,
		})
		for _, turn := range m.turns {
			turn.End()
		}
		if p := m.pool; p.waiting+p.admins+p.running+len(p.peers)+len(p.order) != 0 {
			t.Fatalf("all turns have ended, and the pool is %+v", p)
		}
	})
}

type model struct {
	pool  *Pool
	turns []*Turn
}

func (m *model) draw(t *rapid.T) *Turn {
	if len(m.turns) == 0 {
		t.Skip()
	}
	return rapid.SampledFrom(m.turns).Draw(t, "turn")
}

// count returns the number of turns that have a state and meet a condition.
func (m *model) count(s state, of func(Caller) bool) (n int) {
	for _, turn := range m.turns {
		if turn.state == s && of(turn.peer.caller) {
			n++
		}
	}
	return n
}

func anyone(Caller) bool     { return true }
func isAdmin(c Caller) bool  { return c.kind == admin }
func notAdmin(c Caller) bool { return c.kind != admin }

// enter checks that a caller gets a place exactly if the rules give a place.
func (m *model) enter(t *rapid.T, caller Caller) {
	p := m.pool
	same := func(c Caller) bool { return c == caller }
	mine := m.count(waiting, same)
	want := m.count(waiting, anyone) < p.places && (isAdmin(caller) || m.count(waiting, notAdmin) < p.places-p.reserved)
	var heaviest int // of the peers that may lose a place
	for _, turn := range m.turns {
		if c := turn.peer.caller; notAdmin(c) || isAdmin(caller) || m.count(waiting, isAdmin) > p.reserved {
			heaviest = max(heaviest, m.count(waiting, func(other Caller) bool { return other == c }))
		}
	}
	want = want || heaviest >= mine+2
	turn, err := p.Enter(context.Background(), caller)
	if (err == nil) != want {
		t.Fatalf("Enter of %v: error %v, want a place: %v", caller, err, want)
	}
	if err == nil {
		m.turns = append(m.turns, turn)
	}
}

// check compares the counts of the pool with the states of the turns.
func (m *model) check(t *rapid.T) {
	p := m.pool
	if p.waiting != m.count(waiting, anyone) || p.admins != m.count(waiting, isAdmin) || p.running != m.count(running, anyone) {
		t.Fatalf("%d turns wait (%d of admins) and %d run, the turns say %d (%d) and %d", p.waiting, p.admins, p.running,
			m.count(waiting, anyone), m.count(waiting, isAdmin), m.count(running, anyone))
	}
	if p.waiting > p.places || p.waiting-p.admins > p.places-p.reserved || p.running > p.parallel || len(p.peers) != len(p.order) {
		t.Fatalf("out of bounds: %+v", p)
	}
	for _, peer := range p.order {
		ready := slices.ContainsFunc(peer.turns, func(turn *Turn) bool { return turn.ready })
		mayRun := peer.caller.kind == stranger || peer.running < maxHashesOfUser
		if ready && mayRun && p.running < p.parallel {
			t.Fatalf("a slot is free, and a turn of %v waits for the slot", peer.caller)
		}
		if len(peer.turns)+peer.running == 0 {
			t.Fatalf("peer %v remains without a turn", peer.caller)
		}
	}
}
