package e2e

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

// written is a server whose database somebody without the master key can write.
type written struct {
	*server
	serve   func(args ...string) *server // starts another server, at the same addresses
	command func(args ...string) *exec.Cmd
	db      *sql.DB
}

func writtenOnBothEngines(t *testing.T, test func(*testing.T, *written)) {
	t.Run("sqlite", func(t *testing.T) {
		w := &written{server: serve(t, t.TempDir())}
		w.serve = func(args ...string) *server {
			return serve(t, w.dir, append(args, "--grpc-addr", w.grpcAddr, "--http-addr", w.httpAddr)...)
		}
		w.command = func(args ...string) *exec.Cmd {
			cmd := cliCommand(t, w.dir, "", args...)
			cmd.Env = append(cmd.Env, "WATCHWORD_DATASTORE_URI="+database(w.dir))
			return cmd
		}
		var err error
		if w.db, err = sql.Open("sqlite", "file:"+filepath.Join(w.dir, "watchword.db")+"?_pragma=busy_timeout(30000)"); err != nil {
			t.Fatal(err)
		}
		// The search for secrets opens and closes the file in this process, and so drops the locks
		// of every open connection (fcntl): a server that stops then removes their write-ahead log.
		w.db.SetMaxIdleConns(0)
		t.Cleanup(func() { w.db.Close() })
		test(t, w)
	})
	t.Run("postgres", func(t *testing.T) {
		dir, to := t.TempDir(), newPostgres(t).migrated(t)
		wantExit(t, 0, cli(t, dir, "", "key", "create-master-key", masterKeyOf(dir)))
		w := &written{server: to.takeOver(t, &server{dir: dir, grpcAddr: "127.0.0.1:0", httpAddr: "127.0.0.1:0"}, "--issuer", "https://auth.example.com")}
		w.serve = func(args ...string) *server { return to.takeOver(t, w.server, args...) }
		w.command = func(args ...string) *exec.Cmd {
			cmd := to.command(t, args...)
			cmd.Env = append(cmd.Env, "WATCHWORD_DATASTORE_URI="+to.uri, "WATCHWORD_MASTER_KEY_FILE="+masterKeyOf(dir))
			return cmd
		}
		config, err := pgx.ParseConfig(to.uri)
		if err != nil {
			t.Fatal(err)
		}
		config.Password = strings.TrimPrefix(to.password, "PGPASSWORD=")
		w.db = stdlib.OpenDB(*config)
		t.Cleanup(func() { w.db.Close() })
		test(t, w)
	})
}

func (w *written) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	if _, err := w.db.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// announce makes every server read the rows of the keys again.
func (w *written) announce(t *testing.T) {
	t.Helper()
	w.exec(t, `UPDATE head SET seq = seq + 1`)
	w.exec(t, `INSERT INTO events (seq, tag, kind, subject, version, expires_at) SELECT seq, $1, 'keys-changed', '', 0, $2 FROM head`,
		[]byte("tag by a stranger")[:8], time.Now().Add(time.Hour).UnixMicro())
}

// resign returns the claims of a token, signed by another key.
func resign(t *testing.T, pair *watchwordv1.TokenPair, key *token.SigningKey) *watchwordv1.TokenPair {
	t.Helper()
	var claims struct {
		Iss, Sub, Jti, Sid, Username string
		Aud, Roles                   []string
		Iat, Exp, Ver                int64
	}
	if err := json.Unmarshal(unbase64(strings.Split(pair.GetAccessToken(), ".")[1]), &claims); err != nil {
		t.Fatal(err)
	}
	raw, err := token.Sign(key, &token.Claims{
		Issuer: claims.Iss, Subject: claims.Sub, ID: claims.Jti, SessionID: claims.Sid, Username: claims.Username,
		Audience: claims.Aud, Roles: claims.Roles, IssuedAt: time.Unix(claims.Iat, 0), ExpiresAt: time.Unix(claims.Exp, 0), Version: claims.Ver,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &watchwordv1.TokenPair{AccessToken: noteSecret(raw)}
}

// alarm matches the line of a server that finds rows which it does not trust. %s is a part
// of the reason.
func alarm(reason string) *regexp.Regexp {
	return regexp.MustCompile(`(?m)^.*level=ERROR msg="the signing keys in the database are not usable as they are.*` + regexp.QuoteMeta(reason) + `.*remedy=.*$`)
}

// wantEverywhereRefused checks that a token of a key that nobody should trust opens nothing.
func (w *written) wantEverywhereRefused(t *testing.T, what string, c *client, verifier *authn.Verifier, forged *watchwordv1.TokenPair) {
	t.Helper()
	_, err := c.verify(callCtx(t), forged)
	wantRefusal(t, what+": verify at the server", err, "TOKEN_INVALID")
	_, err = verifier.Verify(t.Context(), forged.GetAccessToken())
	wantRefusal(t, what+": verify at a service", err, "TOKEN_INVALID")
	_, err = c.ListUsers(bearer(callCtx(t), forged), &watchwordv1.ListUsersRequest{})
	wantRefusal(t, what+": a call of an admin", err, "TOKEN_INVALID")
	resp, err := http.Get("http://" + w.httpAddr + "/.well-known/jwks.json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var set struct{ Keys []struct{ Kid string } }
	if err := json.NewDecoder(resp.Body).Decode(&set); err != nil {
		t.Fatal(err)
	}
	for _, key := range set.Keys {
		if key.Kid == kidOf(forged.GetAccessToken()) {
			t.Errorf("%s: the JWKS has the key", what)
		}
	}
}

// TestAForeignRow inserts the public key of a stranger into the table of the signing keys. No
// verifier may trust the key, neither at once nor after a restart, and the log must say so.
func TestAForeignRow(t *testing.T) {
	writtenOnBothEngines(t, func(t *testing.T, w *written) {
		c := dial(t, w.grpcAddr)
		admin := c.login(t, "admin", w.admin, "watchword")
		verifier, err := authn.NewVerifier(callCtx(t), c.conn, authn.WithAudience("watchword"))
		if err != nil {
			t.Fatal(err)
		}
		defer verifier.Close()
		key, err := token.GenerateKey(token.EdDSA)
		if err != nil {
			t.Fatal(err)
		}
		pkix, err := key.Public().MarshalPKIX()
		if err != nil {
			t.Fatal(err)
		}
		kid := key.Public().KID()
		// Everything but the public half is copied from an authentic row.
		w.exec(t, `INSERT INTO signing_keys (kid, algorithm, public_key, sealed_key, published_at, counter, tag)
			SELECT $1, algorithm, $2, sealed_key, published_at, counter, tag FROM signing_keys WHERE signs_from IS NULL`, kid, pkix)
		w.announce(t)
		w.awaitLog(t, alarm(kid))
		forged := resign(t, admin, key)
		w.wantEverywhereRefused(t, "at once", c, verifier, forged)
		if out := wantExit(t, 0, run(t, w.command("key", "list"))); !regexp.MustCompile(regexp.QuoteMeta(kid) + ` +EdDSA +untrusted`).MatchString(out) {
			t.Errorf("key list shows no untrusted key %s:\n%s", kid, out)
		}
		w.stop(t)
		w.serve().awaitLog(t, alarm(kid))
		c = dial(t, w.grpcAddr)
		w.wantEverywhereRefused(t, "after a restart", c, verifier, forged)
		_, err = c.verify(callCtx(t), admin)
		wantOK(t, "verify of a good token", err)
		c.login(t, "admin", w.admin)
		wantExit(t, 0, run(t, w.command("key", "rotate"))) // removes the row
		if out := wantExit(t, 0, run(t, w.command("key", "list"))); strings.Contains(out, kid) {
			t.Errorf("after a rotation, key list shows %s:\n%s", kid, out)
		}
		w.wantEverywhereRefused(t, "after a rotation", c, verifier, forged)
	})
}

// TestAnEarlierKeySet puts the rows of the signing keys from before a withdrawal back. The
// leaked key must stay refused at the running server and, after a restart of the server, at
// verifiers that saw the withdrawal. As docs/security.md says, a server and a verifier that
// start afterwards accept the leaked key until `datastore restored`.
func TestAnEarlierKeySet(t *testing.T) {
	writtenOnBothEngines(t, func(t *testing.T, w *written) {
		c := dial(t, w.grpcAddr)
		leaked := c.login(t, "admin", w.admin, "watchword")
		verifier, err := authn.NewVerifier(callCtx(t), c.conn, authn.WithAudience("watchword"))
		if err != nil {
			t.Fatal(err)
		}
		defer verifier.Close()
		snapshots := filepath.Join(t.TempDir(), "snapshot")
		reopened := func(opts ...authn.Option) *authn.Verifier {
			t.Helper()
			v, err := authn.NewVerifier(callCtx(t), dialConn(t, w.grpcAddr, insecure.NewCredentials()), append(opts, authn.WithAudience("watchword"))...)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { v.Close() })
			return v
		}
		kid := kidOf(leaked.GetAccessToken())
		w.exec(t, `CREATE TABLE earlier AS SELECT * FROM signing_keys`)
		wantExit(t, 0, run(t, w.command("key", "revoke", "--", kid)))
		eventually(t, propagation, "withdrawing the key", func() error {
			_, err := verifier.Verify(t.Context(), leaked.GetAccessToken())
			return checkRefusal(err, "TOKEN_INVALID")
		})

		w.exec(t, `UPDATE signing_keys SET revoked_at = NULL WHERE kid = $1`, kid)
		w.announce(t)
		w.awaitLog(t, alarm("changed by somebody without the master key"))
		w.wantEverywhereRefused(t, "withdrawal undone in its row", c, verifier, leaked)

		w.exec(t, `DELETE FROM signing_keys WHERE kid = $1`, kid)
		w.exec(t, `INSERT INTO signing_keys SELECT * FROM earlier WHERE kid = $1`, kid)
		w.announce(t)
		w.awaitLog(t, alarm("belongs to an earlier key set"))
		w.wantEverywhereRefused(t, "the row of before", c, verifier, leaked)

		w.exec(t, `DELETE FROM signing_keys`)
		w.exec(t, `INSERT INTO signing_keys SELECT * FROM earlier`)
		w.announce(t)
		w.awaitLog(t, alarm("an earlier set of signing keys"))
		w.wantEverywhereRefused(t, "all rows of before", c, verifier, leaked)
		admin := c.login(t, "admin", w.admin, "watchword")
		_, err = verifier.Verify(t.Context(), admin.GetAccessToken())
		wantOK(t, "the server continues with the keys that it knows: verify at a service", err)
		_, err = watchwordv1.NewKeyServiceClient(c.conn).RotateKey(bearer(callCtx(t), admin), &watchwordv1.RotateKeyRequest{})
		if err == nil {
			t.Error("the server rotated an earlier key set")
		}

		// A command that starts now knows nothing of the withdrawal, and makes the leaked key
		// authentic and newer. The server that saw the withdrawal refuses the key, and names a
		// command that withdraws the key.
		wantExit(t, 0, run(t, w.command("key", "rotate")))
		w.awaitLog(t, regexp.MustCompile(`level=ERROR .*was withdrawn before.* remedy=.*watchword key revoke`))
		w.wantEverywhereRefused(t, "made newer by key rotate", c, verifier, leaked)
		wantExit(t, 0, run(t, w.command("key", "revoke", "--", kid)))
		w.stop(t)
		again := w.serve()
		c = dial(t, w.grpcAddr)
		w.wantEverywhereRefused(t, "after key revoke and a restart", c, verifier, leaked)

		// Every process stops. A new server knows nothing of the withdrawal, but a verifier that
		// saw the withdrawal remembers it.
		wantOK(t, "closing a verifier with a snapshot file", reopened(authn.WithSnapshotFile(snapshots)).Close())
		again.stop(t)
		w.exec(t, `DELETE FROM signing_keys`)
		w.exec(t, `INSERT INTO signing_keys SELECT * FROM earlier`)
		w.serve()
		c = dial(t, w.grpcAddr)
		eventually(t, propagation, "connecting again", func() error {
			if s := verifier.Status(); s.Staleness > time.Second {
				return fmt.Errorf("the bundle is %v old", s.Staleness)
			}
			return nil
		})
		_, err = verifier.Verify(t.Context(), leaked.GetAccessToken())
		wantRefusal(t, "after a restart: verify at a service", err, "TOKEN_INVALID")
		_, err = reopened(authn.WithSnapshotFile(snapshots)).Verify(t.Context(), leaked.GetAccessToken())
		wantRefusal(t, "after a restart of both: verify at a service with a snapshot file", err, "TOKEN_INVALID")
		_, err = c.verify(callCtx(t), leaked)
		wantOK(t, "docs/security.md: a server that starts accepts the earlier key set", err)
		first := reopened()
		_, err = first.Verify(t.Context(), leaked.GetAccessToken())
		wantOK(t, "docs/security.md: so does a verifier that connects for the first time", err)
		wantExit(t, 0, run(t, w.command("datastore", "restored")))
		eventually(t, propagation, "withdrawing all keys", func() error {
			_, err := c.verify(callCtx(t), leaked)
			_, err2 := first.Verify(t.Context(), leaked.GetAccessToken())
			return errors.Join(checkRefusal(err, "TOKEN_INVALID"), checkRefusal(err2, "TOKEN_INVALID"))
		})
	})
}

// TestKeysOfAnotherInstallation puts the key set of another database, with the same master
// key and the same issuer, into a database. The key set of the other database is newer.
func TestKeysOfAnotherInstallation(t *testing.T) {
	shared := []string{"--master-key-file", filepath.Join(t.TempDir(), "master"), "--issuer", "https://auth.example.com"}
	wantExit(t, 0, cli(t, t.TempDir(), "", "key", "create-master-key", shared[1]))
	w := &written{server: serve(t, t.TempDir(), shared...)}
	other := serve(t, t.TempDir(), shared...)
	theirs := dial(t, other.grpcAddr).login(t, "admin", other.admin, "watchword")
	other.stop(t)
	c := dial(t, w.grpcAddr)
	verifier, err := authn.NewVerifier(callCtx(t), c.conn, authn.WithAudience("watchword"))
	if err != nil {
		t.Fatal(err)
	}
	defer verifier.Close()
	if w.db, err = sql.Open("sqlite", "file:"+filepath.Join(w.dir, "watchword.db")+"?_pragma=busy_timeout(30000)"); err != nil {
		t.Fatal(err)
	}
	defer w.db.Close()
	w.db.SetMaxOpenConns(1) // ATTACH counts for one connection
	w.exec(t, `ATTACH '`+filepath.Join(other.dir, "watchword.db")+`' AS other`)
	w.exec(t, `INSERT INTO signing_keys SELECT * FROM other.signing_keys`)
	w.announce(t)
	w.awaitLog(t, alarm(kidOf(theirs.GetAccessToken())))
	w.wantEverywhereRefused(t, "a key of another installation", c, verifier, theirs)
}
