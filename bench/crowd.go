package main

import (
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
)

// settings configures the measured PostgreSQL. Everything else has its default: fsync,
// synchronous commits, full pages after a checkpoint. The buffers hold a small part of
// the largest database.
var settings = []string{"shared_buffers=1GB", "max_wal_size=8GB"}

// crowd is a server on PostgreSQL with users and sessions that SQL has inserted,
// numbered from 0: logins would take days. No password matches these users.
type crowd struct {
	*watchword
	db    *pgx.Conn // a connection to the server's database
	conns []*grpc.ClientConn
	auth  []watchwordv1.AuthServiceClient
	mac   []byte // the key of refresh tokens
}

// gather starts a server on a new database. change may alter the URI that the server
// gets.
func gather(postgres *pgtest.Durable, change func(*url.URL), users, sessions int) (*crowd, error) {
	ctx := context.Background()
	plain, err := postgres.Database()
	if err != nil {
		return nil, err
	}
	if err := store.Migrate(ctx, plain); err != nil {
		return nil, err
	}
	uri, err := changed(plain, change)
	if err != nil {
		return nil, err
	}
	c := &crowd{}
	if c.watchword, err = startWatchword(uri); err != nil {
		return nil, err
	}
	if c.db, err = pgx.Connect(ctx, plain); err == nil {
		err = errors.Join(c.readMAC(ctx), c.fill(ctx, users, sessions), c.dial())
	}
	if err != nil {
		c.disperse()
		return nil, err
	}
	return c, nil
}

// hangUp closes the connections to the server.
func (c *crowd) hangUp() {
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns, c.auth = nil, nil
}

func (c *crowd) disperse() {
	c.hangUp()
	if c.db != nil {
		c.db.Close(context.Background())
	}
	c.close()
}

// changed returns a URI after a change, which may be nil.
func changed(uri string, change func(*url.URL)) (string, error) {
	parsed, err := url.Parse(uri)
	if err == nil && change != nil {
		change(parsed)
		uri = parsed.String()
	}
	return uri, err
}

// poolOf sets the size of a pool in a URI.
func poolOf(size int) func(*url.URL) {
	return func(uri *url.URL) { uri.RawQuery += fmt.Sprintf("&pool_max_conns=%d", size) }
}

func (c *crowd) dial() (err error) {
	c.conns, err = dial(c.addr, connections)
	for _, conn := range c.conns {
		c.auth = append(c.auth, watchwordv1.NewAuthServiceClient(conn))
	}
	return err
}

const (
	insertUser    = `INSERT INTO users (id, username, password_hash, roles, disabled, ver, revoked_below, created_at, updated_at) `
	insertSession = `INSERT INTO sessions (id, user_id, born_ver, audience, created_at, refreshed_at,
		current, spent, spent_at, low, earlier_low, late, late_at) `
)

// never returns the zero time, as the columns hold it.
func never() int64 { return (&store.Session{}).CreatedAt.UnixMicro() }

// fill inserts users and their sessions. The ids are spread like random ids, so that
// sessions that are used one after the other lie far apart in the table.
func (c *crowd) fill(ctx context.Context, users, sessions int) error {
	const id = `translate(left(encode(decode(md5(%s), 'hex'), 'base64'), 16), '+/', '-_')`
	never := fmt.Sprint(never())
	for _, part := range []struct {
		n         int
		statement string
	}{
		{users, insertUser + `SELECT ` + fmt.Sprintf(id, `'user ' || g`) + `, 'user-' || g, a.password_hash, 'reader writer', false, 1, 0, a.created_at, a.created_at
			FROM users a, generate_series(0, $1 - 1) g WHERE a.username = 'admin'`},
		{sessions, insertSession + `SELECT ` + fmt.Sprintf(id, `'session ' || g`) + `, ` + fmt.Sprintf(id, fmt.Sprintf(`'user ' || g %% %d`, max(users, 1))) + `, 1,
				'["internal","billing"]', a.created_at, a.created_at, 1, 0, ` + never + `, 0, 0, 0, ` + never + `
			FROM users a, generate_series(0, $1 - 1) g WHERE a.username = 'admin'`},
	} {
		if _, err := c.db.Exec(ctx, part.statement, part.n); err != nil {
			return fmt.Errorf("filling the database: %w", err)
		}
	}
	return nil
}

// sessionID returns the id of the n-th session.
func sessionID(n int) string { return idOf("session", n) }

// idOf returns the id of the n-th user or session, as [crowd.fill] makes the id.
func idOf(kind string, n int) string {
	sum := md5.Sum(fmt.Appendf(nil, "%s %d", kind, n))
	return base64.RawURLEncoding.EncodeToString(sum[:12])
}

func (c *crowd) readMAC(ctx context.Context) error {
	var sealed []byte
	if err := c.db.QueryRow(ctx, `SELECT sealed_key FROM mac_keys WHERE id = 1`).Scan(&sealed); err != nil {
		return err
	}
	var err error
	c.mac, err = openMAC(c.master, sealed)
	return err
}

func openMAC(master *seal.Keys, sealed []byte) ([]byte, error) {
	return master.Open("refresh token MAC key", "1", sealed)
}

// refreshToken returns the first refresh token of the n-th session, as the server would
// have made it at the login.
func (c *crowd) refreshToken(n int) string {
	id, _ := base64.RawURLEncoding.DecodeString(sessionID(n))
	body := append([]byte{1, 0, 1}, id...) // the form's version and the key's id
	body = binary.BigEndian.AppendUint64(body, 1)
	h := hmac.New(sha256.New, c.mac)
	h.Write(body)
	return "wwrt_" + base64.RawURLEncoding.EncodeToString(append(body, h.Sum(nil)[:16]...))
}

// refreshing makes calls of Refresh: each worker refreshes sessions of its own, one
// after the other.
type refreshing struct {
	crowd  *crowd
	tokens [][]string // the tokens of each worker
}

// refreshing divides the sessions with these numbers among workers.
func (c *crowd) refreshing(workers int, numbers []int) *refreshing {
	r := &refreshing{c, make([][]string, workers)}
	for i, n := range numbers {
		r.tokens[i%workers] = append(r.tokens[i%workers], c.refreshToken(n))
	}
	return r
}

func (r *refreshing) call(worker, i int) error {
	_, _, err := r.refresh(worker, i)
	return err
}

func (r *refreshing) refresh(worker, i int) (*watchwordv1.RefreshRequest, *watchwordv1.RefreshResponse, error) {
	tokens := r.tokens[worker]
	token := &tokens[i%len(tokens)]
	req := &watchwordv1.RefreshRequest{RefreshToken: *token}
	resp, err := r.crowd.auth[worker%connections].Refresh(context.Background(), req)
	if err == nil {
		*token = resp.GetTokens().GetRefreshToken()
	}
	return req, resp, err
}

// upTo returns the numbers 0, 1, … n-1, moved by an offset.
func upTo(n, offset int) []int {
	numbers := make([]int, n)
	for i := range numbers {
		numbers[i] = offset + i
	}
	return numbers
}
