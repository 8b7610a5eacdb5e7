package server_test

import (
	"sync"
	"testing"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/feed"
)

// One user's calls leave the server free for other users: while 64 calls of the user run or wait
// for a blocked database, further calls of the user are refused, and the calls of another user
// are answered.
func TestOneUsersCallsLeaveRoom(t *testing.T) {
	h := start(t)
	a, b := h.make(t), h.make(t)
	const room, beyond = 64, 12
	refused, others := make(chan error, room+beyond), make(chan string, room+beyond)
	var overloaded []error
	var tasks sync.WaitGroup
	h.behind(t, func(*feed.Tx) error { // holds the lock of the database against writes
		for range room + beyond {
			tasks.Go(func() {
				_, err := h.sessions.RevokeSession(a.as(t.Context()), &watchwordv1.RevokeSessionRequest{SessionId: "AAAAAAAAAAAAAAAA"})
				if outcome(err) == "OVERLOADED" {
					refused <- err
					return
				}
				others <- outcome(err)
			})
		}
		for range beyond {
			select {
			case err := <-refused:
				overloaded = append(overloaded, err)
			case answer := <-others:
				t.Errorf("a call was answered by %s, although no write comes through", answer)
				return nil
			}
		}
		if _, err := h.sessions.ListSessions(b.as(t.Context()), &watchwordv1.ListSessionsRequest{}); err != nil {
			t.Errorf("another user: %v", err)
		}
		if resp, _ := h.get(t, "GET", "/readyz"); resp.StatusCode != 200 {
			t.Errorf("/readyz: %s", resp.Status)
		}
		return nil
	})
	tasks.Wait()
	for _, err := range overloaded {
		refusedBy(t, err, "OVERLOADED", "")
	}
	close(others)
	n := 0
	for answer := range others {
		wants(t, "a call that had its turn", answer, "SESSION_NOT_FOUND")
		n++
	}
	if n != room {
		t.Errorf("%d had their turn, want %d", n, room)
	}
}
