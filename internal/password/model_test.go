package password

import (
	"context"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// The pool keeps its promises under any sequence of calls. The model knows the state of each
// turn (a call's way through the queue), and nothing about the order of the turns.
func TestPoolAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{Params: cheap, Parallel: rapid.IntRange(1, 3).Draw(t, "parallel"), Queue: rapid.IntRange(1, 6).Draw(t, "queue")}
		cfg.Reserved = rapid.IntRange(-1, cfg.Queue).Draw(t, "reserved")
		all := cfg.withDefaults()
		m := &model{pool: NewPool(cfg), places: all.Queue - all.Reserved, reserved: all.Reserved}
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
		if p := m.pool; p.waiting+p.running+len(p.peers)+len(p.order)+p.places.Held()+p.reserve.Held() != 0 {
			t.Fatalf("all turns have ended, and the pool is %+v", p)
		}
	})
}

type model struct {
	pool             *Pool
	places, reserved int
	turns            []*Turn
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

func anyone(Caller) bool { return true }

// weight returns what a turn of a caller counts.
func weight(c Caller) int {
	if c.kind == stranger {
		return 2
	}
	return 1
}

// enter checks that a caller gets a place if a place is free or another peer holds more, and
// none if no other peer holds as much. At a tie the lots decide.
func (m *model) enter(t *rapid.T, caller Caller) {
	p := m.pool
	free := p.places.Held() < m.places || caller.kind == admin && p.reserve.Held() < m.reserved
	mine, heaviest := weight(caller), 0
	if caller.kind != admin { // an admin can also hold one of the reserved places
		for _, turn := range m.turns {
			of := turn.peer.caller
			if held := weight(of) * m.count(waiting, func(c Caller) bool { return c == of }); turn.state == waiting && of == caller {
				mine = held + weight(caller)
			} else if turn.state == waiting && of.kind != admin {
				heaviest = max(heaviest, held)
			}
		}
	}
	admins := m.count(waiting, func(c Caller) bool { return c.kind == admin })
	turn, err := p.Enter(context.Background(), caller)
	if got := err == nil; !got && (free || heaviest > mine) || got && !free && caller.kind != admin && admins == 0 && heaviest < mine {
		t.Fatalf("Enter of %v: error %v; a place is free: %v; would weigh %d, the heaviest %d", caller, err, free, mine, heaviest)
	}
	if err == nil {
		m.turns = append(m.turns, turn)
	}
}

// check compares the counts of the pool with the states of the turns.
func (m *model) check(t *rapid.T) {
	p := m.pool
	if held := p.places.Held() + p.reserve.Held(); p.waiting != m.count(waiting, anyone) || p.waiting != held || p.running != m.count(running, anyone) {
		t.Fatalf("%d turns wait in %d places and %d run, the turns say %d and %d", p.waiting, held, p.running,
			m.count(waiting, anyone), m.count(running, anyone))
	}
	if p.places.Held() > m.places || p.reserve.Held() > m.reserved || p.running > p.parallel || len(p.peers) != len(p.order) {
		t.Fatalf("out of bounds: %+v", p)
	}
	for _, peer := range p.order {
		ready := slices.ContainsFunc(peer.turns, func(turn *Turn) bool { return !turn.ready.IsZero() })
		mayRun := peer.caller.kind == stranger || peer.running < maxHashesOfUser
		if ready && mayRun && p.running < p.parallel {
			t.Fatalf("a slot is free, and a turn of %v waits for the slot", peer.caller)
		}
		if len(peer.turns)+peer.running == 0 {
			t.Fatalf("peer %v remains without a turn", peer.caller)
		}
	}
}
