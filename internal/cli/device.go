package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/watchword-auth/watchword/internal/durable"
)

// maxKept bounds the file of a refresh token, in bytes. A refresh token has 57.
const maxKept = 1024

// device names the file with the refresh token of the last login of one user at one
// server. With an earlier refresh token the server knows the device: guesses of clients
// without a token of the same session then do not delay a login.
type device struct {
	path string
	err  error // why there is no such file
}

// deviceAt returns the device of a user at a server. The name of the file is a hash, since a
// username or an address may hold the signs of a path.
func deviceAt(addr, username string) device {
	folder, err := os.UserConfigDir()
	if err != nil {
		return device{err: err}
	}
	name := sha256.Sum256([]byte(addr + "\x00" + username))
	return device{path: filepath.Join(folder, "watchword", "logins", hex.EncodeToString(name[:16]))}
}

// token returns the refresh token in the file; empty if the file holds anything else.
func (d device) token() string {
	info, err := os.Lstat(d.path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxKept {
		return ""
	}
	text, err := os.ReadFile(d.path)
	if err != nil || !keepable(string(text)) {
		return ""
	}
	return string(text)
}

// keep replaces the refresh token in the file.
//
// Errors: [fs.ErrInvalid] if the text is not a refresh token; those of [durable.Replace].
func (d device) keep(token string) error {
	if d.err != nil {
		return d.err
	}
	if !keepable(token) {
		return fs.ErrInvalid
	}
	if err := os.MkdirAll(filepath.Dir(d.path), 0o700); err != nil {
		return err
	}
	durable.RemoveDrafts(d.path, time.Hour) // of a login that was killed
	return durable.Replace(d.path, func(file *os.File) error {
		_, err := file.WriteString(token)
		return err
	})
}

// keepable reports whether a text may be a refresh token. gRPC refuses a request with a
// text that is not UTF-8, so a damaged file would stop every login.
func keepable(token string) bool {
	return token != "" && len(token) <= maxKept && !strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' })
}
