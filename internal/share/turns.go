package share

import (
	"context"
	"errors"
	"sync"
)

// ErrNoTurn reports that [Turns.Enter] has refused a call, because too many calls with the same
// key wait already.
var ErrNoTurn = errors.New("too many calls at once")

// Turns bounds the calls with the same key, such as the id of a user, that run at a time. A
// call waits only for calls with the same key. A waiting call takes only the memory of its
// goroutine.
//
// Turns is safe for concurrent use.
type Turns struct {
	atOnce  int
	waiting int

	mu   sync.Mutex
	keys map[string]*turn // only keys with a running or waiting call
}

// turn counts the calls with one key.
type turn struct {
	running chan struct{} // holds one element for each running call
	calls   int           // running and waiting calls; Turns.mu guards calls
}

// NewTurns returns a Turns that lets atOnce calls with one key run at a time. Up to `waiting`
// further calls with the key wait, in order of arrival.
func NewTurns(atOnce, waiting int) *Turns {
	return &Turns{atOnce: atOnce, waiting: waiting, keys: map[string]*turn{}}
}

// Enter waits until fewer than atOnce calls with the same key run. The caller must call leave
// once, after the call. Errors: ErrNoTurn; the error of ctx if ctx ends during the wait.
func (t *Turns) Enter(ctx context.Context, key string) (leave func(), err error) {
	of := t.join(key)
	if of == nil {
		return nil, ErrNoTurn
	}
	select {
	case of.running <- struct{}{}:
		return func() { <-of.running; t.part(key, of) }, nil
	case <-ctx.Done():
		t.part(key, of)
		return nil, ctx.Err()
	}
}

// join adds a call with a key, running or waiting. join returns nil if too many calls have this
// key already.
func (t *Turns) join(key string) *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	of := t.keys[key]
	if of == nil {
		of = &turn{running: make(chan struct{}, t.atOnce)}
		t.keys[key] = of
	}
	if of.calls == t.atOnce+t.waiting {
		return nil
	}
	of.calls++
	return of
}

// part removes a call with a key, when the call has ended or has stopped waiting.
func (t *Turns) part(key string, of *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if of.calls--; of.calls == 0 {
		delete(t.keys, key)
	}
}
