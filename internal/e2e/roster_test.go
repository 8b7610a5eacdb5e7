package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/credentials/insecure"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/pgtest"
)

// fleet is a number of verifiers at the replicas of an installation, each with a connection
// of its own.
type fleet struct {
	in        *installation
	verifiers []*authn.Verifier
	admins    []*client // a client at each replica, logged in as admin
	tokens    *watchwordv1.TokenPair
}

// newFleet starts three replicas, and verifiers at each in turn.
func newFleet(t *testing.T, verifiers int) *fleet {
	t.Helper()
	f := &fleet{in: install(t)}
	for range 3 {
		f.admins = append(f.admins, dial(t, f.in.replicate(t).now().grpcAddr))
	}
	f.tokens = f.admins[0].login(t, "admin", f.in.admin, "watchword")
	for i := range verifiers {
		conn := dialConn(t, f.in.replicas[i%3].now().grpcAddr, insecure.NewCredentials())
		v, err := authn.NewVerifier(callCtx(t), conn, authn.WithAudience("internal"),
			authn.WithName("service"), authn.WithInstance(fmt.Sprint(i)), authn.WithLogger(slog.New(slog.DiscardHandler)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { v.Close() })
		f.verifiers = append(f.verifiers, v)
	}
	return f
}

// watchers returns the answer of a replica, with every page of the watchers.
func (f *fleet) watchers(t *testing.T, replica int) *watchwordv1.ListWatchersResponse {
	t.Helper()
	var all *watchwordv1.ListWatchersResponse
	for token := ""; ; {
		page, err := f.admins[replica].ListWatchers(bearer(callCtx(t), f.tokens), &watchwordv1.ListWatchersRequest{PageSize: 70, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		if all == nil {
			all = page
		} else {
			all.Watchers = append(all.Watchers, page.GetWatchers()...)
		}
		if token = page.GetNextPageToken(); token == "" {
			return all
		}
	}
}

// behind says which watchers and replicas have not reached a position.
func behind(answer *watchwordv1.ListWatchersResponse, position int64) (names []string) {
	for _, r := range answer.GetReplicas() {
		if !r.GetAnswers() || r.GetPosition() < position {
			names = append(names, "replica "+r.GetAddress())
		}
	}
	for _, w := range answer.GetWatchers() {
		if !w.GetReports() || w.GetPosition() < position {
			names = append(names, w.GetService()+" "+w.GetInstance())
		}
	}
	return names
}

// Every replica lists the watchers of every replica, with their positions, within a second of
// a change. A frozen watcher is the only one behind. A replica that is killed is named, until
// its place is taken.
func TestEveryReplicaListsEveryWatcher(t *testing.T) {
	f := newFleet(t, 9)
	notes := start(t, notesAt(t, f.in.replicas[1].now()))
	notes.awaitLog(t, notesLine)
	keepOpen(t, f.admins[2].conn, nil).opened(t) // reports nothing
	for i := range f.admins {
		eventually(t, propagation, fmt.Sprintf("the list at replica %d", i), func() error {
			answer := f.watchers(t, i)
			if len(answer.GetReplicas()) != 3 || len(answer.GetWatchers()) != 11 {
				return fmt.Errorf("%d replicas and %d watchers", len(answer.GetReplicas()), len(answer.GetWatchers()))
			}
			if late := behind(answer, answer.GetPosition()); !slices.Equal(late, []string{" "}) {
				return fmt.Errorf("behind are %q, want the watcher without reports", late)
			}
			return nil
		})
	}
	notes.signal(t, pgtest.Freeze)
	before := f.watchers(t, 0).GetPosition()
	if err := f.admins[0].logout(callCtx(t), f.admins[0].login(t, "admin", f.in.admin)); err != nil {
		t.Fatal(err)
	}
	took := eventually(t, propagation, "the positions after a logout", func() error {
		answer := f.watchers(t, 1)
		if answer.GetPosition() <= before {
			return errors.New("the position is the earlier one")
		}
		if late := behind(answer, answer.GetPosition()); len(late) != 2 || !slices.Contains(late, " ") {
			return fmt.Errorf("behind are %q, want the watcher without reports and the frozen one", late)
		}
		return nil
	})
	t.Logf("every watcher but the frozen one has the logout, as replica 1 lists them, after %v", took)

	notes.signal(t, pgtest.Thaw)
	killed := f.in.replicas[2].now()
	f.in.replicas[2].kill()
	eventually(t, propagation, "the replica that was killed", func() error {
		for _, r := range f.watchers(t, 0).GetReplicas() {
			if !r.GetAnswers() && r.GetPosition() > 0 && time.Since(r.GetSeenAt().AsTime()) < time.Minute {
				return nil
			}
		}
		return fmt.Errorf("%s is not named", killed.grpcAddr)
	})
	f.in.replicas[1].now().stop(t)
	eventually(t, propagation, "the replica that has stopped", func() error {
		if n := len(f.watchers(t, 0).GetReplicas()); n != 2 {
			return fmt.Errorf("%d replicas are listed, want 2", n)
		}
		return nil
	})
}

// 200 watchers at three replicas: the time from a change until a list shows every watcher
// with the change. -v shows the figures.
func TestSlowTimesOfTheList(t *testing.T) {
	slow(t)
	f := newFleet(t, 200)
	var idle, asking []time.Duration
	measure := func() time.Duration {
		pair := f.admins[0].login(t, "admin", f.in.admin)
		if err := f.admins[0].logout(callCtx(t), pair); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		head := int64(0)
		eventually(t, propagation, "the positions", func() error {
			answer := f.watchers(t, 1)
			head = max(head, answer.GetPosition()) // the first answer knows the logout
			if late := behind(answer, head); len(answer.GetWatchers()) != 200 || len(late) > 0 {
				return fmt.Errorf("of %d watchers, behind are %q", len(answer.GetWatchers()), late)
			}
			return nil
		})
		return time.Since(began)
	}
	for range 100 {
		asking = append(asking, measure())
	}
	for range 5 {
		sleepUntil(context.Background(), 6*time.Second) // nobody asks any more
		idle = append(idle, measure())
	}
	slices.Sort(asking)
	slices.Sort(idle)
	t.Logf("200 watchers, from a logout until all of them are listed with the logout: while somebody asks p50 %v, p99 %v, most %v; at the first question most %v",
		asking[50], asking[98], asking[99], idle[len(idle)-1])
	if asking[99] > propagation || idle[len(idle)-1] > propagation {
		t.Error("too long")
	}
}

// A verifier reports for longer than one stream of reports lives: a server resets a stream
// with more than 1024 small frames. While somebody asks and sessions end, a verifier reports
// ten times a second.
func TestSlowReportsGoOn(t *testing.T) {
	slow(t)
	s := serve(t, t.TempDir(), "--max-sessions", "10000")
	c := dial(t, s.grpcAddr)
	v, err := authn.NewVerifier(callCtx(t), dial(t, s.grpcAddr).conn, authn.WithAudience("internal"), authn.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	var admin *watchwordv1.TokenPair
	began, missed, lists := time.Now(), 0, 0
	for time.Since(began) < 200*time.Second {
		wantOK(t, "a logout", c.logout(callCtx(t), c.login(t, "admin", s.admin)))
		if lists%600 == 0 { // renews the login before the access token expires
			admin = c.login(t, "admin", s.admin, "watchword")
		}
		answer, err := c.ListWatchers(bearer(callCtx(t), admin), &watchwordv1.ListWatchersRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if lists++; time.Since(began) > time.Second && !answer.GetWatchers()[0].GetReports() {
			missed++
		}
	}
	t.Logf("%d of %d lists lacked the report", missed, lists)
	if missed > lists/100 {
		t.Errorf("%d of %d lists lacked the report", missed, lists)
	}
}
