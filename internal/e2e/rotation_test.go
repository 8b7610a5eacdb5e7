package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

// jwksCache verifies tokens by the JWKS, like a verifier in another language. jwksCache
// reads the JWKS again only after max-age, and not for an unknown kid.
type jwksCache struct {
	url string

	mu      sync.Mutex
	keys    map[string]*token.PublicKey
	expires time.Time
}

func (c *jwksCache) verify(raw string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.After(c.expires) {
		resp, err := http.Get(c.url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var set struct {
			Keys []*watchwordv1.JsonWebKey `json:"keys"`
		}
		var age int
		if err := json.NewDecoder(resp.Body).Decode(&set); err != nil {
			return err
		}
		if _, err := fmt.Sscanf(resp.Header.Get("Cache-Control"), "public, max-age=%d", &age); err != nil {
			return err
		}
		c.keys, c.expires = map[string]*token.PublicKey{}, now.Add(time.Duration(age)*time.Second)
		for _, jwk := range set.Keys {
			key, err := token.FromJWK(jwk)
			if err != nil {
				return err
			}
			c.keys[key.KID()] = key
		}
	}
	_, err := token.Parse(raw, func(kid string) *token.PublicKey { return c.keys[kid] })
	return err
}

// rotation holds a client of a server under load, and three ways to verify a token.
type rotation struct {
	client   *client
	verifier *authn.Verifier
	cache    *jwksCache

	minted, checked atomic.Int64
	mu              sync.Mutex           // guards the fields below
	withdrawn       string               // the kid of the withdrawn key; its tokens must be refused
	alive           map[string]time.Time // the time at which each access token expires
	byKID           map[string]int       // the number of tokens of each key, by kid
}

func unbase64(text string) []byte {
	data, _ := base64.RawURLEncoding.DecodeString(text)
	return data
}

func kidOf(raw string) string {
	head, _, _ := strings.Cut(raw, ".")
	var header struct{ Kid string }
	_ = json.Unmarshal(unbase64(head), &header)
	return header.Kid
}

// checkGood verifies a good token in all three ways.
func (r *rotation) checkGood(ctx context.Context, t *testing.T, raw string) {
	kid := kidOf(raw)
	_, byServer := r.client.Verify(ctx, &watchwordv1.VerifyRequest{AccessToken: raw})
	_, byBundle := r.verifier.Verify(ctx, raw)
	byCache := r.cache.verify(raw)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.withdrawn == kid || ctx.Err() != nil { // the key may have been withdrawn during the checks
		return
	}
	r.checked.Add(1)
	for verifier, err := range map[string]error{"the server": byServer, "the bundle's verifier": byBundle, "the JWKS cache": byCache} {
		if err != nil {
			t.Errorf("%s refused a good token of key %s: %v", verifier, kid, err)
		}
	}
}

// work refreshes until ctx ends. work checks each access token twice: at once, and 100
// refreshes later.
func (r *rotation) work(ctx context.Context, t *testing.T, pair *watchwordv1.TokenPair) {
	var older []string
	for {
		resp, err := r.client.Refresh(ctx, &watchwordv1.RefreshRequest{RefreshToken: pair.GetRefreshToken()})
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			t.Error(err)
			return
		}
		pair = noteTokens(resp.GetTokens())
		raw := pair.GetAccessToken()
		r.mu.Lock()
		r.byKID[kidOf(raw)]++
		r.alive[raw] = time.Now().Add(pair.GetExpiresIn().AsDuration())
		r.mu.Unlock()
		r.minted.Add(1)
		r.checkGood(ctx, t, raw)
		if older = append(older, raw); len(older) > 100 {
			r.checkGood(ctx, t, older[0])
			older = older[1:]
		}
	}
}

// TestRotationUnderLoad rotates keys every second by three callers at once, then changes the
// algorithm, and then withdraws a key, all under load. No verifier may refuse a good token,
// and no token of the withdrawn key may pass.
func TestRotationUnderLoad(t *testing.T) {
	s := serve(t, t.TempDir(), "--jwks-max-age", "1s")
	c := dial(t, s.grpcAddr)
	admin := c.login(t, "admin", s.admin, "watchword")
	verifier, err := authn.NewVerifier(callCtx(t), c.conn, authn.WithAudience("internal"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { verifier.Close() })
	r := &rotation{
		client: c, verifier: verifier, cache: &jwksCache{url: "http://" + s.httpAddr + "/.well-known/jwks.json"},
		byKID: map[string]int{}, alive: map[string]time.Time{},
	}
	ctx, stop := context.WithCancel(t.Context())
	var workers sync.WaitGroup
	defer workers.Wait()
	defer stop()
	for range 4 {
		pair := c.login(t, "admin", s.admin)
		workers.Go(func() { r.work(ctx, t, pair) })
	}
	keys := watchwordv1.NewKeyServiceClient(c.conn)
	second := time.NewTicker(time.Second)
	defer second.Stop()
	rotateByThree := func(alg string) {
		var callers sync.WaitGroup
		for range 3 {
			callers.Go(func() {
				if _, err := keys.RotateKey(bearer(callCtx(t), admin), &watchwordv1.RotateKeyRequest{Algorithm: alg}); err != nil {
					t.Errorf("rotate to %q: %v", alg, err)
				}
			})
		}
		callers.Wait()
	}
	for range 5 {
		<-second.C
		rotateByThree("")
	}
	rotateByThree("ES256")
	signing := func() (kid, alg string) {
		list, err := keys.ListKeys(bearer(callCtx(t), admin), &watchwordv1.ListKeysRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range list.GetKeys() {
			if k.GetState() == watchwordv1.KeyState_KEY_STATE_SIGNING {
				return k.GetKid(), k.GetAlgorithm()
			}
		}
		t.Fatal("ListKeys lists no signing key")
		return "", ""
	}
	eventually(t, runTimeout, "signing with ES256", func() error {
		if _, alg := signing(); alg != "ES256" {
			return fmt.Errorf("the signing key is for %s", alg)
		}
		return nil
	})
	for range 3 { // waits until every cache has the next key
		<-second.C
	}

	leaked, _ := signing()
	r.mu.Lock()
	r.withdrawn = leaked
	r.mu.Unlock()
	after, err := keys.RevokeKey(bearer(callCtx(t), admin), &watchwordv1.RevokeKeyRequest{Kid: leaked})
	if err != nil || after.GetKey().GetKid() == leaked {
		t.Fatalf("RevokeKey of %s returned %v, error %v; want another signing key", leaked, after, err)
	}
	acknowledged := time.Now()
	r.mu.Lock()
	var dead []string
	for raw, expires := range r.alive {
		if kidOf(raw) == leaked && time.Until(expires) > time.Minute {
			dead = append(dead, raw)
		}
	}
	r.mu.Unlock()
	_, err = c.Verify(callCtx(t), &watchwordv1.VerifyRequest{AccessToken: dead[0]})
	wantRefusal(t, "verify of a withdrawn key's token by the server", err, "TOKEN_INVALID")
	eventually(t, propagation, "refusing a withdrawn key's token by the bundle", func() error {
		_, err := verifier.Verify(t.Context(), dead[0])
		return checkRefusal(err, "TOKEN_INVALID")
	})
	arrived := time.Since(acknowledged)
	for _, raw := range dead {
		_, err := verifier.Verify(t.Context(), raw)
		wantRefusal(t, "verify of a withdrawn key's token by the bundle", err, "TOKEN_INVALID")
	}
	<-second.C
	stop()
	workers.Wait()
	if len(dead) == 0 || r.byKID[after.GetKey().GetKid()] == 0 || len(r.byKID) < 4 {
		t.Errorf("want tokens of the withdrawn key, of the next key and of four keys in all; got %d tokens of the withdrawn key, and by key: %v", len(dead), r.byKID)
	}
	t.Logf("%d tokens of %d keys, %d checks; %d tokens of the withdrawn key, refused by the server at once and by the bundle within %v",
		r.minted.Load(), len(r.byKID), 3*r.checked.Load(), len(dead), arrived)
}

// TestMasterKeyRotation replaces the master key while a server runs. Clients must not see a
// failure, and the old master key must not open the database afterwards.
func TestMasterKeyRotation(t *testing.T) {
	s := serve(t, t.TempDir(), "--jwks-max-age", "0s")
	c := dial(t, s.grpcAddr)
	admin := c.login(t, "admin", s.admin, "watchword")
	keys := watchwordv1.NewKeyServiceClient(c.conn)
	path := filepath.Join(s.dir, "watchword.db.master-key")
	read := func() (lines []string) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(text)) {
			if !strings.HasPrefix(l, "#") {
				lines = append(lines, noteSecret(strings.TrimSpace(l)))
			}
		}
		return lines
	}
	old := read()[0]
	reseal := func(flags ...string) string {
		return wantExit(t, 0, cli(t, s.dir, "", append([]string{"key", "reseal", "--datastore-uri", database(s.dir)}, flags...)...))
	}
	rotate := func() {
		t.Helper()
		if _, err := keys.RotateKey(bearer(callCtx(t), admin), &watchwordv1.RotateKeyRequest{}); err != nil {
			t.Fatal(err)
		}
		admin = c.refresh(t, admin)
		if _, err := c.verify(callCtx(t), admin); err != nil {
			t.Fatal(err)
		}
	}
	if out := reseal(); !strings.HasPrefix(out, "resealed 0 keys") {
		t.Errorf("key reseal printed %s, want 0 keys", out)
	}
	rotate()
	if out := reseal("--new-master-key"); !strings.HasPrefix(out, "resealed 4 keys") { // three signing keys and a MAC key
		t.Errorf("key reseal --new-master-key printed %s, want 4 keys", out)
	}
	lines := read()
	if len(lines) != 2 || lines[1] != old || lines[0] == old {
		t.Fatalf("the master key file has %d keys, want a new key before the old key", len(lines))
	}
	rotate() // the running server must read the new master key by itself
	if out := reseal(); !strings.HasPrefix(out, "resealed 0 keys") {
		t.Errorf("the running server sealed under the old key: %s", out)
	}
	if err := os.WriteFile(path, []byte(lines[0]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	rotate()
	s.stop(t)
	again := serve(t, s.dir)
	c = dial(t, again.grpcAddr)
	admin = c.refresh(t, admin)
	again.stop(t)

	withOld := filepath.Join(t.TempDir(), "old")
	if err := os.WriteFile(withOld, []byte(old+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refusesToStart(t, s.dir, withOld, "--master-key-file", withOld)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the master key file has %v, error %v; want mode 0600", info, err)
	}
}

// TestCopiedDatabase copies the database and the write-ahead log of a running server. Without
// the master key, the copy must not reveal a password or a token, and must not accept
// forged tokens.
func TestCopiedDatabase(t *testing.T) {
	s := serve(t, t.TempDir())
	c := dial(t, s.grpcAddr)
	admin := c.login(t, "admin", s.admin, "watchword")
	password := newPassword()
	c.create(t, admin, "alice", password)
	alice := c.login(t, "alice", password)
	hidden := map[string]string{"the admin's password": s.admin, "a user's password": password}
	for i := range 3 {
		for what, raw := range map[string]string{"access": alice.GetAccessToken(), "refresh": alice.GetRefreshToken()} {
			hidden[fmt.Sprintf("%s token %d", what, i)] = raw[len(raw)-20:] // the end of the token, a part of its signature or MAC
			decoded := string(unbase64(strings.TrimPrefix(raw[strings.LastIndex(raw, ".")+1:], "wwrt_")))
			hidden[fmt.Sprintf("%s token %d, in bytes", what, i)] = decoded[len(decoded)-12:]
		}
		alice = c.refresh(t, alice)
	}
	stolen := t.TempDir()
	for _, name := range []string{"watchword.db", "watchword.db-wal"} {
		data, err := os.ReadFile(filepath.Join(s.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if len(data) == 0 {
			t.Errorf("the file %s is empty", name)
		}
		for what, text := range hidden {
			if strings.Contains(string(data), text) {
				t.Errorf("the file %s contains %s", name, what)
			}
		}
		if err := os.WriteFile(filepath.Join(stolen, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	refusesToStart(t, stolen, filepath.Join(stolen, "watchword.db.master-key"))
	thief := serve(t, t.TempDir(), "--issuer", "http://"+s.httpAddr) // the same issuer, with other keys
	forged := dial(t, thief.grpcAddr).login(t, "admin", thief.admin)
	_, err := c.tryRefresh(callCtx(t), forged)
	wantRefusal(t, "refresh with another server's token", err, "REFRESH_TOKEN_INVALID")
	_, err = c.verify(callCtx(t), forged)
	wantRefusal(t, "verify of another server's token", err, "TOKEN_INVALID")
	thief.stop(t)
	own := filepath.Join(thief.dir, "watchword.db.master-key")
	refusesToStart(t, stolen, own, "--master-key-file", own)

	// With the master key, the copy works: so only the missing key made the start fail.
	ours := filepath.Join(s.dir, "watchword.db.master-key")
	dial(t, serve(t, stolen, "--master-key-file", ours).grpcAddr).refresh(t, alice)
}
