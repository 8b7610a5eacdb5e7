package server_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/server"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

func paths(names ...string) *fieldmaskpb.FieldMask { return &fieldmaskpb.FieldMask{Paths: names} }

func withGrace(grace time.Duration) func(*server.Config) {
	return func(c *server.Config) { c.RefreshGrace = grace }
}

// version is the token version of a user's row.
func (h *harness) version(t *testing.T, userID string) (version int64) {
	t.Helper()
	h.behind(t, func(tx *feed.Tx) error {
		u, err := tx.User(userID)
		version = u.Version
		return err
	})
	return version
}

// pages reads a list to its end and returns the sizes of its pages, and all ids.
func pages(t *testing.T, next func(pageToken string) (ids []string, nextPageToken string, err error)) (sizes []int, all []string) {
	t.Helper()
	for pageToken := ""; ; {
		ids, nextPageToken, err := next(pageToken)
		if err != nil {
			t.Fatal(err)
		}
		sizes, all = append(sizes, len(ids)), append(all, ids...)
		if pageToken = nextPageToken; pageToken == "" {
			return sizes, all
		}
		if len(sizes) > 10_000 {
			t.Fatal("no end of pages")
		}
	}
}

// listed checks that a list was in order of id, and whole.
func listed(t *testing.T, got, want []string) {
	t.Helper()
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%d ids of %d, or not in order", len(got), len(want))
	}
}

func TestListUsers(t *testing.T) {
	h := start(t)
	want := []string{h.admin.id}
	deleted := ""
	h.behind(t, func(tx *feed.Tx) error {
		want, deleted = []string{h.admin.id}, ""
		for i := range 2101 {
			row, err := user.Insert(tx.Tx, user.Name(fmt.Sprint("many-", i)), user.Roles{"reader"}, "no hash")
			if err != nil {
				return err
			}
			if i == 1000 {
				deleted, row.DeletedAt = row.ID, tx.Now()
				if err := tx.UpdateUser(row); err != nil {
					return err
				}
				continue
			}
			want = append(want, row.ID)
		}
		return nil
	})
	for size, wantSizes := range map[int32][]int{
		0: append(slices.Repeat([]int{50}, 42), 1), 7: append(slices.Repeat([]int{7}, 300), 1), 1000: {1000, 1000, 101},
		1001: {1000, 1000, 101}, 1<<31 - 1: {1000, 1000, 101}, 191: slices.Repeat([]int{191}, 11), // the last page is full, and no empty page follows
	} {
		sizes, all := pages(t, func(pageToken string) (ids []string, next string, err error) {
			resp, err := h.users.ListUsers(h.admin.as(t.Context()), &watchwordv1.ListUsersRequest{PageSize: size, PageToken: pageToken})
			for _, u := range resp.GetUsers() {
				ids = append(ids, u.GetId())
			}
			return ids, resp.GetNextPageToken(), err
		})
		if !slices.Equal(sizes, wantSizes) {
			t.Errorf("size %d: pages of %v, want %v", size, sizes, wantSizes)
		}
		listed(t, all, want)
	}
	_, err := h.users.GetUser(h.admin.as(t.Context()), &watchwordv1.GetUserRequest{Key: &watchwordv1.GetUserRequest_Id{Id: deleted}})
	refusedBy(t, err, "USER_NOT_FOUND", "")
}

// ListSessions lists the live sessions, the newest first. A page may be short: a session past
// its lifetime is counted for the size of its page, and is left out.
func TestListSessions(t *testing.T) {
	h := shared(t)
	a, b := h.make(t), h.make(t)
	want := h.insertSessions(t, a.id, 250) // all sessions begin at one moment, so the list has them in reverse order of their ids
	slices.Sort(want)
	slices.Reverse(want)
	want = append(want, a.GetSessionId())
	ended := h.insertSessions(t, a.id, 60)
	h.insertSessions(t, b.id, 5)
	h.behind(t, func(tx *feed.Tx) error {
		for _, id := range ended {
			if err := tx.EndSession(id); err != nil {
				return err
			}
		}
		// Sessions from before a raise of RevokedBelow, and sessions past their lifetime, are no
		// longer live.
		u, err := tx.User(a.id)
		for i := range 130 {
			row := &store.Session{ID: user.NewID(), UserID: a.id, BornVersion: u.RevokedBelow - 1, Audience: audiences, CreatedAt: tx.Now(), RefreshedAt: tx.Now()}
			if i%2 == 0 {
				row.BornVersion = u.Version
				row.CreatedAt = tx.Now().Add(-721 * time.Hour)
				row.RefreshedAt = row.CreatedAt
			}
			if err == nil {
				err = tx.InsertSession(row)
			}
		}
		return err
	})
	audienceOf := func(s *watchwordv1.Session) []string {
		if s.GetId() == a.GetSessionId() {
			return audiences[:1] // the audience of a login that named none
		}
		return audiences
	}
	for size, wantSizes := range map[int32][]int{0: {50, 50, 50, 50, 50, 1, 0}, 100: {100, 100, 51, 0}, 251: {251, 0}, 316: {251}, 5000: {251}} {
		for by, userID := range map[*account]string{a: "", h.admin: a.id} {
			sizes, all := pages(t, func(pageToken string) (ids []string, next string, err error) {
				resp, err := h.sessions.ListSessions(by.as(t.Context()), &watchwordv1.ListSessionsRequest{UserId: userID, PageSize: size, PageToken: pageToken})
				for _, s := range resp.GetSessions() {
					ids = append(ids, s.GetId())
					if s.GetUserId() != a.id || !s.GetExpiresAt().AsTime().After(time.Now()) || !slices.Equal(s.GetAudience(), audienceOf(s)) {
						t.Errorf("not a live one of the user's: %v", s)
					}
				}
				return ids, resp.GetNextPageToken(), err
			})
			if !slices.Equal(sizes, wantSizes) {
				t.Errorf("size %d: pages of %v, want %v", size, sizes, wantSizes)
			}
			if !slices.Equal(all, want) {
				t.Errorf("size %d: %d ids of %d, or not in order", size, len(all), len(want))
			}
		}
	}
}

// For a user without the role admin, the session of another user does not exist; an
// admin may end any session.
func TestRevokeSessionOfAnother(t *testing.T) {
	h := shared(t)
	a, b, second := h.make(t), h.make(t), h.make(t, "admin")
	revoke := func(by *account, id string) error {
		_, err := h.sessions.RevokeSession(by.as(t.Context()), &watchwordv1.RevokeSessionRequest{SessionId: id})
		return err
	}
	anothers, nobodys := revoke(b, a.GetSessionId()), revoke(b, "AAAAAAAAAAAAAAAA")
	refusedBy(t, anothers, "SESSION_NOT_FOUND", "")
	refusedBy(t, nobodys, "SESSION_NOT_FOUND", "")
	if anothers.Error() != nobodys.Error() {
		t.Errorf("a session that exists can be told from one that does not: %v, %v", anothers, nobodys)
	}
	wants(t, "the session", h.verify(t, a.GetAccessToken()), "ok")
	if err := revoke(second, a.GetSessionId()); err != nil {
		t.Error(err)
	}
	wants(t, "the session", h.verify(t, a.GetAccessToken()), "TOKEN_REVOKED")
	if err := revoke(b, b.GetSessionId()); err != nil {
		t.Error(err)
	}
	wants(t, "one's own", h.verify(t, b.GetAccessToken()), "TOKEN_REVOKED")
	refusedBy(t, revoke(b, b.GetSessionId()), "TOKEN_REVOKED", "")
	refusedBy(t, revoke(second, "AAAAAAAAAAAAAAAA"), "SESSION_NOT_FOUND", "")

	// A user that has lost the role admin cannot use the role in an old token.
	_, err := h.users.UpdateUser(h.admin.as(t.Context()), &watchwordv1.UpdateUserRequest{User: &watchwordv1.User{Id: second.id}, UpdateMask: paths("roles")})
	if err != nil {
		t.Fatal(err)
	}
	h.relogin(t, a)
	refusedBy(t, revoke(second, a.GetSessionId()), "TOKEN_STALE", "")
	resp, err := h.auth.Refresh(t.Context(), &watchwordv1.RefreshRequest{RefreshToken: second.GetRefreshToken()})
	if err != nil {
		t.Fatal(err)
	}
	second.TokenPair = resp.GetTokens()
	refusedBy(t, revoke(second, a.GetSessionId()), "SESSION_NOT_FOUND", "")
}

// ListSessions tells only the hour of a session's last refresh: with the precise time, a thief
// with a copy of the refresh token would know when to follow.
func TestASessionTellsOnlyTheHourOfItsRefresh(t *testing.T) {
	h := shared(t)
	a := h.make(t)
	hour := time.Now().UTC().Truncate(time.Hour).Add(-5 * time.Hour)
	for _, after := range []time.Duration{0, time.Microsecond, 29 * time.Minute, time.Hour - time.Microsecond} {
		id := user.NewID()
		h.behind(t, func(tx *feed.Tx) error {
			u, err := tx.User(a.id)
			if err != nil {
				return err
			}
			return tx.InsertSession(&store.Session{
				ID: id, UserID: a.id, BornVersion: u.Version, Audience: audiences, CreatedAt: hour.Add(-time.Minute),
				RefreshedAt: hour.Add(after), Generations: store.Generations{Current: 1},
			})
		})
		resp, err := h.sessions.ListSessions(a.as(t.Context()), &watchwordv1.ListSessionsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, s := range resp.GetSessions() {
			if s.GetId() != id {
				continue
			}
			found = true
			if got := s.GetRefreshedAt().AsTime(); !got.Equal(hour) {
				t.Errorf("refreshed %v after the hour, and the answer says %v", after, got)
			}
			if got, want := s.GetExpiresAt().AsTime(), hour.Add(time.Hour+server.DefaultConfig().RefreshTTL); !got.Equal(want) {
				t.Errorf("refreshed %v after the hour, and it ends at %v, want %v", after, got, want)
			}
		}
		if !found {
			t.Fatalf("no session %s", id)
		}
	}
}
