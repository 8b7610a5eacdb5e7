package rpc

// Abandon runs fn in a goroutine of its own and returns what it returns, or
// raises its panic again here, where a recovery interceptor catches it. When quit
// is ready first, it returns reason and leaves fn behind: for a stream's handler,
// which nothing but the end of its stream gets out of a Recv or a Send.
func Abandon[T any](quit <-chan T, reason error, fn func() error) error {
	done := make(chan error, 1)
	panicked := make(chan any, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				panicked <- p
			}
		}()
		done <- fn()
	}()
	select {
	case err := <-done:
		return err
	case p := <-panicked:
		panic(p)
	case <-quit:
		return reason
	}
}
