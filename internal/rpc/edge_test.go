package rpc_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/rpc"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// The record of ROLE_REQUIRED names the caller that the verifier has refused. The edge
// does not verify the token again: here the session ends between the refusal and the
// record, and a second judgement would know no caller.
func TestTheRecordOfAMissingRoleNamesTheCallerWithoutASecondVerification(t *testing.T) {
	s := storetest.Open(t, storetest.SQLite(t))
	log := audit.New(s, slog.New(slog.DiscardHandler))
	edge := rpc.NewEdge(log, func() time.Duration { return 0 }, slog.New(slog.DiscardHandler))
	tokens := authntest.New()
	verifier := tokens.NewVerifier(t, authn.WithAudience("internal"))
	token := tokens.Token(authntest.User{ID: "alice-id", Name: "alice", SessionID: "alice-session", Audience: []string{"watchword"}})
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+token))
	info := &grpc.UnaryServerInfo{FullMethod: watchwordv1.UserService_ListUsers_FullMethodName}
	handler := func(context.Context, any) (any, error) { t.Error("the handler ran"); return nil, nil }
	_, err := edge.Unary(ctx, nil, info, func(ctx context.Context, req any) (any, error) {
		_, err := verifier.UnaryServerInterceptor()(ctx, req, info, handler)
		tokens.EndSession(token)
		return nil, err
	})
	if reason := authn.Reason(err); reason != watchwordv1.ErrorReason_ERROR_REASON_ROLE_REQUIRED {
		t.Fatalf("refused with %v", err)
	}
	if err := log.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	records, _, err := audit.List(t.Context(), s, store.AuditFilter{}, 10)
	if err != nil || len(records) != 1 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	if r := records[0]; r.ActorID != "alice-id" || r.ActorName != "alice" || r.SessionID != "alice-session" || r.Reason != "ROLE_REQUIRED" || r.Detail != info.FullMethod {
		t.Errorf("on record: %+v", r)
	}
}
