package cli_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// guessesAt makes wrong guesses at a user until the server delays the username.
func guessesAt(t *testing.T, addr, username string) {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 100 {
		_, err := watchwordv1.NewAuthServiceClient(conn).Login(t.Context(), &watchwordv1.LoginRequest{Username: username, Password: "a wrong password"})
		if authn.Reason(err) == watchwordv1.ErrorReason_ERROR_REASON_TOO_MANY_ATTEMPTS {
			return
		}
	}
	t.Fatal("a hundred wrong passwords cause no delay")
}

// settings points the folder of the user's settings to a new one, and returns a function
// that lists the files there.
func settings(t *testing.T, folder string) (files func() []string) {
	t.Helper()
	t.Setenv("XDG_CONFIG_HOME", folder)
	t.Setenv("HOME", folder)
	return func() (found []string) {
		err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && !entry.IsDir() && filepath.Ext(path) != ".lock" {
				found = append(found, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
}

// A login shows the server a known device by the refresh token of the last login, so the
// guesses of others do not delay the user. The token stays private, and is for one user at
// one server.
func TestLoginFromAKnownDevice(t *testing.T) {
	flags, password, _ := serve(t)
	other, otherPassword, _ := serve(t)
	login := func(flags []string, password string) result {
		return run(t, password+"\n", append([]string{"login", "admin", "--password-stdin"}, flags...)...)
	}
	_, addr, _ := strings.Cut(flags[1], "=")
	// The first delay is a second, so on a busy machine a login may come when the delay has
	// ended. Further guesses then double the delay. A known device never waits.
	wantDelay := func(why string, damage func()) {
		t.Helper()
		var r result
		for range 4 {
			damage() // the login before has repaired the file
			guessesAt(t, addr, "admin")
			if r = login(flags, password); r.status == 1 && strings.HasPrefix(r.err, "watchword: TOO_MANY_ATTEMPTS: ") {
				return
			}
		}
		t.Errorf("%s: status %d, %s", why, r.status, r.err)
	}
	folder := t.TempDir()
	files := settings(t, folder)
	if r := login(flags, password); r.status != 0 || r.err != "" {
		t.Fatalf("status %d: %s", r.status, r.err)
	}
	guessesAt(t, addr, "admin")
	for range 3 { // each login replaces the token
		if r := login(flags, password); r.status != 0 {
			t.Fatalf("the known device: %s", r.err)
		}
	}
	kept := files()
	if len(kept) != 1 {
		t.Fatalf("the logins left %q, want one file", kept)
	}
	for path, want := range map[string]fs.FileMode{kept[0]: 0o600, filepath.Dir(kept[0]): 0o700} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want mode %v", path, info.Mode(), err, want)
		}
	}
	if r := login(other, otherPassword); r.status != 0 || len(files()) != 2 {
		t.Errorf("a login at another server: status %d, %q", r.status, files())
	}
	if r := login(flags, password); r.status != 0 {
		t.Errorf("after a login at another server: %s", r.err)
	}

	// A file with anything else counts as none.
	token, err := os.ReadFile(kept[0])
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{"empty": "", "not UTF-8": "\xff\xfe", "long": strings.Repeat("x", 1<<20), "another form": `{"a": 1}`, "no text": `[{"username": "admin", "device": "\u0000"}]`} {
		wantDelay(what, func() {
			if err := os.WriteFile(kept[0], []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		})
	}
	if err := os.WriteFile(kept[0], token, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := login(flags, password); r.status != 0 {
		t.Errorf("with the token again: %s", r.err)
	}
	wantDelay("another user's folder", func() { settings(t, t.TempDir()) })
}

// If the tokens cannot be kept, login --print still prints the tokens and says what is lost.
// A login without --print leaves no session behind, and says what to do.
func TestLoginWithoutAFolder(t *testing.T) {
	flags, password, _ := serve(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, folder := range map[string]string{"a file in its place": file, "none": ""} {
		t.Setenv("XDG_CONFIG_HOME", folder)
		t.Setenv("HOME", folder)
		r := run(t, password+"\n", append([]string{"login", "admin", "--print", "--audience=watchword"}, flags...)...)
		if r.status != 0 || !strings.Contains(r.err, "the next login counts as one from a new device") {
			t.Errorf("%s: status %d, %q", what, r.status, r.err)
		}
		var pair watchwordv1.TokenPair
		if err := protojson.Unmarshal([]byte(r.out), &pair); err != nil || strings.Contains(r.err, pair.GetRefreshToken()) {
			t.Errorf("%s: standard error is %q; %v", what, r.err, err)
		}
		fails(t, 1, "login --print prints the tokens instead", password+"\n", append([]string{"login", "admin"}, flags...)...)
		if out := done(t, r.out, append([]string{"session", "list", "admin", "--token-stdin"}, flags...)...); strings.Count(out, "\n") != 2 {
			t.Errorf("%s: the sessions are\n%swant the printed one alone", what, out)
		}
		done(t, r.out, append([]string{"logout"}, flags...)...)
	}
}
