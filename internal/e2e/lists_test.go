package e2e

import (
	"database/sql"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	_ "modernc.org/sqlite"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// inDatabase runs a statement in the SQLite database of a server that is running.
func inDatabase(t *testing.T, s *server, statement string, args ...any) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(s.dir, "watchword.db")+"?_pragma=busy_timeout(30000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), statement, args...); err != nil {
		t.Fatal(err)
	}
}

// insertSessions inserts n sessions of a user, with ids that begin with a prefix. ended is
// the value of the column ended_at, and may be NULL.
const insertSessions = `WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < $1)
	INSERT INTO sessions (id, user_id, born_ver, audience, created_at, refreshed_at, ended_at, current, spent, spent_at, low, earlier_low, late, late_at)
	SELECT $2 || printf('%011d', n), $3, $4, '["internal"]', now, now, CASE WHEN $5 THEN now END, 1, 0, 0, 0, 0, 0, 0
	FROM numbers, (SELECT CAST(strftime('%s') AS INTEGER) * 1000000 AS now)`

// TestListingSessionsLeavesRoom gives a user a history of 80,000 ended sessions: half of
// them ended one by one, the other half all at once by RevokeUserSessions. While twelve
// callers list the user's live sessions, the server must stay ready and other users must
// be able to log in.
func TestListingSessionsLeavesRoom(t *testing.T) {
	s := serve(t, t.TempDir())
	c := dial(t, s.grpcAddr)
	admin := c.login(t, "admin", s.admin, "watchword")
	alicePassword, bobPassword := newPassword(), newPassword()
	alice := c.create(t, admin, "alice", alicePassword)
	c.create(t, admin, "bob", bobPassword)
	const history = 40_000
	inDatabase(t, s, insertSessions, history, "ended", alice.GetId(), int64(1<<40), true)
	inDatabase(t, s, insertSessions, history, "raise", alice.GetId(), 1, false)
	_, err := c.RevokeUserSessions(bearer(callCtx(t), admin), &watchwordv1.RevokeUserSessionsRequest{UserId: alice.GetId()})
	wantOK(t, "RevokeUserSessions", err)
	tokens := c.login(t, "alice", alicePassword)
	live := []string{tokens.GetSessionId(), c.login(t, "alice", alicePassword).GetSessionId()}
	slices.Sort(live)

	var callers sync.WaitGroup
	var stop atomic.Bool
	for range 12 {
		own := dial(t, s.grpcAddr)
		callers.Go(func() {
			for !stop.Load() {
				resp, err := own.ListSessions(bearer(t.Context(), tokens), &watchwordv1.ListSessionsRequest{PageSize: 1000})
				if err != nil {
					t.Error(err)
					return
				}
				var ids []string
				for _, row := range resp.GetSessions() {
					ids = append(ids, row.GetId())
				}
				slices.Sort(ids)
				if !slices.Equal(ids, live) || resp.GetNextPageToken() != "" {
					t.Errorf("%d sessions and the page token %q, want two sessions in one page", len(ids), resp.GetNextPageToken())
					return
				}
			}
		})
	}
	for range 10 {
		wantOK(t, "a login of another user", c.tryLogin(callCtx(t), "bob", bobPassword))
		for range 5 {
			if err := ready(s); err != nil {
				t.Error(err)
			}
		}
	}
	stop.Store(true)
	callers.Wait()
}

// ready returns an error unless the server says that it is ready.
func ready(s *server) error {
	resp, err := http.Get("http://" + s.httpAddr + "/readyz")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("/readyz: %s", resp.Status)
	}
	return nil
}

// insertRecords inserts n records of logins, each of another user, one microsecond apart.
// They are newer than all records before.
const insertRecords = `WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < $1)
	INSERT INTO audit (id, type, success, reason, actor_id, user_id, session_id, kid, source, detail, count)
	SELECT printf('%016x%012x', now - $1 + n, n), 'login', true, '', 'user' || n, 'user' || n, 'session' || n, '', '192.0.2.1', '', 1
	FROM numbers, (SELECT CAST(strftime('%s') AS INTEGER) * 1000000 + 1000000 + $1 AS now)`

// TestOneUsersRecords asks for the few records of one user that lie before 100,000 records
// of other users. One page must hold them all.
func TestOneUsersRecords(t *testing.T) {
	s := serve(t, t.TempDir())
	c := dial(t, s.grpcAddr)
	admin := c.login(t, "admin", s.admin, "watchword")
	bob := c.create(t, admin, "bob", newPassword())
	first := c.login(t, "admin", s.admin)
	wantOK(t, "logout", c.logout(callCtx(t), first))
	inDatabase(t, s, insertRecords, 60_000)

	records := watchwordv1.NewAuditServiceClient(c.conn)
	for name, f := range map[string]struct {
		filter *watchwordv1.ListEventsRequest
		want   []string // the types, the newest first
	}{
		"the user concerned": {&watchwordv1.ListEventsRequest{UserId: bob.GetId()}, []string{"user.created"}},
		"a session":          {&watchwordv1.ListEventsRequest{SessionId: first.GetSessionId()}, []string{"logout", "login"}},
		"a type":             {&watchwordv1.ListEventsRequest{Type: "user.created"}, []string{"user.created", "user.created"}},
		"an unknown user":    {&watchwordv1.ListEventsRequest{UserId: "nobody"}, nil},
	} {
		resp, err := records.ListEvents(bearer(callCtx(t), admin), f.filter)
		wantOK(t, name, err)
		var types []string
		for _, e := range resp.GetEvents() {
			types = append(types, e.GetType())
		}
		if !slices.Equal(types, f.want) || resp.GetNextPageToken() != "" {
			t.Errorf("%s: the first page has %v and the page token %q, want %v and no other page", name, types, resp.GetNextPageToken(), f.want)
		}
	}
}

// TestMaxSessions logs a user in more often than --max-sessions allows: the oldest session
// must end at each further login, and the security record must say why.
func TestMaxSessions(t *testing.T) {
	s := serve(t, t.TempDir(), "--max-sessions", "3")
	c := dial(t, s.grpcAddr)
	admin := c.login(t, "admin", s.admin, "watchword")
	password := newPassword()
	alice := c.create(t, admin, "alice", password)
	var all []*watchwordv1.TokenPair
	for range 5 {
		all = append(all, c.login(t, "alice", password))
	}
	for i, tokens := range all {
		_, verified := c.verify(callCtx(t), tokens)
		_, refreshed := c.tryRefresh(callCtx(t), tokens)
		if i < 2 {
			wantRefusal(t, fmt.Sprint("Verify of session ", i), verified, "TOKEN_REVOKED")
			wantRefusal(t, fmt.Sprint("Refresh of session ", i), refreshed, "SESSION_REVOKED")
		} else {
			wantOK(t, fmt.Sprint("Verify of session ", i), verified)
			wantOK(t, fmt.Sprint("Refresh of session ", i), refreshed)
		}
	}
	list, err := c.ListSessions(bearer(callCtx(t), admin), &watchwordv1.ListSessionsRequest{UserId: alice.GetId()})
	if err != nil || len(list.GetSessions()) != 3 {
		t.Errorf("ListSessions returned %v, error %v; want three sessions", list, err)
	}
	resp, err := watchwordv1.NewAuditServiceClient(c.conn).ListEvents(bearer(callCtx(t), admin),
		&watchwordv1.ListEventsRequest{UserId: alice.GetId(), Type: "session.revoked"})
	wantOK(t, "ListEvents", err)
	var ended []string
	for _, e := range resp.GetEvents() {
		ended = append(ended, e.GetSessionId())
		if e.GetActorId() != alice.GetId() || !e.GetSuccess() || !strings.Contains(e.GetDetail(), "--max-sessions") {
			t.Errorf("the record is %v", e)
		}
	}
	if want := []string{all[1].GetSessionId(), all[0].GetSessionId()}; !slices.Equal(ended, want) {
		t.Errorf("recorded as ended, the newest first: %v, want %v", ended, want)
	}
}
