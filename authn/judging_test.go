package authn

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

// meeting verifies a token in several goroutines while the bundle stores a message.
type meeting struct {
	*judge
	t      *testing.T
	key    *token.PublicKey
	filler []*watchwordv1.EndedSession // sessions that make a message long
	number int                         // the number of tokens made so far
}

// token makes an authentic token of a session of its own.
func (m *meeting) token() *authentic {
	now := time.Now()
	m.number++
	return &authentic{principal: Principal{claims: token.Claims{
		Issuer: "i", Subject: fmt.Sprintf("user-%d", m.number), SessionID: fmt.Sprintf("session-%8d", m.number), Audience: []string{"a"},
		IssuedAt: now, ExpiresAt: now.Add(time.Minute), Version: 7,
	}}, key: m.key}
}

// ends returns a message that ends the sessions of before and, as the last, the session of
// the token.
func (m *meeting) ends(before []*watchwordv1.EndedSession, tok *authentic) *watchwordv1.Change {
	return &watchwordv1.Change{EndedSessions: append(before[:len(before):len(before)], &watchwordv1.EndedSession{SessionId: tok.principal.SessionID()})}
}

// trusting returns a trust state with a key that may be used before until.
func (m *meeting) trusting(until time.Time) *watchwordv1.TrustState {
	key := m.named()
	key.VerifiesUntil = timestamppb.New(until)
	return &watchwordv1.TrustState{
		Issuer: "i", MaxTokenLifetime: durationpb.New(time.Hour), Margin: durationpb.New(time.Minute), Keys: []*watchwordv1.VerificationKey{key},
	}
}

func (m *meeting) learn(n news) {
	m.t.Helper()
	if err := m.bundle.learn(n); err != nil {
		m.t.Fatal(err)
	}
}

// meet verifies a token over and over while the bundle learns n, and afterwards. meet
// returns whether the token was accepted at any time, and checks that the token is never
// accepted after learn has returned.
func (m *meeting) meet(what string, tok *authentic, n news) (everAccepted bool) {
	m.t.Helper()
	var judges, begun sync.WaitGroup
	var ever, stop atomic.Bool
	for range 2 {
		begun.Add(1)
		judges.Go(func() {
			for first := true; first || !stop.Load(); first = false {
				if m.bundle.judge(tok, true) == accepted {
					ever.Store(true)
				}
				if first {
					begun.Done()
				}
				runtime.Gosched() // lets learn run
			}
		})
	}
	begun.Wait()
	m.learn(n)
	for range 3 {
		if m.bundle.stillAccepted(tok) || m.bundle.judge(tok, true) == accepted {
			m.t.Fatalf("%s (%d): accepted after the message was learned", what, m.number)
		}
	}
	stop.Store(true)
	judges.Wait()
	if m.bundle.stillAccepted(tok) {
		m.t.Fatalf("%s (%d): a judgement from before the message counts after it", what, m.number)
	}
	return ever.Load()
}

// While a token is being verified, the bundle stores a message that revokes the token or
// ends the use of its key. After the message no earlier judgement is used, and no judgement
// mixes new keys with old revocations: rules 1 and 2 of [bundle].
func TestNoJudgementOutlivesAMessage(t *testing.T) {
	m := &meeting{judge: newJudge(t, staleness{after: time.Hour}, 0), t: t}
	for i := range 8 * batch {
		m.filler = append(m.filler, &watchwordv1.EndedSession{SessionId: fmt.Sprintf("filler--%8d", i)})
	}
	past, future := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	m.learn(&watchwordv1.Change{TrustState: m.trusting(future)})
	for _, key := range m.bundle.trust.Load().keys {
		m.key = key.public
	}
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		tok := m.token()
		if m.bundle.judge(tok, true) != accepted || !m.bundle.stillAccepted(tok) {
			t.Fatal("not accepted at first")
		}
		m.meet("a session ends in a long message", tok, m.ends(m.filler, tok))
		for range 20 {
			tok = m.token()
			m.meet("a session ends", tok, m.ends(nil, tok))
		}
		m.meet("a key's use ends", m.token(), &watchwordv1.Change{TrustState: m.trusting(past)})
		tok = m.token()
		again := m.ends(m.filler, tok)
		again.TrustState = m.trusting(future)
		if m.meet("a session ends in the message with its key", tok, again) {
			t.Fatal("a token was accepted by its new key, after its session had ended")
		}
	}
	t.Logf("%d meetings", m.number)
}
