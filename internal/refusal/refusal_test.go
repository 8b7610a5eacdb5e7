package refusal_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/refusal"
)

const (
	stale  = watchwordv1.ErrorReason_ERROR_REASON_TOKEN_STALE
	none   = watchwordv1.ErrorReason_ERROR_REASON_UNSPECIFIED
	method = "/notes.v1.NotesService/List"
	other  = "/notes.v1.NotesService/Add"
)

var again = &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)}

// built returns a status with details that package refusal has not made.
func built(t *testing.T, details ...protoadapt.MessageV1) error {
	t.Helper()
	st, err := status.New(codes.Unauthenticated, "refused").WithDetails(details...)
	if err != nil {
		t.Fatal(err)
	}
	return st.Err()
}

func info(domain, reason, method string) *errdetails.ErrorInfo {
	return &errdetails.ErrorInfo{Domain: domain, Reason: reason, Metadata: map[string]string{"method": method, "more": "stays"}}
}

// The details of a status on the wire are part of the contract.
func TestStatus(t *testing.T) {
	st := refusal.Status(codes.Unauthenticated, stale, method, "refresh", again)
	want := []proto.Message{
		&errdetails.ErrorInfo{Domain: "watchword", Reason: "TOKEN_STALE", Metadata: map[string]string{"method": method}}, again,
	}
	if st.Code() != codes.Unauthenticated || st.Message() != "refresh" || len(st.Details()) != len(want) {
		t.Fatal(st)
	}
	for n, detail := range st.Details() {
		if !proto.Equal(detail.(proto.Message), want[n]) {
			t.Errorf("%v, want %v", detail, want[n])
		}
	}
	unnamed := refusal.Status(codes.Unauthenticated, stale, "", "refresh").Details()[0].(*errdetails.ErrorInfo)
	if unnamed.Metadata != nil {
		t.Errorf("without a method: %v", unnamed)
	}
}

// If the details cannot be encoded, the status has its code and no details.
func TestStatusWithoutDetails(t *testing.T) {
	err := refusal.Status(codes.InvalidArgument, stale, "\xff", "not valid", refusal.BadField("name", "\xff")).Err()
	if status.Code(err) != codes.InvalidArgument || refusal.Reason(err) != none || refusal.Method(err) != "" {
		t.Error(err)
	}
}

func TestReasonAndMethod(t *testing.T) {
	ours := refusal.Status(codes.Unauthenticated, stale, method, "refresh").Err()
	for name, test := range map[string]struct {
		err    error
		reason watchwordv1.ErrorReason
		method string
	}{
		"ours":               {ours, stale, method},
		"wrapped":            {fmt.Errorf("listing: %w", ours), stale, method},
		"wrapped twice":      {fmt.Errorf("all: %w", fmt.Errorf("listing: %w", ours)), stale, method},
		"joined":             {errors.Join(errors.New("first"), ours), stale, method},
		"after a foreign":    {built(t, info("elsewhere", "TOKEN_EXPIRED", other), info("watchword", "TOKEN_STALE", method)), stale, method},
		"no method":          {refusal.Status(codes.Unauthenticated, stale, "", "refresh").Err(), stale, ""},
		"a foreign domain":   {built(t, info("elsewhere", "TOKEN_STALE", method)), none, ""},
		"no domain":          {built(t, info("", "TOKEN_STALE", method)), none, ""},
		"an unknown reason":  {built(t, info("watchword", "OF_THE_FUTURE", method)), none, method},
		"the reason in full": {built(t, info("watchword", "ERROR_REASON_TOKEN_STALE", "")), none, ""},
		"other details":      {built(t, again), none, ""},
		"no detail":          {status.Error(codes.Unauthenticated, "TOKEN_STALE"), none, ""},
		"no status":          {errors.New("TOKEN_STALE"), none, ""},
		"nil":                {nil, none, ""},
	} {
		if got := refusal.Reason(test.err); got != test.reason {
			t.Errorf("%s: reason %v, want %v", name, got, test.reason)
		}
		if got := refusal.Method(test.err); got != test.method {
			t.Errorf("%s: method %q, want %q", name, got, test.method)
		}
	}
}

// WithoutMethod removes the given method alone, from each ErrorInfo of the domain
// watchword, and changes nothing else.
func TestWithoutMethod(t *testing.T) {
	sentinel := errors.New("no approval")
	ours := refusal.Status(codes.Unauthenticated, stale, method, "refresh", again).Err()
	for name, test := range map[string]struct {
		err  error
		want []protoadapt.MessageV1 // nil: the error itself is returned
	}{
		"ours":             {ours, []protoadapt.MessageV1{&errdetails.ErrorInfo{Domain: "watchword", Reason: "TOKEN_STALE"}, again}},
		"wrapped":          {fmt.Errorf("%w: %w", sentinel, ours), []protoadapt.MessageV1{&errdetails.ErrorInfo{Domain: "watchword", Reason: "TOKEN_STALE"}, again}},
		"of two":           {built(t, info("watchword", "TOKEN_STALE", other), info("watchword", "TOKEN_STALE", method)), []protoadapt.MessageV1{info("watchword", "TOKEN_STALE", other), &errdetails.ErrorInfo{Domain: "watchword", Reason: "TOKEN_STALE", Metadata: map[string]string{"more": "stays"}}}},
		"another method":   {built(t, info("watchword", "TOKEN_STALE", other)), nil},
		"a foreign domain": {built(t, info("elsewhere", "TOKEN_STALE", method)), nil},
		"no ErrorInfo":     {built(t, again), nil},
		"no detail":        {status.Error(codes.NotFound, method), nil},
		"no status":        {sentinel, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := refusal.WithoutMethod(t.Context(), test.err, method)
			if test.want == nil {
				if got != test.err {
					t.Errorf("%v became %v", test.err, got)
				}
				return
			}
			if !errors.Is(got, test.err) || got.Error() != test.err.Error() || errors.Is(got, sentinel) != errors.Is(test.err, sentinel) {
				t.Errorf("%v became %v", test.err, got)
			}
			st, ok := status.FromError(got)
			if !ok || st.Code() != codes.Unauthenticated || len(st.Details()) != len(test.want) {
				t.Fatal(st)
			}
			for n, detail := range st.Details() {
				if !proto.Equal(detail.(proto.Message), protoadapt.MessageV2Of(test.want[n])) {
					t.Errorf("%v, want %v", detail, test.want[n])
				}
			}
			if refusal.Reason(got) != stale || refusal.Method(got) == method {
				t.Errorf("%v, by %q", refusal.Reason(got), refusal.Method(got))
			}
			if test.err == ours && refusal.Method(ours) != method {
				t.Error("the error that was given has changed")
			}
		})
	}
}

func TestSetup(t *testing.T) {
	cause := errors.New("the disk is full")
	err := fmt.Errorf("starting: %w", &refusal.Setup{Code: codes.Unavailable, Message: "authn: no file", Cause: cause})
	st, ok := status.FromError(err)
	if !ok || st.Code() != codes.Unavailable || len(st.Details()) != 0 || refusal.Reason(err) != none {
		t.Error(st)
	}
	if !errors.Is(err, cause) || err.Error() != "starting: authn: no file" {
		t.Error(err)
	}
}

func TestName(t *testing.T) {
	if got := refusal.Name(stale); got != "TOKEN_STALE" {
		t.Error(got)
	}
}
