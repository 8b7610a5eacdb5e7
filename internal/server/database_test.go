package server_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/seal"
)

// reader reads a server's database as another process would.
type reader struct{ db *sql.DB }

func (h *harness) reader(t *testing.T) reader {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+h.database+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return reader{db}
}

// dump is everything that the database holds, but for what was refused, and for what every server
// writes as time passes.
func (h *harness) dump(t *testing.T) string {
	t.Helper()
	return h.reader(t).dump(t)
}

func (r reader) dump(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, table := range r.query(t, `SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name`) {
		fmt.Fprintln(&all, table...)
		of := fmt.Sprintf(`SELECT * FROM "%s"`, table[0])
		switch table[0] {
		case "audit":
			of += ` WHERE success`
		case "settings":
			of += ` WHERE name <> 'horizon'`
		case "throttle", "ticks", "replicas": // counts of wrong passwords, and of the time that passes; what servers tell each other
			continue
		}
		for _, row := range r.query(t, of) {
			fmt.Fprintln(&all, row...)
		}
	}
	return all.String()
}

func (r reader) query(t *testing.T, text string) [][]any {
	t.Helper()
	rows, err := r.db.QueryContext(t.Context(), text)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var all [][]any
	for rows.Next() {
		row, into := make([]any, len(columns)), make([]any, len(columns))
		for i := range row {
			into[i] = &row[i]
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		all = append(all, row)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// difference is the lines of two dumps that are not in both.
func difference(before, after string) string {
	count := map[string]int{}
	for line := range strings.Lines(before) {
		count[line]--
	}
	for line := range strings.Lines(after) {
		count[line]++
	}
	var found strings.Builder
	for line, n := range count {
		if n != 0 {
			fmt.Fprintf(&found, "%+d %s", n, line)
		}
	}
	return found.String()
}

// keyMaterial returns the keys of the database, sealed and open, that must appear in no
// log and no answer, by name.
func keyMaterial(t *testing.T, h *harness) map[string][]byte {
	t.Helper()
	master, err := seal.Load(h.database + ".master-key")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{}
	h.behind(t, func(tx *feed.Tx) error {
		signing, err := tx.SigningKeys()
		for _, row := range signing {
			if !row.RevokedAt.IsZero() { // the private half of a withdrawn key is destroyed
				continue
			}
			all["the sealed key "+row.KID] = row.SealedKey
			if all["the key "+row.KID], err = master.Open("signing key", row.KID, row.SealedKey); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		macs, err := tx.MACKeys()
		for _, row := range macs {
			all["a sealed MAC key"] = row.SealedKey
			if all[macKey], err = master.Open("refresh token MAC key", fmt.Sprint(row.ID), row.SealedKey); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		u, err := tx.User(h.admin.id)
		all["a password's hash"] = []byte(u.PasswordHash)
		return err
	})
	return all
}

const macKey = "the MAC key"

// refreshToken is the authentic refresh token of a session and a generation,
// made of the server's own key as package session says.
func refreshToken(t *testing.T, key []byte, sessionID string, generation uint64) string {
	t.Helper()
	id, err := base64.RawURLEncoding.DecodeString(sessionID)
	if err != nil {
		t.Fatal(err)
	}
	body := append([]byte{1, 0, 1}, id...)
	body = binary.BigEndian.AppendUint64(body, generation)
	mac := hmac.New(sha256.New, key)
	mac.Write(body)
	raw := "wwrt_" + base64.RawURLEncoding.EncodeToString(append(body, mac.Sum(nil)[:16]...))
	secrets.add("refresh_token", raw)
	return raw
}
