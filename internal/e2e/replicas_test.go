package e2e

import (
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/watchword-auth/watchword/internal/pgtest"
)

// installation is a database on PostgreSQL, and the replicas over it.
type installation struct {
	t         *testing.T
	uri       string // as the replicas are given it
	direct    string // of the database on the first server, for us
	primary   *pgtest.Cluster
	standby   *pgtest.Cluster // nil: none
	slots     [2]*proxy       // before the database servers: the primary is at one of them
	at        int             // which one
	masterKey string
	flags     []string
	admin     string // the password that the first start printed
	replicas  []*replica
}

// replica is a server, or the place of one: it may be killed and started again.
type replica struct {
	*installation
	door *proxy // where clients find it, whatever port it has

	mu     sync.Mutex
	server *server
}

// install makes an installation with a schema, and without replicas. The replicas
// reach its database through proxies, of which they know two, as of a primary and
// a standby.
func install(t *testing.T, flags ...string) *installation {
	t.Helper()
	in := &installation{
		t: t, primary: pgtest.Start(t, pgtest.Options{}), masterKey: filepath.Join(t.TempDir(), "master-key"), flags: flags,
	}
	in.direct = in.primary.URI(t)
	in.slots = [2]*proxy{newProxy(t, in.primary.Addr()), newProxy(t, "127.0.0.1:1")}
	database, err := url.Parse(in.direct)
	if err != nil {
		t.Fatal("the URI of the database cannot be read")
	}
	password, _ := database.User.Password()
	noteSecret(password)
	database.Host = in.slots[0].addr() + "," + in.slots[1].addr()
	query := database.Query()
	query.Set("target_session_attrs", "read-write")
	database.RawQuery = query.Encode()
	in.uri = database.String()
	wantExit(t, 0, cli(t, t.TempDir(), "", "key", "create-master-key", in.masterKey))
	wantExit(t, 0, run(t, in.command("migrate")))
	return in
}

// command runs a watchword command on the database; its URI holds a password.
func (in *installation) command(args ...string) *exec.Cmd {
	in.t.Helper()
	cmd := exec.Command(watchword(in.t), args...)
	cmd.Env = environment("WATCHWORD_DATASTORE_URI=" + in.uri)
	return cmd
}

func (in *installation) serveCommand(uri string) *exec.Cmd {
	cmd := in.command(append([]string{"serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0",
		"--issuer", "http://auth.test", "--master-key-file", in.masterKey}, in.flags...)...)
	cmd.Env = []string{"WATCHWORD_DATASTORE_URI=" + uri}
	return cmd
}

// replicate adds a replica.
func (in *installation) replicate(t *testing.T) *replica {
	t.Helper()
	return in.replicateOver(t, in.uri)
}

func (in *installation) replicateOver(t *testing.T, uri string) *replica {
	t.Helper()
	r := &replica{installation: in, door: newProxy(t, "127.0.0.1:1")}
	r.run(serveCommand(t, "", in.serveCommand(uri)))
	in.replicas = append(in.replicas, r)
	return r
}

func (r *replica) run(s *server) {
	if s.admin != "" {
		if r.installation.admin != "" {
			r.t.Error("two starts have printed a password")
		}
		r.installation.admin = s.admin
	}
	r.mu.Lock()
	r.server = s
	r.mu.Unlock()
	r.door.move(s.grpcAddr)
}

func (r *replica) now() *server {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.server
}

// kill ends the replica as a power cut would.
func (r *replica) kill() { r.now().kill() }

// restart starts it again.
func (r *replica) restart() {
	r.t.Helper()
	r.run(serveCommand(r.t, "", r.serveCommand(r.uri)))
}

// dial connects to wherever the replica is, soon after it is there again.
func (r *replica) dial(t *testing.T) *client {
	t.Helper()
	conn, err := grpc.NewClient(r.door.addr(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second, Backoff: backoff.Config{
			BaseDelay: 10 * time.Millisecond, Multiplier: 1.5, Jitter: 0.5, MaxDelay: 100 * time.Millisecond,
		}}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return newClient(conn)
}

// follow gives the primary a standby, at the other slot.
func (in *installation) follow(synchronous bool) {
	in.t.Helper()
	in.standby = in.primary.Standby(in.t, synchronous)
	in.slots[1-in.at].move(in.standby.Addr())
}

// promote makes the standby the primary. The one that was must be down.
func (in *installation) promote() {
	in.t.Helper()
	in.standby.Promote()
	in.primary, in.standby, in.at = in.standby, nil, 1-in.at
}

// superuser is the URI of the installation's database for the superuser.
func (in *installation) superuser() string {
	return strings.Replace(in.primary.Superuser(), "/postgres?", in.database()+"?", 1)
}

// database is the path of the database in a URI.
func (in *installation) database() string {
	u, _ := url.Parse(in.direct)
	return u.Path
}
