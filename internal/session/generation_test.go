package session

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/watchword-auth/watchword/internal/store"
)

const grace = 10 * time.Second

var start = time.Date(2026, 1, 1, 0, 0, 3, 0, time.UTC)

// history is a session's row, the clock and the limit of repeats.
type history struct {
	g       store.Generations
	now     time.Time
	repeats int64
}

// newHistory begins a session whose repeats have no limit.
func newHistory() *history { return newLimited(math.MaxInt64) }

func newLimited(repeats int64) *history {
	return &history{g: store.Generations{Current: 1}, now: start, repeats: repeats}
}

func (h *history) present(n int64) (int64, verdict) {
	next, v := present(h.g, n, h.now, limits{grace, h.repeats})
	if ends(v) && next != h.g {
		panic("a refusal changes the row")
	}
	h.g = next
	return h.g.Current, v
}

func ends(v verdict) bool { return v == reused || v == overrun }

func (h *history) wait(d time.Duration) { h.now = h.now.Add(d) }

func TestPresent(t *testing.T) {
	type step struct {
		wait    time.Duration
		present int64
		want    verdict
		current int64
	}
	for name, steps := range map[string][]step{
		"advances":                            {{0, 1, advanced, 2}, {time.Minute, 2, advanced, 3}, {time.Minute, 3, advanced, 4}},
		"lost answer within the grace":        {{0, 1, advanced, 2}, {9 * time.Second, 1, repeated, 2}},
		"a retry does not lengthen the grace": {{0, 1, advanced, 2}, {9 * time.Second, 1, repeated, 2}, {2 * time.Second, 1, retried, 3}},
		"late retry gets a new successor":     {{0, 1, advanced, 2}, {time.Hour, 1, retried, 3}},
		"the unconfirmed one is dead":         {{0, 1, advanced, 2}, {time.Hour, 1, retried, 3}, {0, 2, reused, 3}},
		"dead within the grace too":           {{0, 1, advanced, 2}, {time.Hour, 1, retried, 3}, {time.Second, 3, advanced, 4}, {0, 2, reused, 4}},
		"late retry may be repeated":          {{0, 1, advanced, 2}, {time.Hour, 1, retried, 3}, {time.Second, 1, repeated, 3}},
		"late retry, then its successor, then late again": {
			{0, 1, advanced, 2}, {time.Hour, 1, retried, 3}, {time.Second, 3, advanced, 4}, {time.Second, 1, repeated, 4}},
		"twice late":                      {{0, 1, advanced, 2}, {time.Hour, 1, retried, 3}, {time.Hour, 1, retried, 4}, {0, 3, reused, 4}},
		"an older one within the grace":   {{0, 1, advanced, 2}, {time.Second, 2, advanced, 3}, {time.Second, 1, repeated, 3}},
		"an older one after the grace":    {{0, 1, advanced, 2}, {time.Second, 2, advanced, 3}, {11 * time.Second, 1, reused, 3}},
		"an old one":                      {{0, 1, advanced, 2}, {time.Minute, 2, advanced, 3}, {time.Second, 1, reused, 3}},
		"a row that fell behind":          {{0, 7, advanced, 8}, {time.Second, 7, repeated, 8}, {0, 6, reused, 8}},
		"every nine seconds for a minute": {{0, 1, advanced, 2}, {9 * time.Second, 2, advanced, 3}, {9 * time.Second, 3, advanced, 4}, {9 * time.Second, 4, advanced, 5}, {0, 1, reused, 5}},
		"never issued":                    {{0, 0, reused, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHistory()
			for i, s := range steps {
				h.wait(s.wait)
				if current, v := h.present(s.present); v != s.want || current != s.current {
					t.Fatalf("step %d: presenting %d gave verdict %d and generation %d, want %d and %d",
						i, s.present, v, current, s.want, s.current)
				}
			}
		})
	}
}

func drawWait(t *rapid.T) time.Duration {
	return time.Duration(rapid.OneOf(rapid.Int64Range(0, int64(3*grace)), rapid.Just(int64(grace)),
		rapid.Just(int64(time.Hour))).Draw(t, "wait"))
}

// Without a limit of repeats, a client that uses its session alone and honestly is refused in
// one case only: the client has the answer of a later request, and an abandoned request arrives
// after the grace period of its token. The grace period runs from the first use of the token,
// even if the answer was lost: retries could keep open a grace period that runs from an answer.
func TestHonestClientAloneIsNeverRefused(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type request struct {
			token    int64
			answered bool // a later request was answered
		}
		h, token := newHistory(), int64(1)
		spent := map[int64]time.Time{} // by token: when the token was spent, or retried late for the last time
		present := func(token int64) (int64, verdict) {
			current, v := h.present(token)
			if v == advanced || v == retried {
				spent[token] = h.now
			}
			return current, v
		}
		var lingering []request
		answer := func(current int64) {
			token = current
			for i := range lingering {
				lingering[i].answered = true
			}
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			h.wait(drawWait(t))
			switch rapid.SampledFrom([]string{"refresh", "lost answer", "lingers", "arrives"}).Draw(t, "what") {
			case "refresh":
				current, v := present(token)
				if v == reused {
					t.Fatalf("refused its newest token %d: %+v", token, h.g)
				}
				answer(current)
			case "lost answer":
				if _, v := present(token); v == reused {
					t.Fatalf("refused its newest token %d: %+v", token, h.g)
				}
			case "lingers":
				lingering = append(lingering, request{token: token})
			case "arrives":
				if len(lingering) == 0 {
					continue
				}
				i := rapid.IntRange(0, len(lingering)-1).Draw(t, "which")
				r := lingering[i]
				lingering = append(lingering[:i:i], lingering[i+1:]...)
				if r.answered && h.now.Sub(spent[r.token]) >= grace {
					continue // the exception that the comment of this test describes
				}
				if _, v := present(r.token); v == reused {
					t.Fatalf("refused a request that lingered with %d: %+v at %v", r.token, h.g, h.now)
				}
			}
		}
	})
}

// Once two parties hold tokens of one session, reuse is found at the latest
// when the second of them comes back after the grace and the first presents the
// newest token that it received.
func TestTheftIsFound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory()
		tokens := [2]int64{1, 1}
		// refresh presents a party's token, and reports whether reuse was found.
		refresh := func(party int, lost bool) bool {
			current, v := h.present(tokens[party])
			if v == reused {
				return true
			}
			if !lost {
				tokens[party] = current
			}
			return false
		}
		for range rapid.IntRange(0, 30).Draw(t, "steps") {
			h.wait(drawWait(t))
			if refresh(rapid.IntRange(0, 1).Draw(t, "party"), rapid.Bool().Draw(t, "lost")) {
				return
			}
		}
		first := rapid.IntRange(0, 1).Draw(t, "first")
		second := 1 - first
		h.wait(drawWait(t))
		if refresh(first, false) {
			return
		}
		if tokens[second] == tokens[first] {
			return // the second party has received the token too: the party has just come back, and not after the grace
		}
		h.wait(grace + drawWait(t))
		if refresh(second, rapid.Bool().Draw(t, "lost")) {
			return
		}
		h.wait(drawWait(t))
		if !refresh(first, false) {
			t.Fatalf("both go on: %+v, tokens %v", h.g, tokens)
		}
	})
}

// A refresh token that was used longer ago than two grace periods is never treated as used
// within the grace period.
func TestGraceIsBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory()
		spentAt := map[int64]time.Time{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			h.wait(time.Duration(rapid.Int64Range(0, int64(2*grace)).Draw(t, "wait")))
			for n, at := range spentAt {
				_, v := present(h.g, n, h.now, limits{grace, h.repeats})
				if age := h.now.Sub(at); v == repeated && age >= 2*grace {
					t.Fatalf("%d was spent %v ago and counts: %+v", n, age, h.g)
				} else if v == reused && age < grace {
					t.Fatalf("%d was spent %v ago and is refused: %+v", n, age, h.g)
				}
			}
			spentAt[h.g.Current] = h.now
			h.present(h.g.Current)
		}
	})
}
