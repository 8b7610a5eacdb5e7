package refusal_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/refusal"
)

// An error about the token of the handler's caller names the handler's method until the handler
// has sent something on, and WithoutMethod keeps the method for as long.
func TestCallersToken(t *testing.T) {
	const method = "/notes.v1.Notes/List"
	expired := watchwordv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED
	ctx := context.WithValue(t.Context(), refusal.CallKey{}, &refusal.Call{Method: method})
	err := refusal.CallersToken(ctx, expired, "expired")
	for _, err := range []error{err, fmt.Errorf("searching: %w", err), errors.Join(err, errors.New("more"))} {
		got := refusal.WithoutMethod(ctx, err, method)
		if refusal.Method(got) != method || refusal.Reason(got) != expired || status.Code(got) != codes.Unauthenticated {
			t.Errorf("%v of %q", got, refusal.Method(got))
		}
	}
	forged := refusal.Status(codes.Unauthenticated, expired, method, "expired").Err() // such an error can come from another service
	if got := refusal.WithoutMethod(ctx, forged, method); refusal.Method(got) != "" {
		t.Errorf("an error of another service keeps the method %q", refusal.Method(got))
	}
	refusal.SentOn(ctx)
	for _, got := range []error{refusal.WithoutMethod(ctx, err, method), refusal.CallersToken(ctx, expired, "expired"), refusal.CallersToken(t.Context(), expired, "expired")} {
		if refusal.Method(got) != "" || refusal.Reason(got) != expired {
			t.Errorf("%v of %q", got, refusal.Method(got))
		}
	}
}
