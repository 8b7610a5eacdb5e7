// Package seal keeps secrets readable only with a master key that is not in
// the database.
//
// A master key does nothing but seal other keys: it can be replaced without
// touching a token. Its file holds one or more keys, a line each; the first
// seals, all of them open. So a new one is rolled out as second everywhere,
// and then moved up.
//
// Every purpose has a key of its own, derived by HKDF-SHA256 (RFC 5869), and a
// secret is sealed by AES-256-GCM with a random nonce, bound to the row that
// holds it. A master key seals a handful of rows in its life, far from the
// 2^32 messages that bound random nonces (NIST SP 800-38D, section 8.3).
package seal

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// ErrWrongKey says that none of the master keys sealed this secret.
var ErrWrongKey = errors.New("sealed under a master key that is not in this file")

const (
	linePrefix = "wwmk1_" // so that secret scanners can find a key that was leaked
	keySize    = 32
	idSize     = 8
	version    = 1
)

// Keys are the master keys of one installation. They are safe for concurrent
// use and print without their content.
type Keys struct {
	path string
	keys []masterKey // the first seals
}

type masterKey struct {
	id     [idSize]byte
	secret []byte
}

// String hides the keys.
func (k *Keys) String() string { return "[master keys]" }

// GoString hides the keys.
func (k *Keys) GoString() string { return k.String() }

// Load reads the master keys in a file. The error of a missing file matches
// fs.ErrNotExist.
func Load(path string) (*Keys, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading master key: %w", err)
	}
	keys := &Keys{path: path}
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
		keys.keys = append(keys.keys, key)
	}
	if len(keys.keys) == 0 {
		return nil, fmt.Errorf("master key file %s holds no key", path)
	}
	return keys, nil
}

// Create makes a file of mode 0600 with one new master key; the error of a
// file that exists matches fs.ErrExist. The file is on disk before Create
// returns, since what is sealed under a lost key is lost too.
func Create(path string) (*Keys, error) {
	secret := make([]byte, keySize)
	rand.Read(secret)
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making master key: %w", err)
	}
	defer file.Close()
	text := "# Watchword master key. Whoever has this file and the database can sign tokens: keep them apart.\n" +
		linePrefix + base64.RawURLEncoding.EncodeToString(secret) + "\n"
	if _, err := file.WriteString(text); err != nil {
		return nil, fmt.Errorf("writing master key: %w", err)
	}
	if err := file.Sync(); err != nil {
		return nil, fmt.Errorf("writing master key: %w", err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("writing master key: %w", err)
	}
	key, err := newMasterKey(secret)
	return &Keys{path: path, keys: []masterKey{key}}, err
}

// Seal encrypts a secret for one purpose and one row.
func (k *Keys) Seal(purpose, row string, secret []byte) ([]byte, error) {
	key := k.keys[0]
	aead, err := key.aead(purpose)
	if err != nil {
		return nil, err
	}
	sealed := append([]byte{version}, key.id[:]...)
	return aead.Seal(sealed, nil, secret, []byte(row)), nil
}

// Open decrypts what Seal made for the same purpose and row. Its error matches
// ErrWrongKey where the right master key is not here.
func (k *Keys) Open(purpose, row string, sealed []byte) ([]byte, error) {
	if len(sealed) < 1+idSize || sealed[0] != version {
		return nil, fmt.Errorf("opening sealed %s: malformed", purpose)
	}
	for _, key := range k.keys {
		if !bytes.Equal(key.id[:], sealed[1:1+idSize]) {
			continue
		}
		aead, err := key.aead(purpose)
		if err != nil {
			return nil, err
		}
		secret, err := aead.Open(nil, nil, sealed[1+idSize:], []byte(row))
		if err != nil {
			return nil, fmt.Errorf("opening sealed %s: damaged, or moved from another row", purpose)
		}
		return secret, nil
	}
	return nil, fmt.Errorf("opening sealed %s: %w: %s; name the right file by --master-key-file", purpose, ErrWrongKey, k.path)
}

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

func newMasterKey(secret []byte) (masterKey, error) {
	id, err := hkdf.Key(sha256.New, secret, nil, "watchword master key id v1", idSize)
	if err != nil {
		return masterKey{}, fmt.Errorf("deriving master key id: %w", err)
	}
	return masterKey{id: [idSize]byte(id), secret: secret}, nil
}

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

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
