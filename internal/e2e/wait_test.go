package e2e

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/pgtest"
)

// keyCommand returns a command about the keys of an installation, on the database.
func (in *installation) keyCommand(args ...string) *exec.Cmd {
	return in.command(append(slices.Concat([]string{"key"}, args), "--master-key-file", in.masterKey)...)
}

// atReplica returns a command at a running replica, with an admin's token.
func (f *fleet) atReplica(t *testing.T, replica int, args ...string) *exec.Cmd {
	t.Helper()
	return f.at(t, f.in.replicas[replica].now().grpcAddr, args...)
}

// at does what atReplica does, at an address, such as the address of a proxy.
func (f *fleet) at(t *testing.T, addr string, args ...string) *exec.Cmd {
	t.Helper()
	return cliCommand(t, t.TempDir(), f.tokens.GetAccessToken(), append(args, "--plaintext", "--token-stdin", "--addr", addr)...)
}

// `key revoke --wait` returns when every verifier of every replica has the change: the
// revoked key's tokens are then refused everywhere. A frozen verifier and a replica that
// cannot be asked are named after the bound, with exit status 3, and delay no other verifier.
func TestKeyCommandsWait(t *testing.T) {
	f := newFleet(t, 6)
	user := f.admins[0].login(t, "admin", f.in.admin)
	kept := []string{"--plaintext", "--addr", f.in.replicas[1].now().grpcAddr}
	wantExit(t, 0, cli(t, t.TempDir(), f.in.admin+"\n", append([]string{"login", "admin", "--audience", "watchword", "--password-stdin"}, kept...)...))
	began := time.Now()
	// The revoked key has signed the kept access token, too: the command renews the token.
	r := cli(t, t.TempDir(), "", append([]string{"key", "revoke", kidOf(user.GetAccessToken()), "--wait", "--wait-for", "30s"}, kept...)...)
	for i, v := range f.verifiers {
		if _, err := v.Verify(t.Context(), user.GetAccessToken()); err == nil {
			t.Errorf("verifier %d accepts a token of the revoked key after the wait", i)
		}
	}
	wantExit(t, 0, r)
	t.Logf("key revoke --wait took %v in all: %s", time.Since(began), r.stderr)
	if !strings.Contains(r.stderr, "every watcher has the change: 6,") {
		t.Errorf("standard error is %q", r.stderr)
	}
	f.tokens = f.admins[0].login(t, "admin", f.in.admin, "watchword")
	r = run(t, f.atReplica(t, 1, "key", "revoke", kidOf(f.tokens.GetAccessToken()), "--wait")) // a token on standard input cannot be renewed
	wantExit(t, 3, r)
	if !strings.Contains(r.stderr, "the change is made, and which watchers have the change is unknown") || !strings.Contains(r.stderr, "TOKEN_INVALID") {
		t.Errorf("standard error is %q", r.stderr)
	}
	f.tokens = f.admins[1].login(t, "admin", f.in.admin, "watchword") // another replica may sign by the revoked key for some milliseconds

	notes := start(t, notesAt(t, f.in.replicas[2].now()))
	notes.awaitLog(t, notesLine)
	wantExit(t, 0, run(t, f.in.keyCommand("rotate", "--wait", "--wait-for", "30s"))) // the command works on the database, without a server
	notes.signal(t, pgtest.Freeze)
	wantOK(t, "a logout", f.admins[0].logout(callCtx(t), f.admins[0].login(t, "admin", f.in.admin))) // a second rotation changes nothing
	r = run(t, f.atReplica(t, 0, "key", "rotate", "--wait", "--wait-for", "2s"))
	wantExit(t, 3, r)
	door := newProxy(t, f.in.replicas[0].now().grpcAddr)
	patient := start(t, f.at(t, door.addr(), "key", "rotate", "--wait", "--wait-for", "60s"))
	eventually(t, runTimeout, "the change", func() error {
		if !strings.Contains(patient.printed(t), "signs from") {
			return errors.New("no key is printed")
		}
		return nil
	})
	before := door.connections()
	door.set(lineFaults{refuse: true}) // the server behind the proxy is away
	door.cut()
	eventually(t, runTimeout, "a connection without an answer", func() error {
		if door.connections() == before {
			return errors.New("no connection")
		}
		return nil
	})
	door.set(lineFaults{})
	notes.signal(t, pgtest.Thaw)
	select {
	case <-patient.exited: // the command has ended with status 0, which the end of the test checks
	case <-time.After(runTimeout):
		t.Fatalf("the command goes on after every watcher has the change: %s", patient.stderr)
	}
	if n := strings.Count(r.stderr, "\n"); n != 2 || !strings.Contains(r.stderr, `in its own words "notes"`) {
		t.Errorf("standard error names %d lines, want the frozen verifier and the error:\n%s", n, r.stderr)
	}
	if !strings.Contains(r.stdout, "signs from") {
		t.Errorf("standard output is %q, want the key", r.stdout)
	}

	f.in.replicas[2].kill()
	wantOK(t, "a logout", f.admins[0].logout(callCtx(t), f.admins[0].login(t, "admin", f.in.admin)))
	address := f.in.replicas[2].now().grpcAddr
	r = run(t, f.in.keyCommand("rotate", "--wait", "--wait-for", "5s"))
	wantExit(t, 3, r)
	if !strings.Contains(r.stderr, address+" cannot be asked") {
		t.Errorf("the killed replica is not named:\n%s", r.stderr)
	}
}

// `watchers` shows every verifier with the names that the verifier gives itself, with control
// characters escaped, and --json has every field.
func TestWatchersCommand(t *testing.T) {
	f := newFleet(t, 3)
	evil, err := authn.NewVerifier(callCtx(t), dial(t, f.in.replicas[0].now().grpcAddr).conn, authn.WithAudience("internal"),
		authn.WithName("evil\x1b[2J\nservice"), authn.WithInstance("\u202egnol"))
	if err != nil {
		t.Fatal(err)
	}
	defer evil.Close()
	keepOpen(t, f.admins[1].conn, nil).opened(t) // a watcher that opens a stream and sends no report
	var lines []string
	eventually(t, propagation, "the table", func() error {
		out := wantExit(t, 0, run(t, f.atReplica(t, 2, "watchers")))
		lines = strings.Split(out, "\n")
		if n := strings.Count(out, "  0    0s"); n < 4 {
			return fmt.Errorf("%d watchers without lag:\n%s", n, out)
		}
		return nil
	})
	out := strings.Join(lines, "\n")
	if len(lines) != 8 || !strings.HasPrefix(lines[0], "SERVICE ") || !strings.Contains(out, `evil\u001b[2J\u000aservice  \u202egnol`) ||
		!strings.Contains(out, "5 watchers, 3 replicas") || strings.Count(out, "  -    -") != 1 {
		t.Errorf("the table is\n%s", out)
	}
	var all watchwordv1.ListWatchersResponse
	printed := wantExit(t, 0, run(t, f.atReplica(t, 0, "watchers", "--json")))
	if err := protojson.Unmarshal([]byte(printed), &all); err != nil || strings.Count(printed, "\n") != 1 || len(all.GetWatchers()) != 5 || len(all.GetReplicas()) != 3 {
		t.Errorf("--json printed %s: %v", printed, err)
	}
	var plain any
	if err := json.Unmarshal([]byte(printed), &plain); err != nil {
		t.Error(err)
	}
	user := f.admins[0].login(t, "admin", f.in.admin)
	if r := run(t, cliCommand(t, t.TempDir(), user.GetAccessToken(), "watchers", "--plaintext", "--token-stdin", "--addr", f.in.replicas[0].now().grpcAddr)); r.code != 1 || !strings.Contains(r.stderr, "AUDIENCE_MISMATCH") {
		t.Errorf("with a token for another audience: %v", r)
	}
	door := newProxy(t, f.in.replicas[0].now().grpcAddr)
	watching := start(t, f.at(t, door.addr(), "watchers", "--watch", "--json"))
	further := func(what string) {
		t.Helper()
		shown := strings.Count(watching.printed(t), "\n")
		eventually(t, runTimeout, what, func() error {
			if strings.Count(watching.printed(t), "\n") == shown {
				return fmt.Errorf("%d lists", shown)
			}
			return nil
		})
	}
	further("a list")
	door.set(lineFaults{refuse: true}) // the server behind the proxy is away
	door.cut()
	watching.awaitLog(t, regexp.MustCompile("trying again"))
	door.set(lineFaults{})
	further("a list after the server is back")
}

// With --client-ca, a verifier with a certificate that is not there is named, also after a
// restart of the server; and so is each certificate's name in the list.
func TestWaitNamesAbsentCertificates(t *testing.T) {
	dir := t.TempDir()
	ca := newAuthority(t, dir, "ca")
	_, certFile, keyFile := ca.issue(t, "server", x509.ExtKeyUsageServerAuth)
	s := serve(t, t.TempDir(), "--tls-cert", certFile, "--tls-key", keyFile, "--client-ca", ca.file)
	watch := func(name string) *authn.Verifier {
		cert, _, _ := ca.issue(t, name, x509.ExtKeyUsageClientAuth)
		conn := dialConn(t, s.grpcAddr, credentials.NewTLS(ca.trusting(cert)))
		v, err := authn.NewVerifier(callCtx(t), conn, authn.WithAudience("internal"), authn.WithName(name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { v.Close() })
		return v
	}
	watch("orders")
	gone := watch("billing")
	rotate := func(code int) string {
		r := run(t, exec.CommandContext(context.Background(), watchword(t), "key", "rotate", "--datastore-uri", database(s.dir), "--wait", "--wait-for", "4s"))
		wantExit(t, code, r)
		return r.stderr
	}
	if said := rotate(0); !strings.Contains(said, "the change: 2,") {
		t.Errorf("both verifiers are here: %s", said)
	}
	gone.Close()
	want := "certificate subject CN=billing has no watcher now"
	if said := rotate(3); !strings.Contains(said, want) || strings.Contains(said, "orders") {
		t.Errorf("one verifier is away: %s", said)
	}
	s.stop(t)
	again := serve(t, s.dir, "--tls-cert", certFile, "--tls-key", keyFile, "--client-ca", ca.file)
	s.grpcAddr = again.grpcAddr
	watch("orders")
	if said := rotate(3); !strings.Contains(said, want) {
		t.Errorf("after a restart: %s", said)
	}
	watch("billing")
	if said := rotate(0); !strings.Contains(said, "the change: 2,") {
		t.Errorf("both verifiers are back: %s", said)
	}
}

// 200 verifiers at three replicas: from the moment when the last verifier refuses the tokens
// of a revoked key until `key revoke --wait` returns. -v shows the figures.
func TestSlowKeyRevokeWaits(t *testing.T) {
	slow(t)
	f := newFleet(t, 200)
	var after, inAll []time.Duration
	for range 50 {
		pair := f.admins[0].login(t, "admin", f.in.admin)
		command := f.in.keyCommand("revoke", kidOf(pair.GetAccessToken()), "--wait", "--wait-for", "30s")
		began, ended := time.Now(), make(chan result, 1)
		go func() { ended <- run(t, command) }()
		for i := 0; i < len(f.verifiers); { // one verifier after the other: the last one found is the last one to know
			if _, err := f.verifiers[i].Verify(t.Context(), pair.GetAccessToken()); err != nil {
				i++
			} else {
				time.Sleep(time.Millisecond)
			}
		}
		known := time.Now()
		wantExit(t, 0, <-ended)
		after, inAll = append(after, time.Since(known)), append(inAll, time.Since(began))
	}
	slices.Sort(after)
	slices.Sort(inAll)
	t.Logf("200 verifiers at three replicas, 50 revocations: key revoke --wait returns p50 %v, p99 %v after the last verifier has the change; the whole command takes p50 %v, p99 %v",
		after[25], after[49], inAll[25], inAll[49])
}
