package keptlogin

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// file returns a file in a new folder for settings.
func file(t *testing.T) File {
	t.Helper()
	folder := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", folder)
	t.Setenv("HOME", folder)
	t.Setenv("AppData", folder)
	return At("server.test:50051")
}

// access returns a text in the form of an access token with a lifetime of an hour.
func access(id string) string {
	return "h." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"iat":1000,"exp":4600,"jti":%q}`, id)) + ".s"
}

// put keeps an expired login.
func put(t *testing.T, f File, username string, admin bool) {
	t.Helper()
	g := Login{Username: username, Admin: admin, Device: "r-" + username, Refresh: "r-" + username, Access: "old", Until: time.Now()}
	if err := f.Put(t.Context(), g); err != nil {
		t.Fatal(err)
	}
}

// Commands at the same time renew a login once, and all get the new access token.
func TestRefreshTokenIsSentOnce(t *testing.T) {
	f := file(t)
	put(t, f, "alice", true)
	var sent sync.Map
	renew := func(_ context.Context, refresh string, keep func(string) error) (string, error) {
		if _, twice := sent.LoadOrStore(refresh, true); twice {
			t.Errorf("the refresh token %s is sent twice", refresh)
		}
		return access(refresh), keep(refresh + "+")
	}
	want, refused := access("r-alice"), ""
	for range 2 { // in the second round the server has refused the new token
		var all sync.WaitGroup
		for range 8 {
			u, err := f.Use(true)
			if err != nil {
				t.Fatal(err)
			}
			all.Go(func() {
				if got, err := u.Token(t.Context(), refused, renew); err != nil || got != want {
					t.Errorf("got %s, %v, want %s", got, err, want)
				}
			})
		}
		all.Wait()
		want, refused = access("r-alice+"), want
	}
	if u, err := f.Use(true); err != nil || u.Refresh != "r-alice++" || u.Device != u.Refresh || time.Until(u.Until) < 50*time.Minute {
		t.Errorf("kept is %+v", u)
	}
}

// If a refresh returns a new refresh token and no access token, the new refresh token is kept.
func TestRefreshTokenIsKeptFirst(t *testing.T) {
	f := file(t)
	put(t, f, "alice", true)
	broken := errors.New("broken")
	u, _ := f.Use(true)
	token, err := u.Token(t.Context(), "", func(_ context.Context, _ string, keep func(string) error) (string, error) {
		return "", errors.Join(keep("new"), broken)
	})
	if u, none := f.Use(true); token != "" || !errors.Is(err, broken) || none != nil || u.Refresh != "new" || u.Access != "" {
		t.Errorf("%q, %v; kept is %+v", token, err, u)
	}
}

// The newest login counts; a login for another program leaves the tokens in use.
func TestNewestLogin(t *testing.T) {
	f := file(t)
	put(t, f, "alice", true)
	put(t, f, "alice", false)
	put(t, f, "bob", false)
	if err := f.Put(t.Context(), Login{Username: "alice", Admin: true, Device: "printed"}); err != nil {
		t.Fatal(err)
	}
	admin, err := f.Use(true)
	if newest, _ := f.Use(false); err != nil || admin.Refresh != "r-alice" || admin.Device != "printed" || newest.Username != "bob" {
		t.Errorf("for administration %+v, the newest %+v", admin, newest)
	}
	if f.Device("bob") != "r-bob" || f.Device("carol") != "" {
		t.Errorf("the devices are %q and %q", f.Device("bob"), f.Device("carol"))
	}
	for i := range maxLogins {
		put(t, f, fmt.Sprint("user-", i), false)
	}
	if _, err := f.Use(true); !errors.Is(err, ErrNone) || f.Device("user-0") == "" {
		t.Errorf("after %d more logins the oldest is kept, or a new one is lost", maxLogins)
	}
	if f.Put(t.Context(), Login{Username: "eve", Device: "a b"}) == nil {
		t.Error("a text with a space is kept as a refresh token")
	}
}

// End removes the tokens of the sessions that logout has ended, and of no other session.
func TestEnd(t *testing.T) {
	f := file(t)
	put(t, f, "alice", true)
	put(t, f, "bob", false)
	inUse, _ := f.Use(true)
	broken := errors.New("broken")
	err := f.End(t.Context(), func(refresh string) error {
		if refresh == "r-bob" {
			return broken
		}
		return nil
	})
	if u, none := f.Use(false); !errors.Is(err, broken) || none != nil || u.Username != "bob" || f.Device("alice") != "r-alice" {
		t.Errorf("%v; kept is %+v", err, u)
	}
	if _, err := inUse.Token(t.Context(), "", nil); !errors.Is(err, ErrLoggedOut) {
		t.Errorf("a command that runs gets %v", err)
	}
}

// A file that every user may write is not used: another user could have put a login there.
func TestAFileThatEveryUserMayWrite(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no such modes")
	}
	f := file(t)
	put(t, f, "alice", true)
	inUse, _ := f.Use(true)
	for _, path := range []string{f.path, filepath.Dir(f.path)} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, info.Mode().Perm()|0o002); err != nil {
			t.Fatal(err)
		}
		_, used := f.Use(true)
		_, renewed := inUse.Token(t.Context(), "", nil)
		kept := f.Put(t.Context(), Login{Username: "alice", Admin: true, Device: "d", Refresh: "r"})
		ended := f.End(t.Context(), func(string) error { return nil })
		for _, err := range []error{used, renewed, kept, ended} {
			if err == nil || !strings.Contains(err.Error(), path+" has mode") {
				t.Errorf("%s: %v", path, err)
			}
		}
		if err := os.Chmod(path, info.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
}

// A command waits for a stopped command with the lock for a minute, and then names the file.
func TestTheWaitForTheLockEnds(t *testing.T) {
	f := file(t)
	synctest.Test(t, func(t *testing.T) {
		unlock, err := f.lock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer unlock()
		began := time.Now()
		err = f.Put(t.Context(), Login{Username: "alice", Device: "d", Refresh: "r"})
		if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), f.path) || took > 2*longestWait {
			t.Errorf("after %v: %v", took, err)
		}
	})
}
