package session

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"
	"sync"

	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
)

// A refresh token is not stored in the database. A refresh token has the form
//
//	"wwrt_" base64url(version ‖ MAC key ‖ session ‖ generation ‖ MAC)
//
// with 1, 2, 12, 8 and 16 bytes, 57 characters together. "MAC key" is the id of the
// key. The prefix lets secret scanners find a leaked token. The MAC is HMAC-SHA256 over
// the bytes before the MAC, truncated to 128 bits (RFC 2104, section 5). By the MAC, the server
// refuses a forged token before any work in the database, and makes the same token for a
// generation again.
const (
	refreshPrefix  = "wwrt_"
	refreshVersion = 1
	sessionIDBytes = 12
	macBytes       = 16
	bodyBytes      = 1 + 2 + sessionIDBytes + 8
	refreshLength  = len(refreshPrefix) + (bodyBytes+macBytes)/3*4
)

// macPurpose separates sealed MAC keys from other sealed secrets: see [seal.Keys.Seal].
const macPurpose = "refresh token MAC key"

// generation identifies a refresh token: the session, and the number of the token in the
// session.
type generation struct {
	sessionID string
	number    int64
}

// macs holds the MAC keys of refresh tokens, by id. The key with the highest id makes
// new tokens; every key checks tokens.
type macs struct {
	keys   map[uint16]*macKey
	newest uint16
}

// macKey is a MAC key, with HMACs that calls use one after the other: to make an HMAC takes longer than
// the MAC of a refresh token.
type macKey struct {
	secret []byte
	hmacs  sync.Pool // of hash.Hash
}

func newMACKey(secret []byte) *macKey {
	return &macKey{secret: secret, hmacs: sync.Pool{New: func() any { return hmac.New(sha256.New, secret) }}}
}

// sum returns the MAC of the body of a refresh token.
func (k *macKey) sum(body []byte) []byte {
	h := k.hmacs.Get().(hash.Hash)
	defer k.hmacs.Put(h)
	h.Reset()
	h.Write(body)
	return h.Sum(nil)[:macBytes]
}

// SetupMAC makes a database's first MAC key, in the transaction of the first start. If
// the database has a MAC key, SetupMAC does nothing.
func SetupMAC(tx *store.Tx, master *seal.Keys) error {
	keys, err := tx.MACKeys()
	if err != nil || len(keys) > 0 {
		return err
	}
	return insertMAC(tx, master, 1)
}

// insertMAC makes a MAC key, and stores the key sealed under the master key.
func insertMAC(tx *store.Tx, master *seal.Keys, id int64) error {
	secret := make([]byte, sha256.Size)
	rand.Read(secret)
	sealed, err := master.Seal(macPurpose, strconv.FormatInt(id, 10), secret)
	if err != nil {
		return err
	}
	return tx.InsertMACKey(&store.MACKey{ID: id, SealedKey: sealed, CreatedAt: tx.Now()})
}

// ReplaceMAC replaces every MAC key by a new one, sealed under the first master key. Every
// refresh token is invalid from the next start of the servers on.
func ReplaceMAC(tx *store.Tx, master *seal.Keys) error {
	rows, err := tx.MACKeys()
	if err != nil {
		return err
	}
	id := int64(1)
	for _, row := range rows {
		id = max(id, row.ID%maxMACKey+1)
	}
	if err := tx.DeleteMACKeys(); err != nil {
		return err
	}
	return insertMAC(tx, master, id)
}

// maxMACKey is the highest id of a MAC key: a refresh token has two bytes for the id.
const maxMACKey = 1<<16 - 1

// ErrDamagedMAC means that a row of mac_keys was changed, so that no master key opens the row.
var ErrDamagedMAC = errors.New("a row of the table mac_keys is damaged")

// CheckMaster decrypts every MAC key. Errors: seal.ErrWrongKey if a MAC key needs a master
// key that the master key file lacks; ErrDamagedMAC; errors of the store.
func CheckMaster(tx *store.Tx, master *seal.Keys) error {
	_, err := readMACs(tx, master)
	return err
}

// ResealMAC seals the MAC keys under the first master key in the file, and returns the
// number of MAC keys that were sealed under another master key before.
func ResealMAC(tx *store.Tx, master *seal.Keys) (int, error) {
	rows, err := tx.MACKeys()
	if err != nil {
		return 0, err
	}
	n := 0
	for _, row := range rows {
		changed, err := master.Reseal(macPurpose, strconv.FormatInt(row.ID, 10), row.SealedKey, func(sealed []byte) error { return tx.ResealMACKey(row.ID, sealed) })
		if err != nil {
			return n, fmt.Errorf("MAC key %d: %w", row.ID, err)
		}
		n += changed
	}
	return n, nil
}

func openMACs(ctx context.Context, s *store.Store, master *seal.Keys) (m *macs, err error) {
	err = s.Read(ctx, func(tx *store.Tx) (err error) {
		m, err = readMACs(tx, master)
		return err
	})
	if err == nil && len(m.keys) == 0 {
		err = errors.New("no MAC key")
	}
	return m, err
}

func readMACs(tx *store.Tx, master *seal.Keys) (*macs, error) {
	m := &macs{keys: map[uint16]*macKey{}}
	rows, err := tx.MACKeys()
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		secret, err := master.Open(macPurpose, strconv.FormatInt(row.ID, 10), row.SealedKey)
		if err != nil && !errors.Is(err, seal.ErrWrongKey) {
			err = fmt.Errorf("%w: %w", ErrDamagedMAC, err)
		}
		if err != nil {
			return nil, fmt.Errorf("MAC key %d: %w", row.ID, err)
		}
		m.keys[uint16(row.ID)] = newMACKey(secret)
		m.newest = max(m.newest, uint16(row.ID))
	}
	return m, nil
}

// mint returns the refresh token of a generation. The same generation always gives the
// same token, as long as the newest MAC key stays.
func (m *macs) mint(g generation) (string, error) {
	id, err := base64.RawURLEncoding.DecodeString(g.sessionID)
	if err != nil || len(id) != sessionIDBytes {
		return "", fmt.Errorf("malformed session id %q", g.sessionID)
	}
	body := make([]byte, 0, bodyBytes+macBytes)
	body = append(body, refreshVersion)
	body = binary.BigEndian.AppendUint16(body, m.newest)
	body = append(body, id...)
	body = binary.BigEndian.AppendUint64(body, uint64(g.number))
	body = append(body, m.keys[m.newest].sum(body)...)
	return refreshPrefix + base64.RawURLEncoding.EncodeToString(body), nil
}

// parse checks the form and the MAC of a refresh token, and returns its generation.
//
// Errors: ErrRefreshInvalid.
func (m *macs) parse(token string) (generation, error) {
	encoded, ok := strings.CutPrefix(token, refreshPrefix)
	if !ok || len(token) != refreshLength {
		return generation{}, ErrRefreshInvalid
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	// The decoder skips line breaks, so check the decoded length.
	if err != nil || len(raw) != bodyBytes+macBytes || raw[0] != refreshVersion {
		return generation{}, ErrRefreshInvalid
	}
	body, mac := raw[:bodyBytes], raw[bodyBytes:]
	key, ok := m.keys[binary.BigEndian.Uint16(body[1:])]
	if !ok || !hmac.Equal(key.sum(body), mac) {
		return generation{}, ErrRefreshInvalid
	}
	return generation{
		sessionID: base64.RawURLEncoding.EncodeToString(body[3 : 3+sessionIDBytes]),
		number:    int64(binary.BigEndian.Uint64(body[3+sessionIDBytes:])),
	}, nil
}

// Key returns a secret key for the named purpose. The key is the same on all replicas. An
// attacker with a copy of the database also needs the master key to find the secret key.
func (s *Sessions) Key(purpose string) ([]byte, error) { return s.macs.derive(purpose) }

// derive returns a secret key for the named purpose, derived from the oldest MAC key. From the
// oldest MAC key all replicas derive the same key, even if only some replicas know a newer MAC
// key.
func (m *macs) derive(purpose string) ([]byte, error) {
	oldest := m.newest
	for id := range m.keys {
		oldest = min(oldest, id)
	}
	return hkdf.Key(sha256.New, m.keys[oldest].secret, nil, "watchword derived v1 "+purpose, sha256.Size)
}
