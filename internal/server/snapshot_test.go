package server_test

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/caller"
)

// counted is a stream that counts the revocations in its messages.
type counted struct {
	grpc.ClientStream
	revocations *atomic.Int64
}

func (s counted) RecvMsg(into any) error {
	err := s.ClientStream.RecvMsg(into)
	if m, ok := into.(*watchwordv1.WatchBundleResponse); ok && err == nil {
		s.revocations.Add(int64(len(m.GetSnapshotChunk().GetEndedSessions()) + len(m.GetChange().GetEndedSessions())))
	}
	return err
}

// guard makes a verifier of the server at addr that keeps its bundle in a file. guard also
// counts the revocations that the verifier receives.
func guard(t *testing.T, addr, file string) (*authn.Verifier, *atomic.Int64) {
	t.Helper()
	revocations := new(atomic.Int64)
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithStreamInterceptor(
		func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := open(ctx, desc, cc, method, opts...)
			return counted{stream, revocations}, err
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	within, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	v, err := authn.NewVerifier(within, conn, authn.WithAudience("internal", caller.AdminAudience), authn.WithSnapshotFile(file))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v, revocations
}

// A guarded service is restarted: once beside the server, which sends what was
// missed and no more, and once while the server is away.
func TestAServiceRestartsFromItsSnapshot(t *testing.T) {
	h := start(t)
	file := filepath.Join(t.TempDir(), "bundle")
	var ended []string
	logOut := func(n int) {
		t.Helper()
		for range n {
			a := &account{name: "admin", password: h.admin.password}
			h.relogin(t, a)
			if _, err := h.auth.Logout(t.Context(), &watchwordv1.LogoutRequest{RefreshToken: a.GetRefreshToken()}); err != nil {
				t.Fatal(err)
			}
			ended = append(ended, a.GetAccessToken())
		}
	}
	knows := func(v *authn.Verifier) {
		t.Helper()
		for i, token := range ended {
			if _, err := v.Verify(t.Context(), token); outcome(err) != "TOKEN_REVOKED" {
				t.Errorf("session %d of %d: %v", i+1, len(ended), err)
			}
		}
		if _, err := v.Verify(t.Context(), h.admin.GetAccessToken()); err != nil {
			t.Error(err)
		}
	}
	logOut(3)
	v, revocations := guard(t, h.server.GRPCAddr(), file)
	knows(v)
	v.Close()
	if n := revocations.Load(); n != 3 {
		t.Errorf("%d revocations came at first, want 3", n)
	}

	logOut(2)
	v, revocations = guard(t, h.server.GRPCAddr(), file)
	knows(v)
	v.Close()
	if n := revocations.Load(); n != 2 {
		t.Errorf("%d revocations came after a restart, want the 2 that were missed", n)
	}

	if err := h.stopServing(); err != nil {
		t.Fatal(err)
	}
	v, revocations = guard(t, h.server.GRPCAddr(), file)
	knows(v)
	if s := v.Status(); revocations.Load() != 0 || !s.Ready || s.Staleness == 0 || s.SnapshotError != nil {
		t.Errorf("%d revocations, %+v", revocations.Load(), s)
	}
}
