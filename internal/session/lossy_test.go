package session_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/session/sessiontest"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// network loses three answers of ten: for seconds, until the client tries again,
// or for hours.
type network struct {
	*sessiontest.World
	rand *rand.Rand
	refreshes, lost, late,
	repeated int
}

func (n *network) wait(from, to time.Duration) {
	time.Sleep(from + time.Duration(n.rand.Int64N(int64(to-from))))
}

// ask presents a token, until an answer arrives or the session has ended.
func (n *network) ask(token string) (*session.Tokens, error) {
	for before := ""; ; {
		tokens, err := n.Sessions.Refresh(context.Background(), token, nil)
		if err != nil {
			return nil, err
		}
		n.refreshes++
		if tokens.Refresh == before {
			n.repeated++
		}
		if n.rand.IntN(10) >= 3 {
			return tokens, nil
		}
		n.lost++
		before = tokens.Refresh
		if n.rand.IntN(10) < 7 {
			n.wait(time.Second, 30*time.Second)
		} else {
			n.late++
			n.wait(20*time.Minute, 3*time.Hour)
		}
	}
}

func newNetwork(t *testing.T, w *sessiontest.World) *network {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return &network{World: w, rand: rand.New(rand.NewPCG(seed, 0))}
}

// A client is never logged out because its network loses answers.
func TestALossyNetworkLogsNobodyOut(t *testing.T) {
	refreshes := 10_000
	if testing.Short() {
		refreshes = 500
	}
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, sessiontest.On(t, storetest.SQLite(t), func(f *feed.Feed) { f.Pace(sessiontest.Never, sessiontest.Never) }))
		n.Verifier.Close() // the test revokes nothing, and without news the verifier would log that its bundle is stale
		began, logins := time.Now(), 0
		for n.refreshes < refreshes {
			tokens, login := n.Login(t), time.Now()
			// A session ends after its lifetime in any case.
			for logins++; n.refreshes < refreshes && time.Since(login) < lifetime-30*time.Hour; {
				var err error
				if tokens, err = n.ask(tokens.Refresh); err != nil {
					t.Fatalf("after %d refreshes: %v", n.refreshes, err)
				}
				n.wait(time.Minute, 10*time.Minute)
			}
		}
		t.Logf("%d refreshes in %v of the client's time, in %d sessions: %d answers lost, %d of them for hours; %d times the same answer again",
			n.refreshes, time.Since(began).Round(time.Hour), logins, n.lost, n.late, n.repeated)
	})
}

// If a thief shares the session of a client with a bad network, the theft is found each time: at
// the latest when the second party has come back after the grace period and the first party
// refreshes again.
func TestTheftIsFoundEachTime(t *testing.T) {
	thefts := 100
	if testing.Short() {
		thefts = 20
	}
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, sessiontest.Slow(t))
		var longest time.Duration
		atOnce := 0
		for range thefts {
			first := n.Login(t)
			owner := first.Refresh
			stolen := owner
			for range n.rand.IntN(6) {
				tokens, err := n.ask(owner)
				if err != nil {
					t.Fatalf("before the theft: %v", err)
				}
				if n.rand.IntN(3) > 0 { // the thief takes the newest token, or keeps an earlier one
					stolen = tokens.Refresh
				}
				owner = tokens.Refresh
				n.wait(time.Second, 10*time.Minute)
			}
			began := time.Now()
			held := map[bool]string{false: owner, true: stolen}
			turn := n.rand.IntN(2) == 0
			asked := 0
			for {
				n.wait(afterGrace, time.Hour)
				tokens, err := n.ask(held[turn])
				if asked++; errors.Is(err, session.ErrRefreshReused) {
					break
				}
				if err != nil {
					t.Fatalf("the theft: %v", err)
				}
				if asked == 3 {
					t.Fatalf("both go on with a session that they share")
				}
				held[turn], turn = tokens.Refresh, !turn
			}
			for _, token := range held {
				n.Refused(t, token, session.ErrRevoked)
			}
			if asked == 1 {
				atOnce++
			}
			longest = max(longest, time.Since(began))
		}
		t.Logf("%d thefts, each found; %d by the first who came, the last after %v", thefts, atOnce, longest.Round(time.Minute))
	})
}
