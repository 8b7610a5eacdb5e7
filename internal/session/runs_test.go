package session_test

// runs models the limit of repeats. The model knows the answers alone: which refresh token
// was presented, and which refresh token the answer holds.
//
// A token presented for the second time is a repeat. Each refresh token in an answer counts
// as repeated at most once: when it is the newest token, and an answer to a repeat holds
// the token, or holds another in its place. A run of repeated tokens is broken when a
// token is repeated that was first given after the last repeat: so at least one token in
// between was spent and not repeated.
type runs struct {
	limit, run int
	order      map[string]int  // the tokens in the order in which they were first given
	presented  map[string]bool // tokens that a client has presented, and the server has answered
	newest     string
	repeated   string // the newest token when the last repeat came
}

func newRuns(first string) *runs {
	return &runs{order: map[string]int{first: 1}, presented: map[string]bool{}, newest: first}
}

// next returns the length of the run, if a token is presented now and answered.
func (r *runs) next(token string) int {
	switch {
	case !r.presented[token] || r.repeated == r.newest: // the first use of the token, or a repeat after the newest token had one
		return r.run
	case r.order[r.repeated] >= r.order[token]:
		return r.run + 1
	}
	return 1
}

// over reports whether a token is a repeat above the limit, if presented now.
func (r *runs) over(token string) bool { return r.next(token) > r.limit }

// note stores that a token was presented, and which refresh token the answer holds.
func (r *runs) note(token, got string) {
	repeat := r.presented[token]
	r.run, r.presented[token] = r.next(token), true
	if r.order[got] == 0 {
		r.order[got] = len(r.order) + 1
	}
	if r.newest = got; repeat {
		r.repeated = got
	}
}
