package rpc_test

import (
	"bytes"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/watchword-auth/watchword/internal/rpc"
)

var errLeft = errors.New("left behind")

// What becomes of a handler after it was left behind is seen, and harms nobody.
func TestALateHandlerIsHeardOf(t *testing.T) {
	for name, late := range map[string]struct {
		end    func()
		logged []string
	}{
		"panic":  {func() { panic("a late bug") }, []string{"a late bug", "abandon_test.go"}},
		"exit":   {runtime.Goexit, []string{"Goexit", "abandon_test.go"}},
		"return": {func() {}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var logged bytes.Buffer
				quit, goOn := make(chan struct{}), make(chan struct{})
				close(quit)
				err := rpc.Abandon(slog.New(slog.NewTextHandler(&logged, nil)), quit, errLeft, func() error {
					<-goOn
					late.end()
					return errors.New("of no interest")
				})
				if err != errLeft {
					t.Errorf("returned %v", err)
				}
				close(goOn)
				synctest.Wait()
				for _, want := range late.logged {
					if !strings.Contains(logged.String(), want) {
						t.Errorf("nothing is logged of %s: %q", want, &logged)
					}
				}
				if late.logged == nil && logged.Len() > 0 {
					t.Errorf("logged %q", &logged)
				}
			})
		})
	}
}

// What becomes of a handler that is waited for, whoever waits hears of.
func TestTheEndOfAHandlerIsRaised(t *testing.T) {
	abandon := func(fn func() error) (raised any, err error) {
		defer func() { raised = recover() }()
		return nil, rpc.Abandon(slog.New(slog.DiscardHandler), make(chan struct{}), errLeft, fn)
	}
	if raised, _ := abandon(func() error { panic("a bug") }); raised != "a bug" {
		t.Errorf("a panic: %v", raised)
	}
	if raised, _ := abandon(func() error { runtime.Goexit(); return nil }); raised == nil {
		t.Error("an exit: nothing")
	}
	done := errors.New("done")
	if raised, err := abandon(func() error { return done }); err != done || raised != nil {
		t.Errorf("an error: %v, %v", err, raised)
	}
}
