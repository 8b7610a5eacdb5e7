package cli_test

import (
	"context"
	"encoding/json"
	"net"
	"slices"
	"strings"
	"testing"
	"unicode"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// hostile holds what a terminal obeys or hides: a title, a cleared screen, C1's CSI, a
// carriage return over the line, a bidirectional override, a zero-width space, a tab and
// a forged line.
const hostile = "eve\x1b]0;title\x07\x1b[2J\u009b31m\rroot\u202egpj\u200b\ttab\nwatchword: all is well"

// wantHarmless fails unless a text has only printable characters and line breaks, and no
// line of its own making.
func wantHarmless(t *testing.T, what, text string) {
	t.Helper()
	for _, r := range text {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Errorf("%s shows %q in %q", what, r, text)
			return
		}
	}
	if strings.Contains(text, "\nwatchword: all is well") {
		t.Errorf("%s shows a line that was given: %q", what, text)
	}
	if !strings.Contains(text, "eve") || !strings.Contains(text, `\u001b`) {
		t.Errorf("%s lacks the text in an escaped form: %q", what, text)
	}
}

// Other people can choose the names and the records in the database, so the commands escape
// control characters.
func TestTextFromTheDatabaseIsEscaped(t *testing.T) {
	t.Parallel()
	db := database(t)
	write(t, db, func(tx *store.Tx) error {
		if _, err := user.Insert(tx, user.Name(hostile), user.Roles{hostile}, "hash"); err != nil {
			return err
		}
		return tx.InsertAudit(&store.AuditRecord{Type: hostile, Reason: hostile, UserID: hostile, SessionID: hostile, Source: hostile, Detail: hostile, Count: 1})
	})
	for _, command := range [][]string{{"user", "list", db}, {"audit", db}} {
		out := done(t, "", command...)
		wantHarmless(t, command[0], out)
		if n := strings.Count(out, "\n"); n != 2 {
			t.Errorf("%s shows %d lines, want the header and one: %q", command[0], n, out)
		}
	}
	out := done(t, "", "audit", "--json", db)
	wantHarmless(t, "audit --json", out)
	var record struct{ Detail string }
	if err := json.Unmarshal([]byte(out), &record); err != nil || record.Detail != hostile {
		t.Errorf("the JSON says %q, %v", record.Detail, err)
	}
}

// hostileServer answers with text that a terminal obeys.
type hostileServer struct {
	watchwordv1.UnimplementedAuthServiceServer
}

func (hostileServer) Login(context.Context, *watchwordv1.LoginRequest) (*watchwordv1.LoginResponse, error) {
	return &watchwordv1.LoginResponse{Tokens: &watchwordv1.TokenPair{AccessToken: hostile, ExpiresIn: durationpb.New(1)}}, nil
}

func (hostileServer) Verify(context.Context, *watchwordv1.VerifyRequest) (*watchwordv1.VerifyResponse, error) {
	return &watchwordv1.VerifyResponse{Principal: &watchwordv1.Principal{Username: hostile}}, nil
}

func (hostileServer) Logout(context.Context, *watchwordv1.LogoutRequest) (*watchwordv1.LogoutResponse, error) {
	return nil, status.Error(codes.Internal, hostile)
}

type hostileWatchers struct {
	watchwordv1.UnimplementedTrustServiceServer
}

func (hostileWatchers) GetKeySet(context.Context, *watchwordv1.GetKeySetRequest) (*watchwordv1.GetKeySetResponse, error) {
	return &watchwordv1.GetKeySetResponse{Issuer: hostile}, nil
}

func (hostileWatchers) ListWatchers(context.Context, *watchwordv1.ListWatchersRequest) (*watchwordv1.ListWatchersResponse, error) {
	return &watchwordv1.ListWatchersResponse{
		Watchers: []*watchwordv1.Watcher{{Service: hostile, Instance: hostile, Version: hostile, Address: hostile, Certificate: hostile, Replica: hostile, Reports: true}},
		Replicas: []*watchwordv1.Replica{{Id: hostile, Address: hostile}}, Absent: []*watchwordv1.AbsentCertificate{{Certificate: hostile}}, Position: 1,
	}, nil
}

type hostileUsers struct {
	watchwordv1.UnimplementedUserServiceServer
}

func (hostileUsers) ListUsers(context.Context, *watchwordv1.ListUsersRequest) (*watchwordv1.ListUsersResponse, error) {
	return &watchwordv1.ListUsersResponse{Users: []*watchwordv1.User{{Id: hostile, Username: hostile, Roles: []string{hostile}}}}, nil
}

type hostileSessions struct {
	watchwordv1.UnimplementedSessionServiceServer
}

func (hostileSessions) ListSessions(context.Context, *watchwordv1.ListSessionsRequest) (*watchwordv1.ListSessionsResponse, error) {
	return &watchwordv1.ListSessionsResponse{Sessions: []*watchwordv1.Session{{Id: hostile, UserId: hostile}}}, nil
}

type hostileKeys struct {
	watchwordv1.UnimplementedKeyServiceServer
}

func (hostileKeys) ListKeys(context.Context, *watchwordv1.ListKeysRequest) (*watchwordv1.ListKeysResponse, error) {
	return &watchwordv1.ListKeysResponse{Keys: []*watchwordv1.Key{{Kid: hostile, Algorithm: hostile}}}, nil
}

func (hostileKeys) RevokeKey(context.Context, *watchwordv1.RevokeKeyRequest) (*watchwordv1.RevokeKeyResponse, error) {
	return &watchwordv1.RevokeKeyResponse{Key: &watchwordv1.Key{Kid: hostile, Algorithm: hostile}}, nil
}

type hostileAudit struct {
	watchwordv1.UnimplementedAuditServiceServer
}

// ListEvents answers a question for one type with the same page for ever.
func (hostileAudit) ListEvents(_ context.Context, req *watchwordv1.ListEventsRequest) (*watchwordv1.ListEventsResponse, error) {
	if req.GetType() != "" {
		return &watchwordv1.ListEventsResponse{NextPageToken: "the next"}, nil
	}
	return &watchwordv1.ListEventsResponse{Events: []*watchwordv1.Event{{Type: hostile, ActorName: hostile, UserName: hostile, Detail: hostile, Source: hostile}}}, nil
}

func TestTextFromAServerIsEscaped(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	watchwordv1.RegisterAuthServiceServer(server, hostileServer{})
	watchwordv1.RegisterTrustServiceServer(server, hostileWatchers{})
	watchwordv1.RegisterUserServiceServer(server, hostileUsers{})
	watchwordv1.RegisterSessionServiceServer(server, hostileSessions{})
	watchwordv1.RegisterKeyServiceServer(server, hostileKeys{})
	watchwordv1.RegisterAuditServiceServer(server, hostileAudit{})
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	flags := []string{"--plaintext", "--addr=" + listener.Addr().String()}

	wantHarmless(t, "login", done(t, "a password\n", append([]string{"login", "eve", "--print"}, flags...)...))
	out := done(t, "a token", append([]string{"verify"}, flags...)...)
	wantHarmless(t, "verify", out)
	var principal struct{ Username string }
	if err := json.Unmarshal([]byte(out), &principal); err != nil || principal.Username != hostile {
		t.Errorf("the JSON says %q, %v", principal.Username, err)
	}
	for _, command := range [][]string{{"user", "list"}, {"session", "list"}, {"key", "list"}, {"audit"}, {"watchers"}} {
		for _, form := range [][]string{nil, {"--json"}} {
			out := done(t, "a token", slices.Concat(command, form, flags, []string{"--token-stdin"})...)
			wantHarmless(t, strings.Join(append(command, form...), " "), out)
			if form != nil && !json.Valid([]byte(out)) {
				t.Errorf("%v prints no JSON: %q", command, out)
			}
		}
	}
	wantHarmless(t, "explain", done(t, "e30.e30.c2ln", append([]string{"explain"}, flags...)...))
	r := run(t, "a token", slices.Concat([]string{"key", "revoke", "kid", "--wait", "--wait-for=1ms", "--token-stdin"}, flags)...)
	if wantHarmless(t, "key revoke --wait", r.out+r.err); r.status != 3 {
		t.Errorf("key revoke --wait: %+v", r)
	}
	fails(t, 1, "the same page again", "a token", slices.Concat([]string{"audit", "--type=login", "--limit=0", "--token-stdin"}, flags)...)
	r = run(t, "a token", append([]string{"logout"}, flags...)...)
	if wantHarmless(t, "logout", r.err); r.status != 1 || strings.Count(r.err, "\n") != 1 {
		t.Errorf("logout: %+v", r)
	}
}
