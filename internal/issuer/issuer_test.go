package issuer_test

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }

const name = "https://auth.internal.example"

func setup(t *testing.T, alg token.Algorithm) (*store.Store, *seal.Keys, string) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "i.db")
	s, err := store.Open(t.Context(), "sqlite:"+path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	master, err := seal.Create(filepath.Join(dir, "master"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), func(tx *store.Tx) error { return tx.SetSetting(store.DatabaseID, "database") }); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second does nothing
		if err := s.Write(t.Context(), func(tx *store.Tx) error { return issuer.Setup(tx, master, alg) }); err != nil {
			t.Fatal(err)
		}
	}
	return s, master, path
}

func open(t *testing.T, s *store.Store, master *seal.Keys) *issuer.Issuer {
	t.Helper()
	keys := keySet(master)
	load(t, s, keys)
	return issuer.New(s, keys, name, "", 5*time.Minute)
}

func keySet(master *seal.Keys) *issuer.KeySet {
	return issuer.NewKeySet(master, slog.New(slog.DiscardHandler))
}

func load(t *testing.T, s *store.Store, keys *issuer.KeySet) {
	t.Helper()
	if err := keys.Load(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}

func rows(t *testing.T, s *store.Store) (keys []*store.SigningKey) {
	t.Helper()
	if err := s.Read(t.Context(), func(tx *store.Tx) (err error) {
		keys, err = tx.SigningKeys()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return keys
}

var alice = issuer.Subject{
	UserID: "AAAAAAAAAAAAAAAA", Username: "alice", Roles: []string{"writer"}, Version: 7,
	SessionID: "BBBBBBBBBBBBBBBB", Audience: []string{"internal"},
}

func TestMint(t *testing.T) {
	for _, alg := range []token.Algorithm{token.EdDSA, token.ES256, token.RS256} {
		t.Run(string(alg), func(t *testing.T) {
			s, master, _ := setup(t, alg)
			i := open(t, s, master)
			subject, now := alice, time.Now()
			subject.SessionEnd = now.Add(time.Hour)
			raw, lives, err := i.Mint(t.Context(), now, subject)
			if err != nil || lives <= 4*time.Minute || lives > 5*time.Minute {
				t.Fatalf("lives %v, %v", lives, err)
			}
			claims, err := token.Parse(raw, func(kid string) *token.PublicKey {
				for _, k := range keysOf(t, s) {
					if k.KID() == kid {
						return k
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if claims.Issuer != name || claims.Subject != subject.UserID || claims.Version != 7 || claims.SessionID != subject.SessionID {
				t.Fatalf("claims %+v", claims)
			}
		})
	}
}

// keysOf returns the public keys in the rows.
func keysOf(t *testing.T, s *store.Store) []*token.PublicKey {
	t.Helper()
	var keys []*token.PublicKey
	for _, row := range rows(t, s) {
		keys = append(keys, publicKey(t, row.PublicKey))
	}
	return keys
}

// client_id names the client that asked for the token, and stands in no token if the server has
// no client id.
func TestClientID(t *testing.T) {
	s, master, _ := setup(t, token.EdDSA)
	keys := keySet(master)
	load(t, s, keys)
	now := time.Now()
	user, service := alice, issuer.Subject{UserID: "service1", Username: "notes", Audience: []string{"internal"}}
	user.SessionEnd = now.Add(time.Hour)
	delegated := user
	delegated.Actors = []token.Actor{{Subject: "service2", Username: "b"}, {Subject: "service1", Username: "a"}}
	for what, c := range map[string]struct {
		client  string
		subject issuer.Subject
		want    string
	}{
		"a user":                              {"web", user, "web"},
		"a service account":                   {"web", service, "service1"},
		"a delegated token":                   {"web", delegated, "service2"},
		"a user, without the flag":            {"", user, ""},
		"a service account, without the flag": {"", service, ""},
		"a delegated token, without the flag": {"", delegated, ""},
	} {
		raw, _, err := issuer.New(s, keys, name, c.client, 5*time.Minute).Mint(t.Context(), now, c.subject)
		if err != nil {
			t.Fatal(err)
		}
		claims, err := token.Parse(raw, func(kid string) *token.PublicKey {
			for _, k := range keysOf(t, s) {
				if k.KID() == kid {
					return k
				}
			}
			return nil
		})
		if err != nil || claims.ClientID != c.want {
			t.Errorf("%s: %+v, %v", what, claims, err)
		}
	}
}

func TestNoTokenOutlivesItsSession(t *testing.T) {
	s, master, _ := setup(t, token.EdDSA)
	subject, now := alice, time.Now()
	subject.SessionEnd = now.Add(90 * time.Second)
	if _, lives, err := open(t, s, master).Mint(t.Context(), now, subject); err != nil || lives > 90*time.Second {
		t.Fatalf("lives %v, %v", lives, err)
	}
}

func TestTheNextKeyIsPublishedBeforeItSigns(t *testing.T) {
	s, _, _ := setup(t, token.EdDSA)
	keys, err := issuer.ListRows(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	states := map[issuer.State]int{}
	for _, k := range keys {
		states[k.State]++
	}
	if len(keys) != 2 || states[issuer.Signing] != 1 || states[issuer.Next] != 1 {
		t.Fatalf("keys %+v", keys)
	}
}

// A copy of the database alone gives away no key: the private halves are sealed,
// and without the master key nothing opens them.
func TestACopiedDatabaseSignsNothing(t *testing.T) {
	s, master, path := setup(t, token.EdDSA)
	stranger, err := seal.Create(filepath.Join(t.TempDir(), "stranger"))
	if err != nil {
		t.Fatal(err)
	}
	if err := keySet(stranger).Load(t.Context(), s); !errors.Is(err, seal.ErrWrongKey) {
		t.Fatalf("another master key: %v", err)
	}
	row := rows(t, s)[0]
	private, err := master.Open("signing key", row.KID, row.SealedKey)
	if err != nil {
		t.Fatal(err)
	}
	secret := private[len(private)-32:] // an Ed25519 seed ends its PKCS 8 form
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(path + suffix)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, form := range [][]byte{secret, []byte(base64.StdEncoding.EncodeToString(secret)[:40]), []byte(base64.RawURLEncoding.EncodeToString(secret))} {
			if bytes.Contains(data, form) {
				t.Errorf("the private key is in %s in the clear", filepath.Base(path+suffix))
			}
		}
	}
}

func publicKey(t *testing.T, pkix []byte) *token.PublicKey {
	t.Helper()
	parsed, err := x509.ParsePKIXPublicKey(pkix)
	if err != nil {
		t.Fatal(err)
	}
	key, err := token.NewPublicKey(parsed)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// `watchword key revoke` would read an id that begins with "-" as a flag.
func TestNoKeyIDBeginsWithADash(t *testing.T) {
	s, err := store.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "i.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	master, err := seal.Create(filepath.Join(t.TempDir(), "master"))
	if err != nil {
		t.Fatal(err)
	}
	undo := errors.New("undo")
	for range 300 { // two keys each; of random ids, one in 64 begins with "-"
		err := s.Write(t.Context(), func(tx *store.Tx) error {
			if err := issuer.Setup(tx, master, token.EdDSA); err != nil {
				return err
			}
			keys, err := tx.SigningKeys()
			for _, key := range keys {
				if key.KID[0] == '-' {
					t.Errorf("the key %s", key.KID)
				}
			}
			return errors.Join(undo, err)
		})
		if !errors.Is(err, undo) {
			t.Fatal(err)
		}
	}
}

// No token is minted before the database has stored a horizon that is not before the token.
func TestTheHorizonComesBeforeTheToken(t *testing.T) {
	s, master, _ := setup(t, token.EdDSA)
	i := open(t, s, master)
	mint := func(at time.Time) error {
		subject := alice
		subject.SessionEnd = at.Add(time.Hour)
		_, _, err := i.Mint(t.Context(), at, subject)
		return err
	}
	stored := func() (at time.Time) {
		t.Helper()
		if err := s.Read(t.Context(), func(tx *store.Tx) (err error) { at, err = tx.Horizon(); return err }); err != nil {
			t.Fatal(err)
		}
		return at
	}
	now := time.Now()
	for _, ahead := range []time.Duration{0, 2 * time.Hour} {
		if err := mint(now.Add(ahead)); err != nil || stored().Before(now.Add(ahead)) {
			t.Errorf("%v ahead: %v, the horizon is %v", ahead, err, stored())
		}
	}
	far := stored()
	if err := mint(now); err != nil || !stored().Equal(far) { // the clock was set back
		t.Errorf("%v, the horizon is %v", err, stored())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := mint(far); err != nil {
		t.Errorf("within the horizon, without the database: %v", err)
	}
	if err := mint(far.Add(time.Second)); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("beyond the horizon, without the database: %v", err)
	}
}
