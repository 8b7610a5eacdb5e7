// Package detach runs a function so that the caller can return before the function ends. A gRPC
// interceptor needs package detach to end a stream: the handler can block in Recv or Send until
// the stream ends, and the stream ends only when the interceptor returns.
package detach

import (
	"runtime/debug"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errExited reports that the function given to [Go] has called runtime.Goexit.
var errExited = status.Error(codes.Internal, "the handler ended without an answer: runtime.Goexit was called")

// A Call holds one run of a function in a goroutine of its own.
type Call struct {
	done  chan struct{} // closed when the function has ended and the fields below are written
	err   error
	fault any // the value of a panic of the function, or errExited; nil: the function has returned
	stack []byte
}

// Go starts fn in a goroutine of its own.
func Go(fn func() error) *Call {
	c := &Call{done: make(chan struct{}), fault: errExited}
	go func() {
		defer close(c.done)
		defer func() {
			if p := recover(); p != nil {
				c.fault = p
			}
			if c.fault != nil {
				c.stack = debug.Stack()
			}
		}()
		c.err = fn()
		c.fault = nil
	}()
	return c
}

// Done returns a channel that is closed when the function given to [Go] has ended.
func (c *Call) Done() <-chan struct{} { return c.done }

// Result waits for the end of fn and returns its error. If fn has panicked, Result panics with
// the same value in the goroutine of its caller, where a recovery interceptor sees the panic. A
// function that called runtime.Goexit gives an INTERNAL status.
func (c *Call) Result() error {
	<-c.done
	switch {
	case c.fault == error(errExited):
		return errExited
	case c.fault != nil:
		panic(c.fault)
	}
	return c.err
}

// Leave gives up the result and returns at once. If fn later panics or calls runtime.Goexit, a
// goroutine of Leave calls the function late with the fault and the stack of fn.
func (c *Call) Leave(late func(fault any, stack []byte)) {
	go func() {
		<-c.done
		if c.fault != nil {
			late(c.fault, c.stack)
		}
	}()
}
