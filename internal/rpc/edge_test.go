package rpc_test

import (
	"context"
	"fmt"
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

// The record of a call that the verifier has refused names the caller: for a delegated token,
// the record names the service that called and the user in whose name it called. The edge does
// not verify the token again: here the session ends between the refusal and the record, and a
// second judgement would know no caller.
func TestTheRecordOfARefusedCallNamesTheCallerWithoutASecondVerification(t *testing.T) {
	alice := authntest.User{ID: "alice-id", Name: "alice", SessionID: "alice-session", Audience: []string{"watchword"}}
	delegated := alice
	delegated.Actors = []authntest.User{{ID: "notes-id", Name: "notes"}, {ID: "web-id", Name: "web"}}
	for want, user := range map[string]authntest.User{
		"ROLE_REQUIRED alice-id/alice for / alice-session":                  alice,
		"DELEGATION_DENIED notes-id/notes for alice-id/alice alice-session": delegated,
	} {
		if r := recordOfARefusedCall(t, user); fmt.Sprintf("%s %s/%s for %s/%s %s", r.Reason, r.ActorID, r.ActorName, r.UserID, r.UserName, r.SessionID) != want {
			t.Errorf("on record: %+v, want %s", r, want)
		}
	}
}

// recordOfARefusedCall calls an admin's method by a token without the role admin.
func recordOfARefusedCall(t *testing.T, user authntest.User) *store.AuditRecord {
	t.Helper()
	s := storetest.Open(t, storetest.SQLite(t))
	log := audit.New(s, slog.New(slog.DiscardHandler))
	edge := rpc.NewEdge(log, func() time.Duration { return 0 }, slog.New(slog.DiscardHandler))
	tokens := authntest.New()
	verifier := tokens.NewVerifier(t, authn.WithAudience("internal"))
	token := tokens.Token(user)
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+token))
	info := &grpc.UnaryServerInfo{FullMethod: watchwordv1.UserService_ListUsers_FullMethodName}
	handler := func(context.Context, any) (any, error) { t.Error("the handler ran"); return nil, nil }
	_, err := edge.Unary(ctx, nil, info, func(ctx context.Context, req any) (any, error) {
		_, err := verifier.UnaryServerInterceptor()(ctx, req, info, handler)
		tokens.EndSession(token)
		return nil, err
	})
	if err == nil {
		t.Fatal("the call was not refused")
	}
	if err := log.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	records, _, err := audit.List(t.Context(), s, store.AuditFilter{}, 10)
	if err != nil || len(records) != 1 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	if r := records[0]; r.Detail != info.FullMethod {
		t.Errorf("on record: %+v", r)
	}
	return records[0]
}
