package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// people are clients of an installation. The clients keep calling during all faults, and
// record the answers.
type people struct {
	t     *testing.T
	rules rules
	rec   *recorder
	admin *watchwordv1.TokenPair
	all   []*person
	stop  atomic.Bool
	// preferChanges is true shortly before a kill of the primary. Then most calls
	// change data, because the fault must not lose an acknowledged change.
	preferChanges atomic.Bool

	mu       sync.Mutex
	sessions []*device
	guests   map[string]bool // by the name of each new user: whether CreateUser was acknowledged
}

// person is a user with one session at a time. A person calls every replica.
type person struct {
	*people
	id, name, password string
	doors              []*client // a client for each replica
	roles              atomic.Int64
	names              atomic.Int64

	mu  sync.Mutex
	now *device
}

// device keeps the tokens of a session. Several goroutines make calls with the tokens.
type device struct {
	session string

	mu          sync.Mutex // guards the fields below
	newest      int64      // the highest generation of tokens
	tokens      []string   // the received refresh tokens
	access      string
	calls       int
	logoutAfter int  // the number of calls before a logout
	asked       bool // a logout was sent
	over        bool // an answer showed the session's end
	lost        int  // refreshes without an answer
}

// callPatience is the usual deadline of a call. Some calls have a random deadline below
// haste, so the server may carry out such a call after the client has given up.
const (
	callPatience = 3 * time.Second
	haste        = 20 * time.Millisecond
)

// door returns a random replica with a working connection. Without a working connection,
// door returns any replica.
func (p *person) door() (int, *client) {
	start := rand.IntN(len(p.doors))
	for i := range p.doors {
		at := (start + i) % len(p.doors)
		if p.doors[at].conn.GetState() == connectivity.Ready {
			return at, p.doors[at]
		}
		p.doors[at].conn.Connect()
	}
	return start, p.doors[start]
}

// within returns a context with a deadline for a call. With a grace, some deadlines are
// shorter than haste.
func (p *people) within() (context.Context, context.CancelFunc) {
	p.rec.calls.Add(1)
	patience := callPatience
	if p.rules.grace && !p.stop.Load() && rand.IntN(20) == 0 {
		patience = rand.N(haste)
	}
	return context.WithTimeout(context.Background(), patience)
}

// unanswered reports whether an error leaves open if the server carried out the call, or
// the server was overloaded. unanswered then sleeps a moment, as a client should before a
// retry.
func unanswered(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.ResourceExhausted:
		time.Sleep(rand.N(50 * time.Millisecond))
		return true
	}
	return false
}

// outcomeOf converts an answer to an outcome. outcomeOf fails the test for an answer that
// the server must never give.
func (p *person) outcomeOf(what string, err error) outcome {
	switch {
	case err == nil:
		return done
	case unanswered(err):
		return unknown
	}
	switch authn.Reason(err) {
	case watchwordv1.ErrorReason_ERROR_REASON_SESSION_REVOKED, watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED:
		return refused
	case watchwordv1.ErrorReason_ERROR_REASON_REFRESH_TOKEN_REUSED:
		return detected
	case watchwordv1.ErrorReason_ERROR_REASON_TOKEN_STALE:
		return done // the roles have changed, and the session goes on
	}
	p.t.Errorf("%s of %s: unexpected error %v", what, p.name, err)
	return unknown
}

// makeCalls makes random calls until p.stop is true.
func (p *person) makeCalls() {
	for !p.stop.Load() {
		d := p.device()
		if d == nil {
			continue // the login had no answer
		}
		roll := rand.IntN(1000)
		if p.preferChanges.Load() && rand.IntN(4) > 0 {
			roll = []int{850, 850, 916, 999}[rand.IntN(4)]
		}
		switch {
		case roll < 700:
			p.refresh(d)
		case roll < 850:
			p.verify(d)
		case roll < 880:
			p.setRoles()
		case roll < 915:
			p.getRoles()
		case roll < 918:
			p.makeGuest()
		default:
			p.logout(d)
		}
	}
}

// device returns the person's session. If the session is over, device logs in again. device
// returns nil if the login got no answer.
func (p *person) device() *device {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now != nil && !p.now.isOver() && !p.givesUp(p.now) {
		return p.now
	}
	at, door := p.door()
	ctx, cancel := context.WithTimeout(context.Background(), 2*callPatience) // the login waits in the queue for a hash
	defer cancel()
	call := p.rec.now()
	resp, err := door.Login(ctx, &watchwordv1.LoginRequest{Username: p.name, Password: p.password}, grpc.WaitForReady(true))
	if err != nil {
		if !unanswered(err) {
			p.t.Errorf("login of %s at %d: %v", p.name, at, err)
		}
		return nil
	}
	pair := noteTokens(resp.GetTokens())
	p.rec.addRights(rights{user: p.name, roles: rolesOf(pair.GetAccessToken())}, call)
	p.now = &device{
		session: pair.GetSessionId(), newest: 1, tokens: []string{pair.GetRefreshToken()}, access: pair.GetAccessToken(), logoutAfter: 10 + rand.IntN(60),
	}
	p.people.mu.Lock()
	p.sessions = append(p.sessions, p.now)
	p.people.mu.Unlock()
	return p.now
}

// givesUp reports whether the client stops using a session. Without a grace, each call
// without an answer doubles the possible histories, and Porcupine can judge only a few such
// calls.
func (p *people) givesUp(d *device) bool {
	const most = 3
	d.mu.Lock()
	defer d.mu.Unlock()
	return !p.rules.grace && d.lost >= most
}

func (d *device) isOver() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.over
}

// token returns the newest refresh token, or with a chance of older percent an older token.
func (d *device) token(older int) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls++
	if rand.IntN(100) < older {
		return d.tokens[rand.IntN(len(d.tokens))]
	}
	return d.tokens[len(d.tokens)-1]
}

func (d *device) receive(pair *watchwordv1.TokenPair) (generation int64) {
	generation = generationOf(pair.GetRefreshToken())
	d.mu.Lock()
	defer d.mu.Unlock()
	if generation > d.newest {
		d.newest, d.access = generation, pair.GetAccessToken()
		d.tokens = append(d.tokens, pair.GetRefreshToken())
	}
	return generation
}

// end notes the end of the session. unasked is true if no logout was sent.
func (d *device) end() (unasked bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	return !d.asked
}

func (p *person) refresh(d *device) {
	older := 10
	if !p.rules.grace {
		older = 4
	}
	token := d.token(older)
	at, door := p.door()
	ctx, cancel := p.within()
	defer cancel()
	e := event{kind: refreshes, session: d.session, replica: at, generation: generationOf(token), call: p.rec.now()}
	resp, err := door.Refresh(ctx, &watchwordv1.RefreshRequest{RefreshToken: token}, grpc.WaitForReady(true))
	e.outcome = p.outcomeOf("refresh", err)
	if err == nil {
		e.got = d.receive(noteTokens(resp.GetTokens()))
	}
	p.rec.add(e)
	if e.outcome == unknown {
		d.mu.Lock()
		d.lost++
		d.mu.Unlock()
	}
	if e.outcome == refused || e.outcome == detected {
		if d.end() && p.rules.grace {
			p.t.Errorf("session %s of %s ended without a logout: %v", d.session, p.name, e)
		}
	}
}

func (p *person) verify(d *device) {
	d.mu.Lock()
	raw := d.access
	d.mu.Unlock()
	at, door := p.door()
	ctx, cancel := p.within()
	defer cancel()
	e := event{kind: verifies, session: d.session, replica: at, call: p.rec.now()}
	_, err := door.Verify(ctx, &watchwordv1.VerifyRequest{AccessToken: raw}, grpc.WaitForReady(true))
	if authn.Reason(err) != watchwordv1.ErrorReason_ERROR_REASON_UNSPECIFIED && status.Code(err) == codes.Unavailable {
		p.t.Errorf("Verify must answer from memory, got: %v", err)
	}
	e.outcome = p.outcomeOf("verify", err)
	p.rec.add(e)
}

func (p *person) logout(d *device) {
	token := d.token(20)
	d.mu.Lock()
	early := d.calls < d.logoutAfter && !p.preferChanges.Load()
	d.asked = d.asked || !early
	d.mu.Unlock()
	if early {
		return
	}
	at, door := p.door()
	ctx, cancel := p.within()
	defer cancel()
	e := event{kind: logsOut, session: d.session, replica: at, call: p.rec.now()}
	_, err := door.Logout(ctx, &watchwordv1.LogoutRequest{RefreshToken: token}, grpc.WaitForReady(true))
	e.outcome = p.outcomeOf("logout", err)
	p.rec.add(e)
	if e.outcome == done {
		d.end()
	}
}

func (p *person) setRoles() {
	role := fmt.Sprintf("r%d", p.roles.Add(1))
	_, door := p.door()
	ctx, cancel := p.within()
	defer cancel()
	call := p.rec.now()
	_, err := door.UpdateUser(bearer(ctx, p.admin), &watchwordv1.UpdateUserRequest{
		User: &watchwordv1.User{Id: p.id, Roles: []string{role}}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"roles"}},
	}, grpc.WaitForReady(true))
	if err != nil && !unanswered(err) {
		p.t.Errorf("setting the roles of %s: %v", p.name, err)
	}
	p.rec.addRights(rights{user: p.name, set: true, roles: role, lost: err != nil}, call)
}

func (p *person) getRoles() {
	_, door := p.door()
	ctx, cancel := p.within()
	defer cancel()
	call := p.rec.now()
	resp, err := door.GetUser(bearer(ctx, p.admin), &watchwordv1.GetUserRequest{Key: &watchwordv1.GetUserRequest_Id{Id: p.id}}, grpc.WaitForReady(true))
	if err != nil && !unanswered(err) {
		p.t.Errorf("reading %s: %v", p.name, err)
	}
	p.rec.addRights(rights{user: p.name, roles: joined(resp.GetUser().GetRoles()), lost: err != nil}, call)
}

// makeGuest creates a user with a new name.
func (p *person) makeGuest() {
	name := fmt.Sprintf("guest-%d-of-%s", p.names.Add(1), p.name)
	_, door := p.door()
	ctx, cancel := context.WithTimeout(context.Background(), 2*callPatience)
	defer cancel()
	_, err := door.CreateUser(bearer(ctx, p.admin), &watchwordv1.CreateUserRequest{Username: name, Password: p.password}, grpc.WaitForReady(true))
	if err != nil && !unanswered(err) {
		p.t.Errorf("creating %s: %v", name, err)
	}
	if err == nil {
		p.rec.acked.Add(1)
	}
	p.people.mu.Lock()
	p.guests[name] = err == nil
	p.people.mu.Unlock()
}

// verifySessions verifies random sessions among the newest 40 at all replicas, until p.stop
// is true.
func (p *person) verifySessions() {
	const newest = 40
	for !p.stop.Load() {
		p.people.mu.Lock()
		var d *device
		if n := len(p.sessions); n > 0 {
			d = p.sessions[n-1-rand.IntN(min(n, newest))]
		}
		p.people.mu.Unlock()
		if d != nil {
			p.verify(d)
		}
	}
}

// checkEnd checks everything acknowledged, after the last fault. The answers about sessions
// and roles become part of the history.
func (p *people) checkEnd(in *installation) error {
	var errs []error
	for _, person := range p.all {
		for range person.doors {
			person.getRoles()
		}
	}
	asking := p.all[0]
	for _, d := range p.sessions {
		d.mu.Lock()
		mustBeOver := d.over
		d.over = false
		d.mu.Unlock()
		asking.verify(d)
		asking.refresh(d)
		if mustBeOver && !d.isOver() {
			errs = append(errs, fmt.Errorf("session %s works again after its end", d.session))
		}
		for i, door := range asking.doors {
			eventually(p.t, propagation, "a replica knows the session's state", func() error {
				_, err := door.Verify(callCtx(p.t), &watchwordv1.VerifyRequest{AccessToken: d.access})
				if d.isOver() {
					err = checkRefusal(err, "TOKEN_REVOKED")
				} else if err != nil && checkRefusal(err, "TOKEN_STALE") == nil {
					err = nil
				}
				if err != nil {
					err = fmt.Errorf("replica %d, session %s, has ended: %t: %w", i, d.session, d.isOver(), err)
				}
				return err
			})
		}
	}
	for name, acknowledged := range p.guests {
		_, err := asking.doors[0].GetUser(bearer(callCtx(p.t), p.admin), &watchwordv1.GetUserRequest{Key: &watchwordv1.GetUserRequest_Username{Username: name}})
		if err != nil && (acknowledged || checkRefusal(err, "USER_NOT_FOUND") != nil) {
			errs = append(errs, fmt.Errorf("user %s, acknowledged: %t: %w", name, acknowledged, err))
		}
	}
	return errors.Join(errs...)
}
