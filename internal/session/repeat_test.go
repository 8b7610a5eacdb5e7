package session

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A repeat (the second use of one refresh token) counts once for its generation, the number of
// the token, a generation without a repeat ends the run, and above the limit a repeat ends the
// session.
func TestRun(t *testing.T) {
	type step struct {
		wait    time.Duration
		present int64
		want    verdict
		run     int64
	}
	for name, steps := range map[string][]step{
		"in each generation": {{0, 1, advanced, 0}, {0, 1, repeated, 1}, {0, 2, advanced, 1}, {0, 2, repeated, 2}, {0, 3, advanced, 2}, {0, 3, overrun, 2}},
		"counted once": {{0, 1, advanced, 0}, {0, 1, repeated, 1}, {0, 1, repeated, 1}, {0, 2, advanced, 1}, {0, 2, repeated, 2}, {0, 2, repeated, 2},
			{0, 1, repeated, 2}, {0, 3, advanced, 2}, {0, 4, advanced, 2}},
		"a generation without ends the run": {{0, 1, advanced, 0}, {0, 1, repeated, 1}, {0, 2, advanced, 1}, {0, 2, repeated, 2}, {0, 3, advanced, 2},
			{0, 4, advanced, 2}, {0, 4, repeated, 1}, {0, 5, advanced, 1}, {0, 5, repeated, 2}, {0, 6, advanced, 2}, {0, 6, overrun, 2}},
		"a late retry counts": {{0, 1, advanced, 0}, {time.Hour, 1, retried, 1}, {0, 3, advanced, 1}, {time.Hour, 3, retried, 2}, {0, 5, advanced, 2}, {time.Hour, 5, overrun, 2}},
		"a late retry after a repeat": {{0, 1, advanced, 0}, {0, 1, repeated, 1}, {time.Hour, 1, retried, 1}, {time.Hour, 1, retried, 1}, {0, 4, advanced, 1},
			{0, 4, repeated, 2}, {0, 5, advanced, 2}, {0, 5, overrun, 2}},
		"spent twice between two repeats": {{0, 1, advanced, 0}, {0, 1, repeated, 1}, {0, 2, advanced, 1}, {0, 3, advanced, 1}, {0, 2, repeated, 2},
			{0, 4, advanced, 2}, {0, 5, advanced, 2}, {0, 4, overrun, 2}},
		"a row that fell behind begins again": {{0, 1, advanced, 0}, {0, 1, repeated, 1}, {0, 7, advanced, 0}, {0, 7, repeated, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newLimited(2)
			for i, s := range steps {
				h.wait(s.wait)
				if _, v := h.present(s.present); v != s.want || h.g.Run != s.run {
					t.Fatalf("step %d: presenting %d gave verdict %d and a run of %d, want %d and %d", i, s.present, v, h.g.Run, s.want, s.run)
				}
			}
		})
	}
}

// A session ends at a repeat (the second use of a refresh token) only if each of the last
// tokens, as many as the limit, had a repeat too: so a client that is alone can know when its
// session ends. However often one token is repeated, and however late, the token counts once.
func TestRepeatsInEachOfTheLastGenerations(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newLimited(rapid.Int64Range(1, 4).Draw(t, "limit"))
		token, run := int64(1), int64(0)
		for range rapid.IntRange(1, 40).Draw(t, "tokens") {
			current, v := h.present(token)
			if v != advanced {
				t.Fatalf("the newest token %d got verdict %d: %+v", token, v, h.g)
			}
			repeats := max(0, rapid.IntRange(-2, 3).Draw(t, "repeats"))
			for i := range repeats {
				h.wait(drawWait(t))
				current, v = h.present(token)
				if over := run == h.repeats; over != ends(v) {
					t.Fatalf("repeat %d of token %d got verdict %d after %d tokens with repeats of %d: %+v", i, token, v, run, h.repeats, h.g)
				} else if over {
					return
				}
			}
			if run++; repeats == 0 {
				run = 0
			}
			token = current
			h.wait(drawWait(t))
		}
	})
}

// pair is the owner of a session and a thief with a copy of the owner's refresh token.
type pair struct {
	*history
	tokens [2]int64 // the newest token of each party
}

func newPair(t *rapid.T) *pair {
	return &pair{newLimited(rapid.Int64Range(1, 4).Draw(t, "limit")), [2]int64{1, 1}}
}

// refresh presents the newest token of a party, and reports whether the theft was found.
func (p *pair) refresh(party int, lost bool) bool {
	current, v := p.present(p.tokens[party])
	if !lost {
		p.tokens[party] = current
	}
	return ends(v)
}

// A round lasts until both parties have refreshed. A thief that stays beside the owner is
// found within one round more than the limit, in whatever order the two refresh, and
// however often: also if the thief spends several tokens within the grace, or comes within
// the grace after several of the owner's. No answer is lost.
func TestAFollowingThiefIsFound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPair(t)
		for round := int64(0); ; round++ {
			if round > p.repeats {
				t.Fatalf("%d rounds, with a limit of %d: %+v", round, p.repeats, p.g)
			}
			for seen := [2]bool{}; !seen[0] || !seen[1]; {
				p.wait(rapid.OneOf(rapid.Just(time.Duration(0)), rapid.Custom(drawWait)).Draw(t, "wait"))
				party := rapid.IntRange(0, 1).Draw(t, "party")
				if seen[party] = true; p.refresh(party, false) {
					return
				}
			}
		}
	})
}

// A thief that follows the owner is found within the same number of rounds if answers are lost,
// and each party refreshes once in a round.
func TestAFollowingThiefIsFoundInALossyNetwork(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPair(t)
		for round := int64(0); ; round++ {
			if round > p.repeats {
				t.Fatalf("%d rounds, with a limit of %d: %+v", round, p.repeats, p.g)
			}
			first := rapid.IntRange(0, 1).Draw(t, "first")
			for _, party := range []int{first, 1 - first} {
				for lost := true; lost; {
					p.wait(drawWait(t))
					if lost = rapid.Bool().Draw(t, "lost"); p.refresh(party, lost) {
						return
					}
				}
			}
		}
	})
}

// generationsUntil returns the expected number of generations until `successive`
// generations in a row have had a repeat, if each has one with the probability loss. The
// states of the Markov chain are the lengths r of the run, from 0:
//
//	E(successive) = 0, and E(r) = 1 + loss·E(r+1) + (1−loss)·E(0)
//
// Each E(r) is a + b·E(0), calculated from the last state to the first.
func generationsUntil(successive int, loss float64) float64 {
	a, b := 0.0, 0.0
	for range successive {
		a, b = 1+loss*a, loss*b+1-loss
	}
	return a / (1 - b)
}

// DefaultRepeats is chosen so that a client that loses 30 % of the answers is logged out
// less than once in a hundred million generations. The code gives the number of generations
// with a repeat that end a session. The numbers stand in docs/decisions.
func TestHonestLossEndsFewSessions(t *testing.T) {
	const loss, bound = 0.3, 1e8
	h, ending := newLimited(DefaultRepeats), 0
	for over := false; !over && ending < 100; ending++ {
		token := h.g.Current
		h.present(token)
		_, v := h.present(token)
		over = v == overrun
	}
	if ending != DefaultRepeats+1 {
		t.Fatalf("a repeat in the generation %d in a row ends the session", ending)
	}
	for successive, want := range map[int]float64{1: 1 / loss, 2: (1/(loss*loss) - 1) / (1 - loss)} { // E(r) in cases with a known result
		if got := generationsUntil(successive, loss); got < want*0.999999 || got > want*1.000001 {
			t.Errorf("%v generations until %d with a repeat, want %v", got, successive, want)
		}
	}
	expected := generationsUntil(ending, loss)
	t.Logf("a session ends once in %.4g generations, %.4g requests", expected, expected/(1-loss))
	for limit := DefaultRepeats - 3; limit <= DefaultRepeats+1; limit++ {
		t.Logf("limit %d: %.4g generations", limit, generationsUntil(limit+1, loss))
	}
	if expected < bound {
		t.Errorf("a session ends once in %.4g generations", expected)
	}
	if lowest := 15; generationsUntil(lowest+1, loss) < bound || generationsUntil(lowest, loss) > bound {
		t.Errorf("%d is not the lowest limit", lowest)
	}
}
