package cli

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/durable"
	"github.com/watchword-auth/watchword/internal/refusal"
)

const (
	// maxKept bounds the file of one server, in bytes, and maxLogins the logins in the file.
	// A login has at most some 10 KiB.
	maxKept   = 1 << 20
	maxLogins = 32
	// latestSend is the last part of an access token's life, in which the token is renewed:
	// the token could expire on the way to the server.
	latestSend = 5 * time.Second
)

// login is what `watchword login` keeps of one user at one server, once for the audience
// watchword and once for all other audiences.
type login struct {
	Username string `json:"username"`
	Admin    bool   `json:"admin,omitempty"` // for the audience watchword
	// Device is the newest refresh token of the last login, live or not. With an earlier
	// refresh token the server knows the device: guesses of clients without a token of the
	// same session then do not delay a login.
	Device  string    `json:"device"`
	Refresh string    `json:"refresh_token,omitempty"` // empty after a logout, and after login --print
	Access  string    `json:"access_token,omitempty"`
	Until   time.Time `json:"until,omitzero"` // Access may be sent until then
}

// replaces reports whether g takes the place of old in the file.
func (g login) replaces(old login) bool { return g.Username == old.Username && g.Admin == old.Admin }

// logins is the file with the logins at one server, the oldest first.
type logins struct {
	path string
	err  error // why there is no such file
}

// loginsAt returns the file for a server. The name of the file is a hash, since an address
// may hold the signs of a path.
func loginsAt(addr string) logins {
	folder, err := os.UserConfigDir()
	if err != nil {
		return logins{err: err}
	}
	name := sha256.Sum256([]byte(addr))
	return logins{path: filepath.Join(folder, "watchword", "logins", hex.EncodeToString(name[:16])+".json")}
}

// read returns the logins in the file. A file with anything else counts as empty: a login
// then writes the file anew.
func (l logins) read() (all []login) {
	info, err := os.Lstat(l.path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxKept {
		return nil
	}
	text, err := os.ReadFile(l.path)
	if err != nil || json.Unmarshal(text, &all) != nil {
		return nil
	}
	return slices.DeleteFunc(all, func(g login) bool { return !keepable(g.Device) })
}

// find returns the newest login that wanted accepts.
func (l logins) find(wanted func(login) bool) (found login, ok bool) {
	for _, g := range slices.Backward(l.read()) {
		if wanted(g) {
			return g, true
		}
	}
	return login{}, false
}

// lock waits for the lock of the file, and returns the function that unlocks. Commands that
// run at the same time change the file one after the other. So no two commands send the
// same refresh token, which would end the session.
func (l logins) lock(ctx context.Context) (unlock func(), err error) {
	if l.err != nil {
		return nil, l.err
	}
	if err := os.MkdirAll(filepath.Dir(l.path), 0o700); err != nil {
		return nil, err
	}
	f := flock.New(l.path+".lock", flock.SetPermissions(0o600))
	if _, err := f.TryLockContext(ctx, 10*time.Millisecond); err != nil {
		return nil, fmt.Errorf("waiting for another watchword command that uses %s: %w", f.Path(), err)
	}
	return func() { _ = f.Unlock() }, nil
}

// putLocked replaces the login of the same user and kind, and keeps the order. The caller holds
// the lock.
func (l logins) putLocked(g login) error {
	all := l.read()
	if i := slices.IndexFunc(all, g.replaces); i >= 0 {
		all[i] = g
		return l.writeLocked(all)
	}
	return l.writeLocked(append(all, g))
}

// writeLocked writes the file. Of more than maxLogins logins the oldest are left out. The
// caller holds the lock.
func (l logins) writeLocked(all []login) error {
	text, err := json.Marshal(all[max(0, len(all)-maxLogins):])
	if err != nil {
		return err
	}
	durable.RemoveDrafts(l.path, time.Hour) // of a command that was killed
	return durable.Replace(l.path, func(file *os.File) error {
		_, err := file.Write(text)
		return err
	})
}

// put keeps a new login. With Refresh empty, the tokens are for another program (login
// --print): put keeps the sign of a known device alone, and the tokens of an earlier login
// stay in use.
func (l logins) put(ctx context.Context, g login) error {
	if !keepable(g.Device) {
		return errors.New("the server's answer holds no refresh token")
	}
	unlock, err := l.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if g.Refresh == "" {
		old, _ := l.find(g.replaces)
		g.Refresh, g.Access, g.Until = old.Refresh, old.Access, old.Until
		return l.putLocked(g)
	}
	return l.writeLocked(append(slices.DeleteFunc(l.read(), g.replaces), g)) // the newest
}

// device returns the sign of a known device for a user; empty without one.
func (l logins) device(username string) string {
	g, _ := l.find(func(g login) bool { return g.Username == username })
	return g.Device
}

// keepable reports whether a text may be a refresh token. gRPC refuses a request with a
// text that is not UTF-8, so a damaged file would stop every login.
func keepable(token string) bool {
	return token != "" && len(token) <= 1024 && !strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' })
}

// kept is a login that a command uses. It keeps the access token fresh, and the file up to
// date.
type kept struct {
	remote
	logins
	now login
}

// kept returns the newest login at the server, for the audience watchword if admin is true.
//
// Errors: one that names the command to run, if there is none.
func (r remote) kept(admin bool) (*kept, error) {
	l := loginsAt(r.Addr)
	g, ok := l.find(func(g login) bool { return g.Refresh != "" && (g.Admin || !admin) })
	if !ok {
		return nil, fmt.Errorf("no login at %s is kept; log in: %s", r.Addr, r.loginCommand(login{Username: "NAME", Admin: admin}))
	}
	return &kept{r, l, g}, nil
}

// loginCommand returns the command that logs in as g.
func (r remote) loginCommand(g login) string {
	command := "watchword login " + g.Username
	if g.Admin {
		command += " --audience " + caller.AdminAudience
	}
	command += " --addr " + r.Addr
	if r.Plaintext {
		command += " --plaintext"
	}
	return command
}

// reread reads the login from the file: another command may have renewed the tokens.
func (k *kept) reread() {
	if g, ok := k.find(k.now.replaces); ok {
		k.now = g
	}
}

func (k *kept) good(refused string) bool {
	return k.now.Access != "" && k.now.Access != refused && time.Now().Before(k.now.Until)
}

// token returns an access token, and renews the token if needed: the kept one has expired, or
// is the one that the server has refused.
//
// Errors: those of the server, with the command that begins a new session if the session is
// over; errors of the file.
func (k *kept) token(ctx context.Context, refused string) (string, error) {
	if k.good(refused) {
		return k.now.Access, nil
	}
	unlock, err := k.lock(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	if k.reread(); k.good(refused) {
		return k.now.Access, nil
	}
	if k.now.Refresh == "" {
		return "", fmt.Errorf("another command has logged out; log in again: %s", k.loginCommand(k.now))
	}
	err = k.remote.with(ctx, func(ctx context.Context, conn grpc.ClientConnInterface) error { return k.renewLocked(ctx, conn) })
	if sessionOver(err) {
		err = over{err, k.loginCommand(k.now)}
	}
	return k.now.Access, err
}

// renewLocked gets new tokens from the server, and keeps them. The caller holds the lock of
// the file.
func (k *kept) renewLocked(ctx context.Context, conn grpc.ClientConnInterface) error {
	opts := []tokensource.Option{
		tokensource.WithLogger(slog.New(slog.DiscardHandler)),
		tokensource.WithStore(func(_ context.Context, refresh string) error {
			k.now.Refresh, k.now.Device, k.now.Access = refresh, refresh, ""
			return k.putLocked(k.now)
		}),
	}
	if k.PlaintextToOtherHosts {
		opts = append(opts, tokensource.WithPlaintextToOtherHosts())
	}
	asked := time.Now()
	source, err := tokensource.Refresh(conn, k.now.Refresh, opts...)
	if err != nil {
		return err
	}
	defer source.Close()
	token, err := source.Token(ctx)
	if err != nil {
		return err
	}
	k.now.Access, k.now.Until = token, asked.Add(lifeOf(token)-latestSend)
	return k.putLocked(k.now)
}

// lifeOf returns the lifetime of an access token that the server has just made, and 0 for
// a token of another form. The server checks the token; lifeOf only tells when to renew it.
func lifeOf(token string) time.Duration {
	parts := strings.Split(token, ".")
	var claims struct{ Iat, Exp int64 }
	if len(parts) != 3 {
		return 0
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(payload, &claims) != nil {
		return 0
	}
	return time.Duration(claims.Exp-claims.Iat) * time.Second
}

// forget ends the kept sessions at the server, and removes their tokens from the file. The
// sign of a known device stays.
func (r remote) forget(ctx context.Context, conn grpc.ClientConnInterface) error {
	l := loginsAt(r.Addr)
	unlock, err := l.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	for _, g := range l.read() {
		if g.Refresh == "" {
			continue
		}
		_, err := watchwordv1.NewAuthServiceClient(conn).Logout(ctx, &watchwordv1.LogoutRequest{RefreshToken: g.Refresh})
		if err != nil && !sessionOver(err) {
			return err
		}
		g.Refresh, g.Access, g.Until = "", "", time.Time{}
		if err := l.putLocked(g); err != nil {
			return err
		}
	}
	return nil
}

// sessionOver reports whether the server accepts no refresh token of a session any more.
func sessionOver(err error) bool {
	switch refusal.Reason(err) {
	case watchwordv1.ErrorReason_ERROR_REASON_REFRESH_TOKEN_INVALID, watchwordv1.ErrorReason_ERROR_REASON_REFRESH_TOKEN_EXPIRED,
		watchwordv1.ErrorReason_ERROR_REASON_REFRESH_TOKEN_REUSED, watchwordv1.ErrorReason_ERROR_REASON_SESSION_REVOKED:
		return true
	}
	return false
}

// over is the error of a session that is over.
type over struct {
	error
	command string // begins a new session
}

func (o over) Unwrap() error { return o.error }

// tokens gives access tokens to calls.
type tokens interface {
	// token returns an access token other than refused.
	token(ctx context.Context, refused string) (string, error)
}

// fixedToken is an access token that no command can renew.
type fixedToken string

func (f fixedToken) token(context.Context, string) (string, error) { return string(f), nil }

// bearing returns the options of a connection that puts access tokens on its calls. A
// unary call that the server refuses because of the token is sent once more with a new one.
func bearing(from tokens) []grpc.DialOption {
	bear := func(ctx context.Context, refused string) (context.Context, string, error) {
		token, err := from.token(ctx, refused)
		return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token), token, err
	}
	unary := func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		with, token, err := bear(ctx, "")
		if err != nil {
			return err
		}
		if err = invoke(with, method, req, reply, conn, opts...); !tokenUseless(err) {
			return err
		}
		if with, renewed, renewErr := bear(ctx, token); renewErr != nil {
			return renewErr
		} else if renewed != token {
			return invoke(with, method, req, reply, conn, opts...)
		}
		return err
	}
	stream := func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		with, _, err := bear(ctx, "")
		if err != nil {
			return nil, err
		}
		return open(with, desc, conn, method, opts...)
	}
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(unary), grpc.WithChainStreamInterceptor(stream)}
}

// tokenUseless reports whether a call was refused because of its access token, and another
// one may be accepted.
func tokenUseless(err error) bool {
	switch refusal.Reason(err) {
	case watchwordv1.ErrorReason_ERROR_REASON_TOKEN_INVALID, watchwordv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED,
		watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED, watchwordv1.ErrorReason_ERROR_REASON_TOKEN_STALE:
		return true
	}
	return false
}
