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

// installation holds a database on PostgreSQL and the replicas of Watchword.
type installation struct {
	t         *testing.T
	uri       string // the database's URI through the proxies, for the replicas
	direct    string // the database's URI on the first server, for the tests
	primary   *pgtest.Cluster
	standby   *pgtest.Cluster // nil without a standby
	slots     [2]*proxy       // proxies to the two database servers
	at        int             // the index of the primary's proxy in slots
	masterKey string          // the path of the file
	flags     []string
	admin     string // the password that the first start printed
	replicas  []*replica
}

// replica is a server that a test may kill and start again.
type replica struct {
	*installation
	door *proxy // the fixed address for clients; the server's port changes with each start

	mu     sync.Mutex
	server *server
}

// install makes an installation with a schema and without replicas. The replicas' URI
// names two proxies: one for the primary, and one for a standby.
func install(t *testing.T, flags ...string) *installation {
	t.Helper()
	return installBy(t, watchword(t), flags...)
}

// installBy is install with the schema of the program at the path migrates.
func installBy(t *testing.T, migrates string, flags ...string) *installation {
	t.Helper()
	in := &installation{
		t: t, primary: pgtest.Start(t, pgtest.Options{}), masterKey: filepath.Join(t.TempDir(), "master-key"), flags: flags,
	}
	in.direct = in.primary.URI(t)
	in.slots = [2]*proxy{newProxy(t, in.primary.Addr()), newProxy(t, "127.0.0.1:1")}
	database, err := url.Parse(in.direct)
	if err != nil {
		t.Fatal("the database's URI is malformed")
	}
	keepDatabase(t, in.superuser)
	database.Host = in.slots[0].addr() + "," + in.slots[1].addr()
	query := database.Query()
	query.Set("target_session_attrs", "read-write")
	database.RawQuery = query.Encode()
	in.uri = database.String()
	wantExit(t, 0, cli(t, t.TempDir(), "", "key", "create-master-key", in.masterKey))
	noteMasterKeys(in.masterKey)
	migrate := in.command("migrate")
	migrate.Path = migrates
	wantExit(t, 0, run(t, migrate))
	return in
}

// command returns a watchword command for the database. The URI contains a password, so
// the command gets the URI in a variable and not as an argument.
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
			r.t.Error("two starts printed a password, want only the first")
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

// kill ends the replica by SIGKILL.
func (r *replica) kill() { r.now().kill() }

// restart starts the replica again.
func (r *replica) restart() {
	r.t.Helper()
	r.run(serveCommand(r.t, "", r.serveCommand(r.uri)))
}

// dial connects to the replica. After a restart, the connection is back within 100 ms.
func (r *replica) dial(t *testing.T) *client {
	t.Helper()
	conn, err := grpc.NewClient(r.door.addr(), append(keepErrors(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second, Backoff: backoff.Config{
			BaseDelay: 10 * time.Millisecond, Multiplier: 1.5, Jitter: 0.5, MaxDelay: 100 * time.Millisecond,
		}}))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return newClient(conn)
}

// follow gives the primary a standby, behind the other proxy.
func (in *installation) follow(synchronous bool) {
	in.t.Helper()
	in.standby = in.primary.Standby(in.t, synchronous)
	in.slots[1-in.at].move(in.standby.Addr())
}

// promote makes the standby the primary. The old primary must be down.
func (in *installation) promote() {
	in.t.Helper()
	in.standby.Promote()
	in.primary, in.standby, in.at = in.standby, nil, 1-in.at
}

// superuser returns the URI of the installation's database for the superuser.
func (in *installation) superuser() string {
	return strings.Replace(in.primary.Superuser(), "/postgres?", in.database()+"?", 1)
}

// database returns the path of the database's URI.
func (in *installation) database() string {
	u, _ := url.Parse(in.direct)
	return u.Path
}
