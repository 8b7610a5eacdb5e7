package detach_test

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/internal/detach"
)

// After Leave, a panic or runtime.Goexit of the function is reported; an ordinary
// return is not.
func TestLateFaultsAreHeardOf(t *testing.T) {
	for name, late := range map[string]struct {
		end   func()
		heard []string
	}{
		"panic":  {func() { panic("a late bug") }, []string{"a late bug", "detach_test.go"}},
		"exit":   {runtime.Goexit, []string{"Goexit", "detach_test.go"}},
		"return": {func() {}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var heard string
				release := make(chan struct{})
				call := detach.Go(func() error {
					<-release
					late.end()
					return errors.New("of no interest")
				})
				call.Leave(func(fault any, stack []byte) { heard += fmt.Sprintf("%v\n%s", fault, stack) })
				close(release)
				synctest.Wait()
				for _, want := range late.heard {
					if !strings.Contains(heard, want) {
						t.Errorf("%s is not heard of: %q", want, heard)
					}
				}
				if late.heard == nil && heard != "" {
					t.Errorf("heard %q", heard)
				}
			})
		})
	}
}

// Result returns the error of the function, raises its panic again, or returns
// INTERNAL for runtime.Goexit.
func TestResult(t *testing.T) {
	result := func(fn func() error) (raised any, err error) {
		defer func() { raised = recover() }()
		return nil, detach.Go(fn).Result()
	}
	if raised, _ := result(func() error { panic("a bug") }); raised != "a bug" {
		t.Errorf("a panic: %v", raised)
	}
	if raised, err := result(func() error { runtime.Goexit(); return nil }); raised != nil || status.Code(err) != codes.Internal {
		t.Errorf("an exit: %v, %v", raised, err)
	}
	done := errors.New("done")
	if raised, err := result(func() error { return done }); err != done || raised != nil {
		t.Errorf("an error: %v, %v", err, raised)
	}
}
