package cli_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/server"
)

// serve runs a server in this process, and returns the flags for calling the server, the
// password of its first user, and a function that stops the server.
func serve(t *testing.T) (flags []string, password string, stop func()) {
	t.Helper()
	flags, password, _, stop = serveWith(t, func(*server.Config) {})
	return flags, password, stop
}

// serveWith is serve with settings, and returns the flag for the server's database too.
func serveWith(t *testing.T, set func(*server.Config)) (flags []string, password, db string, stop func()) {
	t.Helper()
	cfg := server.DefaultConfig()
	cfg.GRPCAddr, cfg.HTTPAddr, cfg.DatastoreURI = "127.0.0.1:0", "127.0.0.1:0", "sqlite:"+filepath.Join(t.TempDir(), "watchword.db")
	set(&cfg)
	s, err := server.New(t.Context(), cfg, slog.New(slog.DiscardHandler), func(p string) error { password = p; return nil })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-ran, s.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return []string{"--plaintext", "--addr=" + s.GRPCAddr()}, password, "--datastore-uri=" + cfg.DatastoreURI, stop
}

// The commands verify and logout read the output of login --print, and also a bare token.
func TestClientCommands(t *testing.T) {
	t.Parallel()
	flags, password, stop := serve(t)
	command := func(words ...string) []string { return append(words, flags...) }
	login := func(more ...string) (text string, pair *watchwordv1.TokenPair) {
		t.Helper()
		pair = &watchwordv1.TokenPair{}
		text = done(t, password+"\n", command(append([]string{"login", "admin", "--print", "--password-stdin"}, more...)...)...)
		if err := protojson.Unmarshal([]byte(text), pair); err != nil || pair.GetAccessToken() == "" || pair.GetRefreshToken() == "" {
			t.Fatalf("login printed %q, %v", text, err)
		}
		return text, pair
	}
	done(t, "", command("healthcheck")...)
	text, pair := login()
	for form, stdin := range map[string]string{
		"JSON": text, "JSON between blanks": "\n " + text + "\r\n", "bare": pair.GetAccessToken(), "bare, in a line": "  " + pair.GetAccessToken() + "\r\n",
	} {
		var p watchwordv1.Principal
		out := done(t, stdin, command("verify", "--audience=internal")...)
		if err := protojson.Unmarshal([]byte(out), &p); err != nil || p.GetUsername() != "admin" || p.GetSessionId() != pair.GetSessionId() {
			t.Errorf("verify of a token as %s printed %q, %v", form, out, err)
		}
	}
	if out := done(t, text, command("logout")...); out != "" {
		t.Errorf("logout printed %q", out)
	}
	_, second := login("--audience=internal")
	done(t, second.GetRefreshToken(), command("logout")...)

	// A refusal by the server begins with its reason.
	fails(t, 1, "watchword: TOKEN_REVOKED: ", text, command("verify")...)
	fails(t, 1, "watchword: TOKEN_INVALID: ", "rubbish", command("verify")...)
	fails(t, 1, "watchword: AUDIENCE_MISMATCH: ", text, command("verify", "--audience=elsewhere")...)
	fails(t, 1, "watchword: REFRESH_TOKEN_INVALID: ", "rubbish", command("logout")...)
	fails(t, 1, "watchword: INVALID_CREDENTIALS: ", "another password", command("login", "admin")...)
	stop()
	fails(t, 1, "watchword: Unavailable: ", text, command("verify")...)
	fails(t, 1, "watchword: Unavailable: ", "", command("healthcheck")...)
}
