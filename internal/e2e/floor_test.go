package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// lostChange is a kind of change to a user.
type lostChange struct {
	refused string // the reason that verifiers then give for tokens from before
	do      func(ctx context.Context, c *client, u *lostUser) error
}

// lostUser is a user whose newest change a database has lost.
type lostUser struct {
	what           string
	id             string
	name, password string // the account as it was before the change
	before         *watchwordv1.TokenPair
}

func update(ctx context.Context, c *client, user *watchwordv1.User, path string) error {
	_, err := c.UpdateUser(ctx, &watchwordv1.UpdateUserRequest{User: user, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{path}}})
	return err
}

func revokeSessions(ctx context.Context, c *client, u *lostUser) error {
	_, err := c.RevokeUserSessions(ctx, &watchwordv1.RevokeUserSessionsRequest{UserId: u.id})
	return err
}

// lostChanges are made by an admin, except the owner's new password. The user has the role
// reader before.
var lostChanges = map[string]lostChange{
	"a role given": {"TOKEN_STALE", func(ctx context.Context, c *client, u *lostUser) error {
		return update(ctx, c, &watchwordv1.User{Id: u.id, Roles: []string{"admin", "reader"}}, "roles")
	}},
	"a role taken": {"TOKEN_STALE", func(ctx context.Context, c *client, u *lostUser) error {
		return update(ctx, c, &watchwordv1.User{Id: u.id}, "roles")
	}},
	"another name": {"TOKEN_STALE", func(ctx context.Context, c *client, u *lostUser) error {
		return update(ctx, c, &watchwordv1.User{Id: u.id, Username: "new." + u.name}, "username")
	}},
	"disabled and enabled": {"TOKEN_REVOKED", func(ctx context.Context, c *client, u *lostUser) error {
		if err := update(ctx, c, &watchwordv1.User{Id: u.id, Disabled: true}, "disabled"); err != nil {
			return err
		}
		return update(ctx, c, &watchwordv1.User{Id: u.id}, "disabled")
	}},
	"a new password by the owner": {"TOKEN_REVOKED", func(ctx context.Context, c *client, u *lostUser) error {
		_, err := c.ChangePassword(bearer(ctx, u.before),
			&watchwordv1.ChangePasswordRequest{CurrentPassword: u.password, NewPassword: newPassword()})
		return err
	}},
	"a new password by an admin": {"TOKEN_REVOKED", func(ctx context.Context, c *client, u *lostUser) error {
		_, err := c.SetPassword(ctx, &watchwordv1.SetPasswordRequest{Id: u.id, Password: newPassword()})
		return err
	}},
	"all sessions ended": {"TOKEN_REVOKED", revokeSessions},
	// Each of these changes raises the version by one, and so up to a minute and more ahead
	// of the clock. A clock that was set back has the same effect.
	"a hundred changes in a moment": {"TOKEN_REVOKED", func(ctx context.Context, c *client, u *lostUser) error {
		for range 100 {
			if err := revokeSessions(ctx, c, u); err != nil {
				return err
			}
		}
		return nil
	}},
	"deleted and created anew": {"TOKEN_REVOKED", func(ctx context.Context, c *client, u *lostUser) error {
		if _, err := c.DeleteUser(ctx, &watchwordv1.DeleteUserRequest{Id: u.id}); err != nil {
			return err
		}
		_, err := c.CreateUser(ctx, &watchwordv1.CreateUserRequest{Username: u.name, Password: newPassword()})
		return err
	}},
}

// lost is a set of users with one lost change each, and a verifier that knows the changes.
type lost struct {
	users     []*lostUser
	admin     *watchwordv1.TokenPair // a session of admin from before the backup
	bystander *watchwordv1.TokenPair // a session, from before the backup, of a user without a lost change
	raised    *watchwordv1.TokenPair // a session of a user that got the role admin after the backup; the backup has the session, and lacks the role
	verifier  *authn.Verifier
}

// newLost makes the users. The backup is made afterwards.
func newLost(t *testing.T, c *client, adminPassword string) *lost {
	l := &lost{admin: c.login(t, "admin", adminPassword, "watchword")}
	for what := range lostChanges {
		u := &lostUser{what: what, name: strings.ReplaceAll(what, " ", "."), password: newPassword()}
		u.id = c.create(t, l.admin, u.name, u.password, "reader").GetId()
		u.before = c.login(t, u.name, u.password)
		if what == "a role given" {
			l.raised = c.login(t, u.name, u.password, "watchword")
		}
		l.users = append(l.users, u)
	}
	l.bystander = c.login(t, "admin", adminPassword)
	wantOK(t, "logout", c.logout(callCtx(t), c.login(t, "admin", adminPassword))) // makes this logout the newest event, whose number the function head returns
	return l
}

// change makes the changes, and waits until a verifier that watches over conn knows them.
func (l *lost) change(t *testing.T, c *client) {
	t.Helper()
	var err error
	if l.verifier, err = authn.NewVerifier(callCtx(t), c.conn, authn.WithAudience("internal")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.verifier.Close() })
	for _, u := range l.users {
		if _, err := l.verifier.Verify(t.Context(), u.before.GetAccessToken()); err != nil {
			t.Errorf("%s: before the change: %v", u.what, err)
		}
		ctx := callCtx(t)
		if u.what != "a new password by the owner" {
			ctx = bearer(ctx, l.admin)
		}
		if err := lostChanges[u.what].do(ctx, c, u); err != nil {
			t.Fatalf("%s: %v", u.what, err)
		}
		if u.what == "a role given" {
			l.raised = c.refresh(t, l.raised)
		}
		eventually(t, propagation, u.what+" reaches the verifier", func() error {
			_, err := l.verifier.Verify(t.Context(), u.before.GetAccessToken())
			return checkRefusal(err, lostChanges[u.what].refused)
		})
	}
}

// check checks the tokens of users after the database has lost the changes.
func (l *lost) check(t *testing.T, c *client) {
	t.Helper()
	for _, u := range l.users {
		old := u.before
		eventually(t, runTimeout, u.what+": accepting a new login at a service that kept running", func() error {
			pair := c.login(t, u.name, u.password)
			_, err := l.verifier.Verify(t.Context(), pair.GetAccessToken())
			return err
		})
		eventually(t, runTimeout, u.what+": accepting a refreshed token", func() error {
			u.before = c.refresh(t, u.before)
			_, err := l.verifier.Verify(t.Context(), u.before.GetAccessToken())
			return err
		})
		_, err := l.verifier.Verify(t.Context(), old.GetAccessToken())
		wantRefusal(t, u.what+": the access token from before the lost change", err, lostChanges[u.what].refused)
		_, err = c.verify(callCtx(t), u.before)
		wantOK(t, u.what+": verify at the server", err)
	}
	_, err := l.verifier.Verify(t.Context(), l.bystander.GetAccessToken())
	wantOK(t, "the access token of a user without a lost change, at a service", err)
	_, err = c.verify(callCtx(t), l.bystander)
	wantOK(t, "the access token of a user without a lost change, at the server", err)

	_, err = c.SetPassword(bearer(callCtx(t), l.raised), &watchwordv1.SetPasswordRequest{Id: l.users[0].id, Password: newPassword()})
	wantRefusal(t, "a change with the role admin, which the database has lost", err, "TOKEN_STALE")

	// A change that the new history makes counts for the new tokens, too.
	for i, u := range l.users {
		change, want := revokeSessions, "TOKEN_REVOKED"
		if i%2 == 0 {
			change, want = func(ctx context.Context, c *client, u *lostUser) error {
				return update(ctx, c, &watchwordv1.User{Id: u.id, Roles: []string{"writer"}}, "roles")
			}, "TOKEN_STALE"
		}
		wantOK(t, u.what+": a change after the restore, with an admin's token from before", change(bearer(callCtx(t), l.admin), c, u))
		eventually(t, propagation, u.what+": refusing the token from before a change", func() error {
			_, err := l.verifier.Verify(t.Context(), u.before.GetAccessToken())
			return checkRefusal(err, want)
		})
	}
}

// TestNewLoginsAfterARestore restores a backup that lacks changes. A service that heard of
// the changes keeps running, and must accept what the server mints after the restore.
func TestNewLoginsAfterARestore(t *testing.T) {
	s := serve(t, t.TempDir(), longLifetimes...)
	c := dial(t, s.grpcAddr)
	l := newLost(t, c, s.admin)
	file := filepath.Join(t.TempDir(), "backup.db")
	wantExit(t, 0, cli(t, s.dir, "", "backup", file, "--datastore-uri", database(s.dir)))
	l.change(t, c)
	s.stop(t)
	replaceDatabase(t, s.dir, file)
	serve(t, s.dir, append(longLifetimes, "--grpc-addr", s.grpcAddr, "--http-addr", s.httpAddr)...)
	eventually(t, runTimeout, "connecting again", func() error { return c.tryLogin(callCtx(t), l.users[0].name, l.users[0].password) })
	l.check(t, c)
}

// TestNewLoginsAfterAPromotion promotes a standby that lacks changes, while a replica keeps
// running. As in TestNewLoginsAfterARestore, services must accept what is minted afterwards.
func TestNewLoginsAfterAPromotion(t *testing.T) {
	in := install(t, longLifetimes...)
	in.follow(false)
	a := in.replicate(t)
	c := a.dial(t)
	l := newLost(t, c, in.admin)
	eventually(t, propagation, "replicating to the standby", func() error {
		if there, here := head(t, in, in.standby), head(t, in, in.primary); there != here {
			return fmt.Errorf("the standby has event %d of %d", there, here)
		}
		return nil
	})
	in.standby.Detach(t)
	l.change(t, c)
	in.primary.Kill()
	in.promote()
	a.now().awaitLog(t, forkedLine)
	l.check(t, c)
}

// TestARestartKeepsTokens starts a server again. New tokens get a higher version. Tokens from
// before stay valid: at services, at the server, and for calls that change something.
func TestARestartKeepsTokens(t *testing.T) {
	s := serve(t, t.TempDir(), longLifetimes...)
	c, password := dial(t, s.grpcAddr), newPassword()
	c.create(t, c.login(t, "admin", s.admin, "watchword"), "alice", password, "reader")
	before := c.login(t, "alice", password)
	began := version(t, before)
	verifier, err := authn.NewVerifier(callCtx(t), c.conn, authn.WithAudience("internal"))
	if err != nil {
		t.Fatal(err)
	}
	defer verifier.Close()
	s.stop(t)
	time.Sleep(time.Until(time.Unix(began+1, 0))) // versions follow the clock in seconds
	serve(t, s.dir, append(longLifetimes, "--grpc-addr", s.grpcAddr, "--http-addr", s.httpAddr)...)
	eventually(t, runTimeout, "connecting again", func() error { _, err := c.verify(callCtx(t), before); return err })
	after := c.refresh(t, before)
	if now := version(t, after); now <= began {
		t.Errorf("the version is %d after the restart, and was %d", now, began)
	}
	for _, pair := range []*watchwordv1.TokenPair{before, after} {
		_, err := verifier.Verify(t.Context(), pair.GetAccessToken())
		wantOK(t, "verify at a service", err)
	}
	_, err = c.ChangePassword(bearer(callCtx(t), before), &watchwordv1.ChangePasswordRequest{CurrentPassword: password, NewPassword: newPassword()})
	wantOK(t, "a change with the access token from before", err)
	for _, pair := range []*watchwordv1.TokenPair{before, after} {
		eventually(t, propagation, "refusing the tokens from before the change", func() error {
			_, err := verifier.Verify(t.Context(), pair.GetAccessToken())
			return checkRefusal(err, "TOKEN_REVOKED")
		})
	}
}

// TestNewLoginsAfterLostKeys restores a backup that lacks changes of the signing keys. If the
// backup lacks the withdrawal of a key, the operator runs `datastore restored`, as
// docs/restore.md says.
func TestNewLoginsAfterLostKeys(t *testing.T) {
	key := func(t *testing.T, s *server, args ...string) {
		wantExit(t, 0, cli(t, s.dir, "", append(args, "--datastore-uri", database(s.dir))...))
	}
	for name, c := range map[string]struct {
		lose     func(t *testing.T, s *server, kid string)
		restored bool
	}{
		"rotated":       {lose: func(t *testing.T, s *server, _ string) { key(t, s, "key", "rotate") }},
		"rotated twice": {lose: func(t *testing.T, s *server, _ string) { key(t, s, "key", "rotate"); key(t, s, "key", "rotate") }},
		"withdrawn": {func(t *testing.T, s *server, kid string) {
			wantExit(t, 0, cli(t, s.dir, "", "key", "revoke", "--datastore-uri", database(s.dir), "--", kid))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, t.TempDir(), append(longLifetimes, "--jwks-max-age", "0s")...)
			admin := dial(t, s.grpcAddr)
			before := admin.login(t, "admin", s.admin)
			file := filepath.Join(t.TempDir(), "backup.db")
			key(t, s, "backup", file)
			verifier, err := authn.NewVerifier(callCtx(t), admin.conn, authn.WithAudience("internal"))
			if err != nil {
				t.Fatal(err)
			}
			defer verifier.Close()
			accepted := func(what string, pair *watchwordv1.TokenPair) {
				t.Helper()
				eventually(t, runTimeout, what, func() error {
					_, err := verifier.Verify(t.Context(), pair.GetAccessToken())
					return err
				})
			}
			c.lose(t, s, keyOf(t, before))
			eventually(t, propagation, "signing with another key", func() error {
				lost := admin.login(t, "admin", s.admin)
				if keyOf(t, lost) == keyOf(t, before) {
					return errors.New("the same key")
				}
				_, err := verifier.Verify(t.Context(), lost.GetAccessToken())
				return err
			})
			s.stop(t)
			replaceDatabase(t, s.dir, file)
			if c.restored {
				key(t, s, "datastore", "restored")
			}
			serve(t, s.dir, append(longLifetimes, "--jwks-max-age", "0s", "--grpc-addr", s.grpcAddr, "--http-addr", s.httpAddr)...)
			eventually(t, runTimeout, "connecting again", func() error { return admin.tryLogin(callCtx(t), "admin", s.admin) })
			accepted("a new login", admin.login(t, "admin", s.admin))
			if c.restored {
				_, err := verifier.Verify(t.Context(), before.GetAccessToken())
				wantRefusal(t, "a token of the withdrawn key", err, "TOKEN_INVALID")
				return
			}
			accepted("a token from before", before)
			accepted("a refreshed token", admin.refresh(t, before))
		})
	}
}

// keyOf returns the id of the key that signed an access token.
func keyOf(t *testing.T, pair *watchwordv1.TokenPair) string {
	t.Helper()
	var header struct {
		KID string `json:"kid"`
	}
	decodePart(t, pair, 0, &header)
	return header.KID
}

// version returns the claim ver of an access token.
func version(t *testing.T, pair *watchwordv1.TokenPair) int64 {
	t.Helper()
	var claims struct {
		Version int64 `json:"ver"`
	}
	decodePart(t, pair, 1, &claims)
	return claims.Version
}

// decodePart decodes a part of an access token: the header is part 0, the claims part 1.
func decodePart(t *testing.T, pair *watchwordv1.TokenPair, part int, into any) {
	t.Helper()
	text, err := base64.RawURLEncoding.DecodeString(strings.Split(pair.GetAccessToken(), ".")[part])
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}
