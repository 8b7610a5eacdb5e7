package rpc

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/grpc"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/internal/audit"
)

const (
	// callsAtOnce bounds the calls of one user that run at a time. A list reads the rows
	// of one page, which takes some milliseconds, so other users wait for less than a
	// tenth of a second while all these calls have their turns at the database. While
	// the database is away, so many calls of one user learn of that at once; a smaller
	// bound would let the other calls wait until their deadlines.
	callsAtOnce = 32
	// callsWaiting bounds the calls of one user that wait, and so their memory.
	callsWaiting = 100
)

// errTooManyCalls refuses a call of a user with callsWaiting waiting calls.
var errTooManyCalls = errors.New("too many calls of one user at once")

// Turns gives each signed-in user a share of the server. Of the calls of one user,
// callsAtOnce run at a time, and callsWaiting more wait for their turn, the first come
// first. Any further call of the user is refused. So one user delays other users little,
// however many calls the user makes. A call of a public method has no user: it runs at
// once.
//
// Turns is safe for concurrent use. The zero value is ready for use.
type Turns struct {
	mu    sync.Mutex
	users map[string]*turn // by id; a user without calls has no entry
}

// turn holds the calls of one user.
type turn struct {
	running chan struct{} // has an element for each running call
	calls   int           // running and waiting; guarded by Turns.mu
}

// Unary intercepts a unary call behind the verifier.
func (t *Turns) Unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	p, ok := authn.FromContext(ctx)
	if !ok {
		return handler(ctx, req)
	}
	leave, err := t.enter(ctx, p.Subject())
	if errors.Is(err, errTooManyCalls) {
		err = audit.Refusal{UserID: p.Subject(), SessionID: p.SessionID(), Err: err}
	}
	if err != nil {
		return nil, err
	}
	defer leave()
	return handler(ctx, req)
}

// enter waits for the turn of a call. The caller must call leave after the call. Errors:
// errTooManyCalls; the error of ctx if ctx ends before the turn.
func (t *Turns) enter(ctx context.Context, user string) (leave func(), err error) {
	u := t.join(user)
	if u == nil {
		return nil, errTooManyCalls
	}
	select {
	case u.running <- struct{}{}:
		return func() { <-u.running; t.part(user, u) }, nil
	case <-ctx.Done():
		t.part(user, u)
		return nil, ctx.Err()
	}
}

// join adds a call of a user, and returns nil if there are too many.
func (t *Turns) join(user string) *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.users[user]
	if u == nil {
		u = &turn{running: make(chan struct{}, callsAtOnce)}
		if t.users == nil {
			t.users = map[string]*turn{}
		}
		t.users[user] = u
	}
	if u.calls == callsAtOnce+callsWaiting {
		return nil
	}
	u.calls++
	return u
}

// part removes a call of a user.
func (t *Turns) part(user string, u *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if u.calls--; u.calls == 0 {
		delete(t.users, user)
	}
}
