package federation

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
)

// While one assertion of a network is checked and 256 assertions wait, a further assertion of
// the network is refused. Assertions of another network are checked. A client that stops waiting
// leaves its place to the next one.
func TestTheChecksOfANetworkAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := NewExchanger(nil, nil, nil, nil, "https://auth.test") // a text without an issuer needs no database
		exchange := func(from string) error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := x.Exchange(caller.WithSource(ctx, caller.Source(from)), "no assertion", nil)
			if refusal := (audit.Refusal{}); !errors.As(err, &refusal) {
				t.Errorf("%v has nothing for the security record", err)
			}
			return err
		}
		leave, err := x.checks.Enter(t.Context(), caller.Source("2001:db8::1").Network())
		if err != nil {
			t.Fatal(err)
		}
		impatient, giveUp := context.WithCancel(t.Context())
		ended := make(chan error, checksWaiting+1)
		for i := range checksWaiting {
			ctx := t.Context()
			if i == 0 {
				ctx = impatient
			}
			go func() {
				_, err := x.check(caller.WithSource(ctx, "2001:db8::2"), "no assertion", new(attempt))
				ended <- err
			}()
		}
		synctest.Wait()
		if err := exchange("2001:db8::3"); !errors.Is(err, ErrOverloaded) {
			t.Errorf("one too many: %v", err)
		}
		if err := exchange("2001:db8:0:1::1"); !errors.Is(err, ErrInvalid) {
			t.Errorf("another network: %v", err)
		}
		giveUp()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("a client that has gone: %v", err)
		}
		go func() { ended <- exchange("2001:db8::3") }()
		synctest.Wait()
		leave()
		for range checksWaiting {
			if err := <-ended; !errors.Is(err, ErrInvalid) {
				t.Errorf("in its turn: %v", err)
			}
		}
	})
}
