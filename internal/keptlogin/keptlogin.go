// Package keptlogin keeps the tokens of `watchword login` in a file for each server, in the
// folder of the user's settings, so that later commands use the tokens. The file has mode 0600.
//
// Commands that run at the same time use the file of a server under a lock. The lock makes sure
// that each refresh token is sent once, since a second use would end the session.
package keptlogin

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"github.com/watchword-auth/watchword/internal/durable"
)

const (
	// maxKept bounds the file of one server, in bytes, and maxLogins the logins in the file.
	// A login has at most some 10 KiB.
	maxKept   = 1 << 20
	maxLogins = 32
	// latestSend is the time before the expiry of an access token from which a command renews
	// the token: the token could expire on the way to the server.
	latestSend = 5 * time.Second
	// longestWait bounds the wait for the lock of the file: the command that holds the lock is
	// perhaps stopped. A renewal of tokens takes some 20 seconds at most.
	longestWait = time.Minute
)

// ErrNone means that the file keeps no login of the wanted kind.
var ErrNone = errors.New("no login is kept")

// ErrLoggedOut means that another command has ended the session of the login since [File.Use].
var ErrLoggedOut = errors.New("another command has logged out")

// Login holds what the file keeps of one user at one server: one Login for administration, and
// one for all other audiences.
type Login struct {
	Username string `json:"username"`
	Admin    bool   `json:"admin,omitempty"` // true for a login with the audience of administration alone
	// Device holds the newest refresh token of the last login, also if the session has ended.
	// The server knows the device by this refresh token, so that wrong passwords of clients
	// without a token of the same session do not delay a login.
	Device  string    `json:"device"`
	Refresh string    `json:"refresh_token,omitempty"` // empty after a logout, and if another program has the tokens
	Access  string    `json:"access_token,omitempty"`
	Until   time.Time `json:"until,omitzero"` // when Access expires
}

// replaces reports whether the file keeps g instead of old: the two logins are of the same user
// and for the same purpose (administration or all other audiences).
func (g Login) replaces(old Login) bool { return g.Username == old.Username && g.Admin == old.Admin }

// File is the file with the logins at one server, the oldest first. A File has no state besides
// the file, and is safe for concurrent use.
type File struct {
	path string
	err  error // why no path of the file is known; nil with a path
}

// At returns the file for a server. The name of the file is a hash of the address, since an
// address can hold characters such as "/". If the user has no folder for settings, the methods
// that change the file return an error.
func At(addr string) File {
	folder, err := os.UserConfigDir()
	if err != nil {
		return File{err: err}
	}
	name := sha256.Sum256([]byte(addr))
	return File{path: filepath.Join(folder, "watchword", "logins", hex.EncodeToString(name[:16])+".json")}
}

// read returns the logins in the file. read treats a file with other content as empty: the next
// login writes the file anew.
//
// Errors: an error if every user can write to the file, since any user could have put a login
// into the file; an error if this process is not allowed to read the file.
func (f File) read() (all []Login, err error) {
	if f.err != nil {
		return nil, f.err
	}
	if err := durable.CheckWriters(f.path); err != nil {
		return nil, err
	}
	info, err := os.Lstat(f.path)
	if err == nil && (!info.Mode().IsRegular() || info.Size() > maxKept) {
		return nil, nil
	}
	text, err := os.ReadFile(f.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, durable.Denied(f.path, err)
	case json.Unmarshal(text, &all) != nil:
		return nil, nil
	}
	return slices.DeleteFunc(all, func(g Login) bool { return !keepable(g.Device) }), nil
}

// find returns the newest login that wanted accepts. Errors: ErrNone; errors of read.
func (f File) find(wanted func(Login) bool) (Login, error) {
	all, err := f.read()
	if err != nil {
		return Login{}, err
	}
	for _, g := range slices.Backward(all) {
		if wanted(g) {
			return g, nil
		}
	}
	return Login{}, ErrNone
}

// lock waits for the lock of the file, and returns the function that unlocks.
func (f File) lock(ctx context.Context) (unlock func(), err error) {
	if f.err != nil {
		return nil, f.err
	}
	folder := filepath.Dir(f.path)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, durable.Denied(folder, err)
	}
	ctx, cancel := context.WithTimeout(ctx, longestWait)
	defer cancel()
	lock := flock.New(f.path+".lock", flock.SetPermissions(0o600))
	switch _, err := lock.TryLockContext(ctx, 10*time.Millisecond); {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("waiting for another watchword command that uses %s: %w", lock.Path(), err)
	case err != nil:
		return nil, durable.Denied(lock.Path(), err)
	}
	return func() { _ = lock.Unlock() }, nil
}

// putLocked writes a login into the file in place of the login of the same user and purpose.
// The caller holds the lock.
func (f File) putLocked(g Login) error {
	all, err := f.read()
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(all, g.replaces); i >= 0 {
		all[i] = g
		return f.writeLocked(all)
	}
	return f.writeLocked(append(all, g))
}

// writeLocked writes the file. If there are more than maxLogins logins, writeLocked leaves out
// the oldest. The caller holds the lock.
func (f File) writeLocked(all []Login) error {
	text, err := json.Marshal(all[max(0, len(all)-maxLogins):])
	if err != nil {
		return err
	}
	durable.RemoveDrafts(f.path, time.Hour) // removes the draft of a command that was killed
	return durable.Replace(f.path, func(file *os.File) error {
		_, err := file.Write(text)
		return err
	})
}

// Put writes a new login into the file. If g.Refresh is empty, another program has the tokens
// of the login: Put then keeps only the sign of a known device (Login.Device), and the tokens
// of an earlier login stay in use.
func (f File) Put(ctx context.Context, g Login) error {
	if !keepable(g.Device) {
		return errors.New("the server's answer holds no refresh token")
	}
	unlock, err := f.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if g.Refresh == "" {
		old, _ := f.find(g.replaces) // the error is ignored: putLocked returns the errors of read
		g.Refresh, g.Access, g.Until = old.Refresh, old.Access, old.Until
		return f.putLocked(g)
	}
	all, err := f.read()
	if err != nil {
		return err
	}
	return f.writeLocked(append(slices.DeleteFunc(all, g.replaces), g)) // the newest login is the last in the file
}

// Device returns the earlier refresh token by which the server knows this device for a user;
// empty if the file keeps no login of the user.
func (f File) Device(username string) string {
	g, _ := f.find(func(g Login) bool { return g.Username == username })
	return g.Device
}

// End calls logout for each kept session, and removes the tokens of the session from the file.
// Login.Device, by which the server knows the device, stays in the file. Errors: the error of
// logout, after which the tokens of the session stay in the file; errors of the file.
func (f File) End(ctx context.Context, logout func(refresh string) error) error {
	unlock, err := f.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	all, err := f.read()
	if err != nil {
		return err
	}
	for _, g := range all {
		if g.Refresh == "" {
			continue
		}
		if err := logout(g.Refresh); err != nil {
			return err
		}
		g.Refresh, g.Access, g.Until = "", "", time.Time{}
		if err := f.putLocked(g); err != nil {
			return err
		}
	}
	return nil
}

// keepable reports whether a text has the form of a refresh token. gRPC refuses a request with
// a text that is not UTF-8, so a damaged file would stop every login.
func keepable(token string) bool {
	return token != "" && len(token) <= 1024 && !strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' })
}

// InUse stands for a kept login with the tokens that a command uses now. InUse is not safe for
// concurrent use.
type InUse struct {
	Login
	file File
}

// Use returns the newest kept login with tokens; if admin is true, the newest kept login for
// administration.
//
// Errors: ErrNone; an error if this process is not allowed to read the file, or if every user
// can write to the file.
func (f File) Use(admin bool) (*InUse, error) {
	g, err := f.find(func(g Login) bool { return g.Refresh != "" && (g.Admin || !admin) })
	return &InUse{g, f}, err
}

// Renew gets new tokens from the server for a refresh token. Renew calls keep with the new
// refresh token as soon as the server has answered: the old refresh token is used up.
type Renew func(ctx context.Context, refresh string, keep func(refresh string) error) (access string, err error)

// Token returns an access token of the login. If the kept access token has expired, or equals
// refused, the token that the server has refused, Token renews the tokens and writes the new
// tokens into the file.
//
// Errors: ErrLoggedOut; errors of renew; errors of the file.
func (u *InUse) Token(ctx context.Context, refused string, renew Renew) (string, error) {
	if u.good(refused) {
		return u.Access, nil
	}
	unlock, err := u.file.lock(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	switch g, err := u.file.find(u.replaces); {
	case err == nil:
		u.Login = g // another command can have renewed the tokens
	case !errors.Is(err, ErrNone):
		return "", err
	}
	if u.good(refused) {
		return u.Access, nil
	}
	if u.Refresh == "" {
		return "", ErrLoggedOut
	}
	asked := time.Now()
	access, err := renew(ctx, u.Refresh, func(refresh string) error {
		u.Refresh, u.Device, u.Access = refresh, refresh, ""
		return u.file.putLocked(u.Login)
	})
	if err != nil {
		return "", err
	}
	u.Access, u.Until = access, asked.Add(lifeOf(access))
	return u.Access, u.file.putLocked(u.Login)
}

func (u *InUse) good(refused string) bool {
	return u.Access != "" && u.Access != refused && time.Now().Before(u.Until.Add(-latestSend))
}

// lifeOf returns the lifetime of an access token that the server has just made, and 0 for
// a token of another form. The server checks the token; lifeOf only tells when to renew the
// token.
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
