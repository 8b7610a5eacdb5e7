package retry_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/watchword-auth/watchword/internal/retry"
)

// Each pause is within its bounds: half of the doubled delay, or the wait asked for
// by the server, plus a random part.
func TestNext(t *testing.T) {
	const first, longest = 100 * time.Millisecond, time.Second
	type bounds struct{ least, most time.Duration }
	ms := func(least, most int) bounds {
		return bounds{time.Duration(least) * time.Millisecond, time.Duration(most) * time.Millisecond}
	}
	for name, test := range map[string]struct {
		asked time.Duration
		want  []bounds
	}{
		"nothing asked":    {0, []bounds{ms(50, 100), ms(100, 200), ms(200, 400), ms(400, 800), ms(500, 1000), ms(500, 1000)}},
		"a little":         {75 * time.Millisecond, []bounds{ms(75, 125), ms(100, 200)}},
		"almost longest":   {900 * time.Millisecond, []bounds{ms(900, 950), ms(900, 1000), ms(800, 1000), ms(600, 1000), ms(500, 1000)}},
		"more than that":   {time.Minute, []bounds{ms(60_000, 60_050), ms(60_000, 60_100)}},
		"a negative asked": {-time.Minute, []bounds{ms(50, 100), ms(100, 200)}},
	} {
		t.Run(name, func(t *testing.T) {
			for range 200 { // many times, because a part of each pause is random
				var b retry.Backoff
				for n, want := range test.want {
					if got := b.Next(first, longest, test.asked); got < want.least || got >= want.most {
						t.Fatalf("pause %d is %v, want from %v to %v", n, got, want.least, want.most)
					}
				}
				b.Reset()
				if got, want := b.Next(first, longest, test.asked), test.want[0]; got < want.least || got >= want.most {
					t.Fatalf("after a reset: %v, want from %v to %v", got, want.least, want.most)
				}
			}
		})
	}
}

// Clients that lost one server together wait for different times.
func TestNextDiffers(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 20 {
		seen[new(retry.Backoff).Next(time.Second, time.Minute, 0)] = true
	}
	if len(seen) < 10 {
		t.Errorf("only %d different pauses of 20", len(seen))
	}
}

func TestAsked(t *testing.T) {
	refused := func(details ...protoadapt.MessageV1) error {
		st, err := status.New(codes.ResourceExhausted, "full").WithDetails(details...)
		if err != nil {
			t.Fatal(err)
		}
		return st.Err()
	}
	again := &errdetails.RetryInfo{RetryDelay: durationpb.New(3 * time.Second)}
	for name, test := range map[string]struct {
		err  error
		want time.Duration
	}{
		"asked":         {refused(again), 3 * time.Second},
		"among others":  {refused(&errdetails.ErrorInfo{Reason: "OVERLOADED"}, again), 3 * time.Second},
		"wrapped":       {fmt.Errorf("logging in: %w", refused(again)), 3 * time.Second},
		"too long":      {refused(&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Hour)}), time.Minute},
		"no delay":      {refused(&errdetails.RetryInfo{}), 0},
		"not asked":     {refused(&errdetails.ErrorInfo{}), 0},
		"no detail":     {status.Error(codes.Unavailable, "away"), 0},
		"another error": {errors.New("away"), 0},
		"no error":      {nil, 0},
	} {
		if got := retry.Asked(test.err, time.Minute); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}
