package e2e

import (
	"testing"

	"github.com/anishathalye/porcupine"
)

// TestSessionModel gives small histories to the model. The model must accept allowed
// histories and refuse all others.
func TestSessionModel(t *testing.T) {
	refresh := func(call, ret, generation, got int64) event {
		return event{kind: refreshes, generation: generation, got: got, outcome: done, call: call, ret: ret}
	}
	lost := func(call, generation int64) event {
		return event{kind: refreshes, generation: generation, call: call, ret: never}
	}
	answered := func(k kind, o outcome, replica int, call, ret int64) event {
		return event{kind: k, generation: 1, replica: replica, outcome: o, call: call, ret: ret}
	}
	const late = int64(2 * lag)
	for _, c := range []struct {
		name    string
		history []event
		grace   bool // whether a server with a refresh grace may produce this history
		none    bool // whether a server without a refresh grace may produce this history
	}{
		{"one refresh after another", []event{refresh(1, 2, 1, 2), refresh(3, 4, 2, 3)}, true, true},
		{"after a lost answer, the same new token", []event{lost(1, 1), refresh(3, 4, 1, 2)}, true, true},
		{"after a lost answer, another new token", []event{lost(1, 1), refresh(3, 4, 1, 3)}, false, true},
		{"a token above the current generation", []event{refresh(1, 2, 2, 3)}, false, false},
		{"spent tokens bring the current token again", []event{refresh(1, 2, 1, 2), refresh(3, 4, 1, 2), refresh(5, 6, 2, 3), refresh(7, 8, 2, 3)}, true, false},
		{"a lost commit", []event{refresh(1, 2, 1, 2), refresh(3, 4, 2, 3), refresh(5, 6, 1, 2)}, false, false},
		{"two overlapping refreshes get the same new token", []event{refresh(1, 4, 1, 2), refresh(2, 3, 1, 2)}, true, false},
		{"two overlapping refreshes get different new tokens", []event{refresh(1, 4, 1, 2), refresh(2, 3, 1, 3)}, false, true},
		{"an old token brings the current token", []event{refresh(1, 2, 1, 2), refresh(3, 4, 2, 3), refresh(5, 6, 1, 3)}, true, false},
		{"an old token ends the session", []event{refresh(1, 2, 1, 2), refresh(3, 4, 2, 3), answered(refreshes, detected, 0, 5, 6)}, false, true},
		{"the current token ends the session", []event{refresh(1, 2, 1, 2), answered(refreshes, detected, 0, 5, 6)}, false, false},
		{"logged out", []event{answered(logsOut, done, 0, 1, 2), answered(refreshes, refused, 0, 3, 4)}, true, true},
		{"logged out by a call without an answer", []event{answered(logsOut, unknown, 0, 1, never), refresh(2, 3, 1, 2), answered(refreshes, refused, 0, 4, 5)}, true, true},
		{"ended without a logout", []event{answered(refreshes, refused, 0, 1, 2)}, false, false},
		{"a lost logout", []event{answered(logsOut, done, 0, 1, 2), refresh(3, 4, 1, 2)}, false, false},
		{"works again after its end", []event{answered(logsOut, unknown, 0, 1, never), answered(refreshes, refused, 0, 2, 3), refresh(4, 5, 1, 2)}, false, false},
		{"verified at the replica of the logout", []event{answered(logsOut, done, 1, 1, 2), answered(verifies, done, 1, 3, 4)}, false, false},
		{"verified at a replica that has refused a refresh", []event{answered(logsOut, done, 0, 1, 2), answered(refreshes, refused, 1, 3, 4), answered(verifies, done, 1, 5, 6)}, false, false},
		{"verified at another replica", []event{answered(logsOut, done, 1, 1, 2), answered(verifies, done, 2, 3, 4)}, true, true},
		{"verified at another replica after lag", []event{answered(logsOut, done, 1, 1, 2), answered(verifies, done, 2, late, late+1)}, false, false},
		{"verify refused before the end", []event{answered(verifies, refused, 2, 1, 2), answered(logsOut, done, 1, 3, 4)}, false, false},
	} {
		for r, allowed := range map[rules]bool{{grace: true}: c.grace, {}: c.none} {
			verdict := porcupine.CheckOperationsTimeout(r.model(), operations(r.prepare(c.history, nil)), judgeTimeout)
			if want := map[bool]porcupine.CheckResult{true: porcupine.Ok, false: porcupine.Illegal}[allowed]; verdict != want {
				t.Errorf("%s, with a grace: %t: got verdict %s, want %s", c.name, r.grace, verdict, want)
			}
		}
	}
	// A server carries out a refresh twice after a lost connection to the database.
	twice := []event{refresh(1, 8, 1, 3), refresh(2, 3, 1, 2), refresh(4, 5, 2, 3)}
	unseen := []event{refresh(1, 8, 1, 3), refresh(2, 3, 2, 3)}
	r := rules{grace: true}
	for name, c := range map[string]struct {
		history []event
		broken  []window
		want    porcupine.CheckResult
	}{
		"two clients race":               {twice, nil, porcupine.Ok},
		"no disturbance":                 {unseen, nil, porcupine.Illegal},
		"disturbance during the refresh": {unseen, []window{{5, 6}}, porcupine.Ok},
		"disturbance after the refresh":  {unseen, []window{{9, 10}}, porcupine.Illegal},
	} {
		if verdict := porcupine.CheckOperationsTimeout(r.model(), operations(r.prepare(c.history, c.broken)), judgeTimeout); verdict != c.want {
			t.Errorf("%s: got verdict %s, want %s", name, verdict, c.want)
		}
	}
}
