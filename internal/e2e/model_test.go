package e2e

import (
	"testing"

	"github.com/anishathalye/porcupine"
)

// The model of a session's history takes what the rules allow, and nothing else.
func TestTheModelOfASession(t *testing.T) {
	refresh := func(call, ret, generation, got int64) event {
		return event{kind: refreshes, generation: generation, got: got, outcome: done, call: call, ret: ret}
	}
	lost := func(call, generation int64) event {
		return event{kind: refreshes, generation: generation, call: call, ret: never}
	}
	told := func(k kind, o outcome, replica int, call, ret int64) event {
		return event{kind: k, generation: 1, replica: replica, outcome: o, call: call, ret: ret}
	}
	const late = int64(2 * lag)
	for _, c := range []struct {
		name    string
		history []event
		grace   bool // it is allowed with a grace,
		none    bool // and without one
	}{
		{"one after the other", []event{refresh(1, 2, 1, 2), refresh(3, 4, 2, 3)}, true, true},
		{"a lost answer again", []event{lost(1, 1), refresh(3, 4, 1, 2)}, true, true},
		{"a lost answer, and late a new one", []event{lost(1, 1), refresh(3, 4, 1, 3)}, false, true},
		{"a token that was never made", []event{refresh(1, 2, 2, 3)}, false, false},
		{"the same again and again", []event{refresh(1, 2, 1, 2), refresh(3, 4, 1, 2), refresh(5, 6, 2, 3), refresh(7, 8, 2, 3)}, true, false},
		{"a commit that was lost", []event{refresh(1, 2, 1, 2), refresh(3, 4, 2, 3), refresh(5, 6, 1, 2)}, false, false},
		{"two get the same new one", []event{refresh(1, 4, 1, 2), refresh(2, 3, 1, 2)}, true, false},
		{"two get one each", []event{refresh(1, 4, 1, 2), refresh(2, 3, 1, 3)}, false, true},
		{"one from before goes on", []event{refresh(1, 2, 1, 2), refresh(3, 4, 2, 3), refresh(5, 6, 1, 3)}, true, false},
		{"one from before is found", []event{refresh(1, 2, 1, 2), refresh(3, 4, 2, 3), told(refreshes, detected, 0, 5, 6)}, false, true},
		{"found without a cause", []event{refresh(1, 2, 1, 2), told(refreshes, detected, 0, 5, 6)}, false, false},
		{"logged out", []event{told(logsOut, done, 0, 1, 2), told(refreshes, refused, 0, 3, 4)}, true, true},
		{"logged out by a call without an answer", []event{told(logsOut, unknown, 0, 1, never), refresh(2, 3, 1, 2), told(refreshes, refused, 0, 4, 5)}, true, true},
		{"ended without a cause", []event{told(refreshes, refused, 0, 1, 2)}, false, false},
		{"a logout that was lost", []event{told(logsOut, done, 0, 1, 2), refresh(3, 4, 1, 2)}, false, false},
		{"an end that was taken back", []event{told(logsOut, unknown, 0, 1, never), told(refreshes, refused, 0, 2, 3), refresh(4, 5, 1, 2)}, false, false},
		{"verified where it was logged out", []event{told(logsOut, done, 1, 1, 2), told(verifies, done, 1, 3, 4)}, false, false},
		{"verified where it was refused", []event{told(logsOut, done, 0, 1, 2), told(refreshes, refused, 1, 3, 4), told(verifies, done, 1, 5, 6)}, false, false},
		{"verified elsewhere", []event{told(logsOut, done, 1, 1, 2), told(verifies, done, 2, 3, 4)}, true, true},
		{"verified elsewhere, too late", []event{told(logsOut, done, 1, 1, 2), told(verifies, done, 2, late, late+1)}, false, false},
		{"revoked before the end", []event{told(verifies, refused, 2, 1, 2), told(logsOut, done, 1, 3, 4)}, false, false},
	} {
		for r, allowed := range map[rules]bool{{grace: true}: c.grace, {}: c.none} {
			verdict := porcupine.CheckOperationsTimeout(r.model(), operations(r.prepare(c.history, nil)), judging)
			if want := map[bool]porcupine.CheckResult{true: porcupine.Ok, false: porcupine.Illegal}[allowed]; verdict != want {
				t.Errorf("%s, with a grace: %t: %s, want %s", c.name, r.grace, verdict, want)
			}
		}
	}
	// What a server did twice, since it lost its connection.
	twice := []event{refresh(1, 8, 1, 3), refresh(2, 3, 1, 2), refresh(4, 5, 2, 3)}
	unseen := []event{refresh(1, 8, 1, 3), refresh(2, 3, 2, 3)}
	r := rules{grace: true}
	for name, c := range map[string]struct {
		history []event
		broken  []window
		want    porcupine.CheckResult
	}{
		"a race":              {twice, nil, porcupine.Ok},
		"undisturbed":         {unseen, nil, porcupine.Illegal},
		"disturbed":           {unseen, []window{{5, 6}}, porcupine.Ok},
		"disturbed afterward": {unseen, []window{{9, 10}}, porcupine.Illegal},
	} {
		if verdict := porcupine.CheckOperationsTimeout(r.model(), operations(r.prepare(c.history, c.broken)), judging); verdict != c.want {
			t.Errorf("%s: %s, want %s", name, verdict, c.want)
		}
	}
}
