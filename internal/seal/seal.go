// Package seal encrypts the secrets in the database (signing keys and MAC keys) under a master
// key outside the database. A thief that has the database without the master key can make no
// token.
//
// A master key encrypts only signing keys and MAC keys, so replacing a master key changes no
// token. The master key file holds one or more keys, one in each line. The first key encrypts
// new secrets (seals); every key decrypts (opens). To replace a key, add the new key as second
// on every server, and then make the new key the first.
//
// [Keys.Seal] reads the master key file at each call, and [Keys.Open] reads the file again if a
// secret names an unknown master key. A server therefore uses a new master key without a
// restart.
//
// [Keys.MAC] makes a message authentication code, under the master key, for data that is no
// secret.
//
// Each purpose, such as signing keys, has a key derived from the master key by HKDF-SHA256 (RFC
// 5869). A secret is sealed by AES-256-GCM with a random nonce, and bound to its row in the
// database. A master key seals a handful of rows of the database, far below the bound of 2^32
// messages for random nonces (NIST SP 800-38D, section 8.3).
package seal

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/watchword-auth/watchword/internal/durable"
)

// ErrWrongKey means that a secret is sealed under a master key that is not in the file:
// the file belongs to another installation, or a key was removed before every secret
// was sealed under another master key.
var ErrWrongKey = errors.New("sealed under a master key that is not in this file")

const (
	linePrefix = "wwmk1_" // lets secret scanners find a leaked master key
	keySize    = 32       // bytes: AES-256
	idSize     = 8        // bytes: enough to tell a handful of master keys apart
	version    = 1        // the first byte of a sealed secret: version ‖ key id ‖ nonce ‖ ciphertext and GCM tag
)

// Keys holds the master keys of an installation. Keys is safe for concurrent use, and
// its printed form hides the keys.
type Keys struct {
	path string

	mu   sync.Mutex
	keys []masterKey // in the order of the file: the first key encrypts, every key decrypts
}

// masterKey is a master key, and an id derived from the key. A sealed secret names the
// id of its master key, so [Keys.Open] needs no trial of every key.
type masterKey struct {
	id     [idSize]byte
	secret []byte
}

// String returns a text without the keys.
func (k *Keys) String() string { return "[master keys]" }

// GoString returns a text without the keys, for the verb %#v of package fmt.
func (k *Keys) GoString() string { return k.String() }

// Load reads the master keys from a file.
//
// Errors: fs.ErrNotExist if the file is missing; an error with the number of the line, and
// without the text of the line, if a line is malformed.
func Load(path string) (*Keys, error) {
	keys, err := read(path)
	if err != nil {
		return nil, err
	}
	return &Keys{path: path, keys: keys}, nil
}

// read reads and parses the file of the master keys. Empty lines and lines that begin
// with # are comments. read returns at least one key.
func read(path string) ([]masterKey, error) {
	if err := durable.CheckWriters(path); err != nil {
		return nil, fmt.Errorf("master key file: %w", err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading master key: %w", durable.Denied(path, err))
	}
	var keys []masterKey
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, err := parseLine(line)
		if err != nil {
			return nil, fmt.Errorf("master key file %s, line %d: %w", path, n, err)
		}
		keys = append(keys, key)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("master key file %s: %w", path, err)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("master key file %s holds no key", path)
	}
	return keys, nil
}

const header = "# Watchword master keys. This file and the database together can sign tokens: keep the two apart.\n"

// Create makes a master key file of mode 0600 with one new master key. The file is on disk when
// Create returns: if the key were lost, every secret sealed under the key would be lost.
//
// Errors: fs.ErrExist if the file exists.
func Create(path string) (*Keys, error) {
	return create(path, func(*os.File) error { return nil })
}

// CreateBeside makes a file as [Create] does, and gives the file the owner and the mode of the
// database file, so that a service can read a master key file that root has made.
func CreateBeside(path, database string) (*Keys, error) {
	return create(path, func(file *os.File) error { return durable.Adopt(file, database) })
}

func create(path string, prepare func(*os.File) error) (*Keys, error) {
	durable.RemoveDrafts(path, time.Hour)
	err := durable.Create(path, func(file *os.File) error {
		if err := prepare(file); err != nil {
			return err
		}
		_, err := file.WriteString(header + newLine())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("making master key: %w", err)
	}
	return Load(path)
}

// Add puts a new master key before the other keys in a master key file. The new key encrypts
// new secrets from then on; the other keys still decrypt. A process that reads the file at the
// same time gets the old content or the new content, and never a part.
func Add(path string) (*Keys, error) {
	path, err := filepath.EvalSymlinks(path) // a rename would replace the link and not the file
	if err != nil {
		return nil, fmt.Errorf("reading master key: %w", err)
	}
	// If two processes call Add at once, the second call fails. Add reads the old keys after
	// the lock file is made, so that no key of an earlier call of Add gets lost.
	lock, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil, fmt.Errorf("adding master key: %w; unless another command is adding a key now, a crash has left this file: remove it", err)
	case err != nil:
		return nil, fmt.Errorf("adding master key: %w", err)
	}
	defer os.Remove(lock.Name())
	defer lock.Close()
	durable.RemoveDrafts(path, time.Hour)
	if _, err := read(path); err != nil {
		return nil, err
	}
	old, err := os.ReadFile(path)
	if err == nil {
		err = durable.Rewrite(path, func(file *os.File) error {
			_, err := file.WriteString(header + newLine() + strings.TrimPrefix(string(old), header))
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("adding master key: %w", err)
	}
	return Load(path)
}

// newLine returns a line of the master key file, with a new random master key.
func newLine() string {
	secret := make([]byte, keySize)
	rand.Read(secret)
	return linePrefix + base64.RawURLEncoding.EncodeToString(secret) + "\n"
}

// reload reads the master key file again. If reload returns an error, the keys in memory stay.
func (k *Keys) reload() error {
	keys, err := read(k.path)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = keys
	return nil
}

// Seal encrypts a secret for one purpose and one row of the database, under the first key in
// the master key file. The row's id is authenticated with the secret: a sealed secret that is
// copied to another row does not open.
func (k *Keys) Seal(purpose, row string, secret []byte) ([]byte, error) {
	first, err := k.reloadFirst()
	if err != nil {
		return nil, err
	}
	aead, err := first.aead(purpose)
	if err != nil {
		return nil, err
	}
	sealed := append([]byte{version}, first.id[:]...)
	return aead.Seal(sealed, nil, secret, []byte(row)), nil
}

// reloadFirst reads the master key file again, and returns the first master key.
func (k *Keys) reloadFirst() (masterKey, error) {
	if err := k.reload(); err != nil {
		return masterKey{}, err
	}
	return k.first(), nil
}

func (k *Keys) first() masterKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys[0]
}

// MAC returns the message authentication code of a message for one purpose, under the
// first key in the file: version ‖ key id ‖ HMAC-SHA256.
func (k *Keys) MAC(purpose string, message []byte) ([]byte, error) {
	first, err := k.reloadFirst()
	if err != nil {
		return nil, err
	}
	sum, err := first.mac(purpose, message)
	return append(append([]byte{version}, first.id[:]...), sum...), err
}

// CheckMAC returns nil if a message authentication code belongs to a message and a purpose.
//
// Errors: ErrWrongKey if the master key is not in the file; another error if the code is
// malformed or of another message.
func (k *Keys) CheckMAC(purpose string, message, mac []byte) error {
	key, rest, err := k.keyOf(mac)
	if err != nil {
		return fmt.Errorf("checking %s: %w", purpose, err)
	}
	sum, err := key.mac(purpose, message)
	if err == nil && !hmac.Equal(sum, rest) {
		err = errors.New("changed by somebody without the master key")
	}
	if err != nil {
		return fmt.Errorf("checking %s: %w", purpose, err)
	}
	return nil
}

// SealedFirst reports whether a sealed secret, or a message authentication code, was made under
// the first master key that this process has read.
func (k *Keys) SealedFirst(sealed []byte) bool {
	first := k.first()
	return len(sealed) >= 1+idSize && [idSize]byte(sealed[1:]) == first.id
}

// keyOf returns the master key with the id in a sealed secret or in a message authentication
// code, and the bytes after the id. If no master key has the id, keyOf first reads the master key
// file again. Errors: ErrWrongKey if the file lacks the master key; an error without a sentinel if
// sealed has another form.
func (k *Keys) keyOf(sealed []byte) (key masterKey, rest []byte, err error) {
	if len(sealed) < 1+idSize || sealed[0] != version {
		return key, nil, errors.New("malformed")
	}
	id := [idSize]byte(sealed[1:])
	key, ok := k.find(id)
	if !ok && k.reload() == nil {
		key, ok = k.find(id)
	}
	if !ok {
		return key, nil, fmt.Errorf("%w: %s", ErrWrongKey, k.path)
	}
	return key, sealed[1+idSize:], nil
}

// Open decrypts a secret that [Keys.Seal] has sealed for the same purpose and row.
//
// Errors: ErrWrongKey if the master key is not in the file.
func (k *Keys) Open(purpose, row string, sealed []byte) ([]byte, error) {
	key, rest, err := k.keyOf(sealed)
	if err != nil {
		return nil, fmt.Errorf("opening sealed %s: %w", purpose, err)
	}
	aead, err := key.aead(purpose)
	if err != nil {
		return nil, err
	}
	secret, err := aead.Open(nil, nil, rest, []byte(row))
	if err != nil {
		return nil, fmt.Errorf("opening sealed %s: damaged, or moved from another row", purpose)
	}
	return secret, nil
}

// Reseal seals a sealed secret again, under the first key in the master key file, and calls
// write with the result. If the secret is sealed under the first key already, Reseal does
// nothing. Reseal returns the number of calls of write: 0 or 1.
func (k *Keys) Reseal(purpose, row string, sealed []byte, write func(sealed []byte) error) (int, error) {
	secret, err := k.Open(purpose, row, sealed)
	if err != nil {
		return 0, err
	}
	if k.SealedFirst(sealed) {
		return 0, nil
	}
	if sealed, err = k.Seal(purpose, row, secret); err != nil {
		return 0, err
	}
	return 1, write(sealed)
}

// find returns the master key with an id; false if no key in the master key file has the id.
func (k *Keys) find(id [idSize]byte) (masterKey, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range k.keys {
		if key.id == id {
			return key, true
		}
	}
	return masterKey{}, false
}

// parseLine parses a line of the master key file. No error repeats the line, which is a secret.
func parseLine(line string) (masterKey, error) {
	encoded, ok := strings.CutPrefix(line, linePrefix)
	if !ok {
		return masterKey{}, fmt.Errorf("does not begin with %q", linePrefix)
	}
	secret, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || len(secret) != keySize {
		return masterKey{}, fmt.Errorf("is not %d bytes of base64url", keySize)
	}
	return newMasterKey(secret)
}

// newMasterKey derives the id of a master key from the key itself, so that no second
// field of the file can be wrong.
func newMasterKey(secret []byte) (masterKey, error) {
	id, err := hkdf.Key(sha256.New, secret, nil, "watchword master key id v1", idSize)
	if err != nil {
		return masterKey{}, fmt.Errorf("deriving master key id: %w", err)
	}
	return masterKey{id: [idSize]byte(id), secret: secret}, nil
}

// aead returns the cipher for one purpose. Each purpose has a separate derived key, so that
// a sealed signing key cannot be opened as a MAC key.
func (k masterKey) aead(purpose string) (cipher.AEAD, error) {
	derived, err := hkdf.Key(sha256.New, k.secret, nil, "watchword seal v1 "+purpose, keySize)
	if err != nil {
		return nil, fmt.Errorf("deriving key for %s: %w", purpose, err)
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, fmt.Errorf("deriving key for %s: %w", purpose, err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// mac returns the HMAC-SHA256 of a message, under a derived key for one purpose.
func (k masterKey) mac(purpose string, message []byte) ([]byte, error) {
	derived, err := hkdf.Key(sha256.New, k.secret, nil, "watchword mac v1 "+purpose, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("deriving key for %s: %w", purpose, err)
	}
	h := hmac.New(sha256.New, derived)
	h.Write(message)
	return h.Sum(nil), nil
}
