package rpc

import (
	"errors"
	"log/slog"
	"runtime/debug"
)

// Abandon runs fn in a goroutine of its own and returns what it returns, or
// raises its panic again here, where a recovery interceptor catches it. When quit
// is ready first, it returns reason and leaves fn behind: for a stream's handler,
// which nothing but the end of its stream gets out of a Recv or a Send. A panic of
// one that was left behind is logged.
func Abandon[T any](logger *slog.Logger, quit <-chan T, reason error, fn func() error) error {
	ended := make(chan outcome)
	left := make(chan struct{})
	go run(fn, func(o outcome) {
		select {
		case ended <- o:
		case <-left:
			if o.panicked != nil {
				logger.Error("panic in a handler whose stream had ended", "panic", o.panicked, "stack", string(debug.Stack()))
			}
		}
	})
	select {
	case o := <-ended:
		if o.panicked != nil {
			panic(o.panicked)
		}
		return o.err
	case <-quit:
		close(left)
		return reason
	}
}

// outcome is how a function has ended.
type outcome struct {
	err      error
	panicked any
}

var errExited = errors.New("runtime.Goexit was called")

// run tells of the end of fn, whichever it is, with the stack of a panic still there.
func run(fn func() error, end func(outcome)) {
	o := outcome{panicked: errExited}
	defer func() {
		if p := recover(); p != nil {
			o.panicked = p
		}
		end(o)
	}()
	err := fn()
	o = outcome{err: err}
}
