package rpc_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/rpc"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// rotate is a method that needs the role admin.
const rotate = watchwordv1.KeyService_RotateKey_FullMethodName

// guarded makes a call of a token's user to rotate, through the guard of a verifier
// without a cache. The handler fails the test.
func guarded(t *testing.T, v *authn.Verifier) func(ctx context.Context) error {
	t.Helper()
	guard := v.UnaryServerInterceptor()
	return func(ctx context.Context) error {
		_, err := guard(ctx, nil, &grpc.UnaryServerInfo{FullMethod: rotate}, func(context.Context, any) (any, error) {
			t.Error("the call reached its handler")
			return nil, nil
		})
		return err
	}
}

// recorder is an edge, and the security record that the edge writes.
type recorder struct {
	*rpc.Edge
	store *store.Store
	log   *audit.Log
}

func newRecorder(t *testing.T) *recorder {
	t.Helper()
	s := storetest.Open(t, storetest.SQLite(t))
	log := audit.New(s, slog.New(slog.DiscardHandler))
	return &recorder{rpc.NewEdge(log, func() time.Duration { return 0 }, slog.New(slog.DiscardHandler)), s, log}
}

// only returns the one record that there must be.
func (r *recorder) only(t *testing.T) store.AuditRecord {
	t.Helper()
	if err := r.log.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	records, _, err := audit.List(t.Context(), r.store, store.AuditFilter{}, 10)
	if err != nil || len(records) != 1 {
		t.Fatalf("%d records, %v, want one", len(records), err)
	}
	return *records[0]
}

// A call without the role is recorded with its user and session. The edge takes both
// from the refusal: the context that the edge sees carries no token.
func TestAMissingRoleIsRecordedWithItsCaller(t *testing.T) {
	issuer := authntest.New()
	verifier := issuer.NewVerifier(t, authn.WithAnyAudience(), authn.WithCacheSize(0))
	raw := issuer.Token(authntest.User{ID: "user-1", SessionID: "session-1", Roles: []string{"writer"}})
	call := guarded(t, verifier)
	withToken := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+raw))
	refused := call(withToken)
	if authn.Reason(refused) != watchwordv1.ErrorReason_ERROR_REASON_ROLE_REQUIRED {
		t.Fatalf("the guard: %v", refused)
	}
	for name, pass := range map[string]func(*rpc.Edge) error{
		"unary": func(e *rpc.Edge) error {
			_, err := e.Unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: rotate},
				func(context.Context, any) (any, error) { return nil, refused })
			return err
		},
		"stream": func(e *rpc.Edge) error {
			return e.Stream(nil, contextStream{ctx: t.Context()}, &grpc.StreamServerInfo{FullMethod: rotate},
				func(any, grpc.ServerStream) error { return refused })
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRecorder(t)
			err := pass(r.Edge)
			if status.Code(err) != codes.PermissionDenied || authn.Reason(err) != watchwordv1.ErrorReason_ERROR_REASON_ROLE_REQUIRED {
				t.Errorf("the caller is told %v", err)
			}
			got := r.only(t)
			if got.ActorID != "user-1" || got.SessionID != "session-1" || got.Reason != "ROLE_REQUIRED" || got.Detail != rotate {
				t.Errorf("the record is %+v", got)
			}
		})
	}
}

// contextStream is a stream that has a context alone.
type contextStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s contextStream) Context() context.Context { return s.ctx }

// The edge around the guard does not check the token again.
func TestAMissingRoleIsJudgedOnce(t *testing.T) {
	issuer := authntest.New()
	verifier := issuer.NewVerifier(t, authn.WithAnyAudience(), authn.WithCacheSize(0))
	r, call := newRecorder(t), guarded(t, verifier)
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+issuer.Token(authntest.User{})))
	_, err := r.Unary(ctx, nil, &grpc.UnaryServerInfo{FullMethod: rotate}, func(ctx context.Context, _ any) (any, error) { return nil, call(ctx) })
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("the caller is told %v", err)
	}
	if n := verifier.Status().Checked; n != 1 {
		t.Errorf("the token was checked %d times", n)
	}
}
