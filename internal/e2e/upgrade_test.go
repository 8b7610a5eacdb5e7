package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// earlier is the commit of the version that an upgrade starts from.
const earlier = "de84c22"

// release is a version of Watchword, and where its programs and sources are.
type release struct{ name, watchword, notes, tree string }

// buildEarlier builds the programs of the commit earlier, once for all tests.
var buildEarlier = sync.OnceValues(func() (release, error) {
	r := release{"earlier", filepath.Join(bin, "earlier", "watchword"), filepath.Join(bin, "earlier", "notes"), filepath.Join(bin, "earlier-tree")}
	archive := exec.Command("git", "archive", "--format=tar", earlier)
	archive.Dir = root
	var files, says bytes.Buffer
	archive.Stdout, archive.Stderr = &files, &says
	if err := archive.Run(); err != nil {
		return r, fmt.Errorf("the commit %s, from which the upgrade starts, is missing here: this test needs a clone with the whole history "+
			"(in a shallow clone: git fetch --unshallow): %w: %s", earlier, err, says.Bytes())
	}
	if err := os.MkdirAll(r.tree, 0o700); err != nil {
		return r, err
	}
	unpack := exec.Command("tar", "-x", "-C", r.tree)
	unpack.Stdin = &files
	if out, err := unpack.CombinedOutput(); err != nil {
		return r, fmt.Errorf("unpacking %s: %w: %s", earlier, err, out)
	}
	for dir, path := range map[string]string{".": "./cmd/watchword", "examples/notes": "./cmd/notes"} {
		cmd := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Dir(r.watchword)+string(filepath.Separator), path)
		cmd.Dir = filepath.Join(r.tree, dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			return r, fmt.Errorf("building %s of %s: %w: %s", path, earlier, err, out)
		}
	}
	return r, nil
})

// releases returns the earlier version and the present one.
func releases(t *testing.T) (before, now release) {
	t.Helper()
	before, err := buildEarlier()
	if err != nil {
		t.Fatal(err)
	}
	return before, release{"present", watchword(t), program(t, "notes", buildNotes), root}
}

// TestSlowUpgrade replaces the replicas of the earlier version by the present one and back
// again, one after the other, under load on one PostgreSQL database. No call fails, and no
// revocation is lost. Calls are sent again only by the retries of [tokensource.Dial]. After the
// end of the upgrade the earlier version does no harm.
func TestSlowUpgrade(t *testing.T) {
	slow(t)
	before, now := releases(t)
	f := newMixture(t, before)
	a, b := f.start(t, before), f.start(t, before)
	l := f.load(t, map[string]string{"earlier": f.serveNotes(t, before), "present": f.serveNotes(t, now)})
	l.phase(t, "both replicas of the earlier version")
	wantExit(t, 0, run(t, f.command(now, "migrate")))
	l.phase(t, "after watchword migrate of the present version")
	f.replace(t, l, a, now, "the first replica is of the present version")
	f.replace(t, l, b, now, "both replicas of the present version")
	wantExit(t, 0, run(t, f.command(now, "key", "rotate", "--master-key-file", f.masterKey)))
	l.phase(t, "after a rotation of keys by the present version")
	f.replace(t, l, b, before, "one replica is of the earlier version again")
	f.replace(t, l, a, before, "both replicas of the earlier version again")
	wantExit(t, 0, run(t, f.command(before, "key", "rotate", "--master-key-file", f.masterKey)))
	l.phase(t, "after a rotation of keys by the earlier version")
	f.replace(t, l, a, now, "forward again")
	f.replace(t, l, b, now, "both replicas of the present version again")
	l.end(t)
	t.Log(l.transcript())
	f.exclude(t, before, now)
}

// exclude finishes the upgrade while a server of the earlier version runs. The earlier version
// is so old that its servers write no row into the table replicas. The server of the earlier
// version turns unready and can revoke nothing, and no further server of the version starts.
func (f *mixture) exclude(t *testing.T, before, now release) {
	t.Helper()
	old := f.serve(t, before, nil)
	wantOK(t, "readiness of the earlier version", ready(old))
	c := dial(t, old.grpcAddr)
	admin := c.login(t, "admin", f.admin, "watchword")
	user := c.create(t, admin, "of-the-earlier-version", newPassword())
	disable := &watchwordv1.UpdateUserRequest{User: &watchwordv1.User{Id: user.GetId(), Disabled: true}}
	wantExit(t, 0, run(t, f.command(now, "migrate", "--finish")))
	_, err := c.UpdateUser(bearer(callCtx(t), admin), disable)
	wantRefusal(t, "a change by the earlier version", err, "STORE_UNAVAILABLE")
	eventually(t, startTimeout, "the server of the earlier version is not ready", func() error {
		if ready(old) == nil {
			return errors.New("ready")
		}
		return nil
	})
	refused := run(t, func() *exec.Cmd { cmd := f.serveCommand(f.uri); cmd.Path = before.watchword; return cmd }())
	if wantExit(t, 1, refused); !strings.Contains(refused.stderr, "which cannot work with it") {
		t.Errorf("a start of the earlier version says %q", refused.stderr)
	}
	wantExit(t, 0, run(t, f.command(now, "service", "create", "search")))
	_, err = dial(t, f.replicas[0].grpcAddr).UpdateUser(bearer(callCtx(t), admin), disable)
	wantOK(t, "the change by the present version", err)
}

// mixture holds replicas of several versions on one database.
type mixture struct {
	*installation
	balancer *proxy           // for services: leads to one replica, as a load balancer for TCP
	resolver *manual.Resolver // for clients: has the addresses of all replicas
	moved    *manual.Resolver // has the addresses of the ready replicas, as a load balancer for gRPC
	replicas []*member
}

// member is a replica of a mixture. Its addresses stay the same.
type member struct {
	*server
	release release
}

// newMixture makes a database with the schema of a version.
func newMixture(t *testing.T, r release) *mixture {
	t.Helper()
	in := installBy(t, r.watchword, longLifetimes...)
	f := &mixture{
		installation: in, balancer: newProxy(t, "127.0.0.1:1"),
		resolver: manual.NewBuilderWithScheme("replicas"), moved: manual.NewBuilderWithScheme("ready"),
	}
	for _, to := range []*manual.Resolver{f.resolver, f.moved} {
		to.InitialState(resolver.State{})
	}
	return f
}

func (f *mixture) command(r release, args ...string) *exec.Cmd {
	cmd := exec.Command(r.watchword, args...)
	cmd.Env = environment("WATCHWORD_DATASTORE_URI=" + f.uri)
	return cmd
}

// serve starts a replica, at the addresses of the server at; nil for a new replica.
func (f *mixture) serve(t *testing.T, r release, at *server) *server {
	t.Helper()
	cmd := f.serveCommand(f.uri)
	cmd.Path = r.watchword
	cmd.Args = append(cmd.Args, "--shutdown-delay", "2s")
	if at != nil {
		cmd.Args = append(cmd.Args, "--grpc-addr", at.grpcAddr, "--http-addr", at.httpAddr)
	}
	s := serveCommand(t, "", cmd)
	if s.admin != "" {
		f.admin = s.admin
	}
	return s
}

// start adds a replica.
func (f *mixture) start(t *testing.T, r release) *member {
	t.Helper()
	m := &member{f.serve(t, r, nil), r}
	f.replicas = append(f.replicas, m)
	f.balancer.setBackend(m.grpcAddr)
	for _, to := range []*manual.Resolver{f.resolver, f.moved} {
		to.InitialState(resolver.State{Addresses: f.addresses(nil)})
	}
	return m
}

// addresses returns the addresses of all replicas but one.
func (f *mixture) addresses(but *member) (addresses []resolver.Address) {
	for _, m := range f.replicas {
		if m != but {
			addresses = append(addresses, resolver.Address{Addr: m.grpcAddr})
		}
	}
	return addresses
}

// replace replaces a replica by one of another version: SIGTERM; the load balancers take the
// other replica when /readyz says so; the replica ends; the other version starts.
func (f *mixture) replace(t *testing.T, l *workload, m *member, by release, phase string) {
	t.Helper()
	m.leave()
	m.leave = nil
	m.signal(t, syscall.SIGTERM)
	eventually(t, startTimeout, "readiness turns off", func() error {
		resp, err := http.Get("http://" + m.httpAddr + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable {
			return errors.New(resp.Status)
		}
		return nil
	})
	others := f.addresses(m)
	f.balancer.setBackend(others[0].Addr)
	f.moved.UpdateState(resolver.State{Addresses: others})
	select { // a second SIGTERM would end the server at once
	case <-m.exited:
	case <-time.After(stopTimeout):
		t.Fatalf("%s did not stop within %v", m.cmd, stopTimeout)
	}
	m.server, m.release = f.serve(t, by, m.server), by
	f.moved.UpdateState(resolver.State{Addresses: f.addresses(nil)})
	l.phase(t, phase)
	l.checkReplica(t, m)
}

// dial connects to every replica, by the options of [tokensource.Dial].
func (f *mixture) dial(t *testing.T, to *manual.Resolver, opts ...grpc.DialOption) *client {
	t.Helper()
	conn, err := tokensource.Dial(to.Scheme()+":///auth.test", append(append(keepErrors(), opts...),
		grpc.WithResolvers(to), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return newClient(conn)
}

// serveNotes runs the guarded service of a version, and returns its address.
func (f *mixture) serveNotes(t *testing.T, r release) string {
	t.Helper()
	cmd := exec.Command(r.notes, "--addr", "127.0.0.1:0", "--auth-addr", f.balancer.addr())
	cmd.Env = environment()
	return start(t, cmd).awaitLog(t, notesLine)[1]
}
