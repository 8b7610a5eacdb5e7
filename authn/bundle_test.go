package authn

import (
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/trusttest"
)

// Expired revocations are deleted, in several batches, and all other revocations stay.
func TestPrune(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBundle(slog.New(slog.DiscardHandler), 0, staleness{after: time.Hour})
		at := streamOpened
		apply := func(m *watchwordv1.WatchBundleResponse) {
			t.Helper()
			var err error
			if at, err = b.apply(m, at); err != nil {
				t.Fatal(err)
			}
		}
		beat := func() { apply(trusttest.Heartbeat(time.Now())) }
		chunk := &watchwordv1.SnapshotChunk{Last: true, TrustState: &watchwordv1.TrustState{
			Issuer: "i", MaxTokenLifetime: durationpb.New(5 * time.Minute), Margin: durationpb.New(time.Minute),
		}}
		const n = 3*batch + 1
		for i := range n {
			until := timestamppb.New(time.Now().Add(5 * time.Minute))
			if i%2 == 0 {
				until = nil // without until, the longest life of a token decides
			}
			chunk.EndedSessions = append(chunk.EndedSessions, &watchwordv1.EndedSession{SessionId: fmt.Sprint(i), Until: until})
			chunk.RaisedVersions = append(chunk.RaisedVersions, &watchwordv1.RaisedVersion{UserId: fmt.Sprint(i), Version: 1, Until: until})
		}
		chunk.EndedSessions = append(chunk.EndedSessions, &watchwordv1.EndedSession{SessionId: "long", Until: timestamppb.New(time.Now().Add(time.Hour))})
		apply(&watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_SnapshotChunk{SnapshotChunk: chunk}})
		hasAfterBeat := func(sessions, users int) {
			t.Helper()
			beat()
			if b.revoked.ended.len() != sessions || b.revoked.raised.len() != users {
				t.Errorf("%d sessions and %d users, want %d and %d", b.revoked.ended.len(), b.revoked.raised.len(), sessions, users)
			}
		}
		hasAfterBeat(n+1, n)
		time.Sleep(6 * time.Minute) // longer than the lifetime of a token and the margin
		hasAfterBeat(n+1, n)
		time.Sleep(time.Minute)
		hasAfterBeat(1, 0)

		// A later message with an earlier time does not shorten the entry's life.
		apply(&watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_Change{Change: &watchwordv1.Change{
			EndedSessions: []*watchwordv1.EndedSession{{SessionId: "long", Until: timestamppb.Now()}}}}})
		time.Sleep(5 * time.Minute)
		hasAfterBeat(1, 0)
		time.Sleep(time.Hour)
		hasAfterBeat(0, 0)
	})
}

// If the trust state changes while a token's signature is checked, the new trust state
// decides: a key withdrawn in between is not trusted.
func TestTrustStateChangesDuringACheck(t *testing.T) {
	key, err := token.GenerateKey(token.ES256)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	raw, err := token.Sign(key, &token.Claims{
		Issuer: "i", Subject: "u", ID: "t", SessionID: "s", Username: "n", Audience: []string{"a"},
		IssuedAt: now, ExpiresAt: now.Add(time.Minute),
	})
	if err != nil {
		t.Fatal(err)
	}
	b := newBundle(slog.New(slog.DiscardHandler), 0, staleness{after: time.Hour})
	trust := func(keys ...*watchwordv1.VerificationKey) {
		t.Helper()
		if err := b.learn(&watchwordv1.Change{TrustState: &watchwordv1.TrustState{
			Issuer: "i", MaxTokenLifetime: durationpb.New(time.Minute), Keys: keys,
		}}); err != nil {
			t.Fatal(err)
		}
	}
	named := func() *watchwordv1.VerificationKey {
		return &watchwordv1.VerificationKey{Key: key.Public().JWK()}
	}
	trust(named())
	if err := b.beat(trusttest.Heartbeat(now).GetHeartbeat(), true); err != nil {
		t.Fatal(err)
	}
	checked, reason := b.authenticate(raw)
	if reason != accepted {
		t.Fatal(reason)
	}
	judged := func(want watchwordv1.ErrorReason) {
		t.Helper()
		if b.stillAccepted(checked) != (want == accepted) && want != accepted {
			t.Error("an earlier judgement still counts")
		}
		if got := b.judge(checked, true); got != want {
			t.Errorf("%v, want %v", got, want)
		}
	}
	judged(accepted)
	trust(named())
	judged(accepted)
	trust()
	judged(tokenInvalid)
	trust(named()) // a new object for the key, so the token must be checked again
	judged(tokenInvalid)
	b.fresh.close()
	judged(bundleStale)
}
