package e2e

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

const watchwordIssuer = "https://auth.example.com"

// A spire is a SPIRE server with an agent on this machine, and a Watchword server that the
// commands of docs/federation.md make trust the SPIRE server.
type spire struct {
	*server
	home   string            // the working directory of the commands
	docs   *strings.Replacer // puts the addresses of the test in the place of those of the documentation
	text   string            // the section of the documentation
	socket string            // the socket of the SPIRE server, for its commands
	agent  *workloadapi.Client
}

// A process gets JWT-SVIDs from a real SPIRE agent, and exchanges them. The commands and the
// configuration are those of docs/federation.md. The keys come from a file at first, and then from
// the bundle endpoint of the SPIRE server. SPIRE changes its key while the process calls a guarded
// service: no call fails. A JWT-SVID for another audience is refused.
func TestSlowSPIRE(t *testing.T) {
	slow(t)
	s := startSPIRE(t)
	s.run(t, "spire-server bundle show")
	s.run(t, ".bin/watchword issuer add spire --issuer https://spire.example.org --jwks-file")
	s.run(t, ".bin/watchword service create orders")
	s.run(t, ".bin/watchword service bind orders")
	c := dial(t, s.grpcAddr)
	exchange := func(audience string, more ...string) error {
		resp, err := c.ExchangeToken(callCtx(t), &watchwordv1.ExchangeTokenRequest{SubjectToken: s.fetch(t, audience, more...)})
		noteSecret(resp.GetAccessToken())
		return err
	}
	wantOK(t, "keys from a file", exchange(watchwordIssuer))
	wantRefusal(t, "another audience", exchange("https://other.example.com"), "ASSERTION_INVALID")
	wantRefusal(t, "a second audience", exchange(watchwordIssuer, "https://other.example.com"), "ASSERTION_INVALID")

	s.command(t, ".bin/watchword issuer remove spire")
	wantRefusal(t, "no trusted issuer", exchange(watchwordIssuer), "ASSERTION_INVALID")
	s.run(t, ".bin/watchword issuer add spire --issuer https://spire.example.org --jwks-uri")
	s.run(t, ".bin/watchword service bind orders")
	wantOK(t, "keys from the bundle endpoint", exchange(watchwordIssuer))

	call, first := s.callsByWorkload(t), s.fetch(t, watchwordIssuer)
	before := call()
	began := time.Now()
	key := s.changeKey(t)
	for before == call() || kidOf(s.fetch(t, watchwordIssuer)) != key {
		if time.Since(began) > 2*time.Minute {
			t.Fatal("the process still has the token of the old key")
		}
		time.Sleep(100 * time.Millisecond)
	}
	wantOK(t, "the new key", exchange(watchwordIssuer))
	admin := c.login(t, "admin", s.server.admin, "watchword")
	trusted, err := watchwordv1.NewFederationServiceClient(c.conn).GetIssuer(bearer(callCtx(t), admin), &watchwordv1.GetIssuerRequest{Name: "spire"})
	if text := trusted.String(); err != nil || !strings.Contains(text, key) || !strings.Contains(text, kidOf(first)) {
		t.Errorf("the keys %s and %s are not both among %s (%v)", key, kidOf(first), text, err)
	}
	t.Logf("from kid %s to kid %s within %v, and every call succeeded", kidOf(first), key, time.Since(began))
}

// startSPIRE runs a SPIRE server and an agent, with the configuration of the documentation, and a
// Watchword server.
func startSPIRE(t *testing.T) *spire {
	t.Helper()
	home, err := os.MkdirTemp("", "spire-") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	ca := newAuthority(t, home, "bundle-ca")
	_, cert, key := ca.issue(t, "bundle", x509.ExtKeyUsageServerAuth)
	s := &spire{home: home, text: section(t, "docs/federation.md", "SPIRE"), socket: filepath.Join(home, "server.sock")}
	port, bundle := freePort(t), freePort(t)
	s.docs = strings.NewReplacer(
		"https://bundle.example.org:8443", "https://127.0.0.1:"+bundle, `"0.0.0.0"`, `"127.0.0.1"`, "8443", bundle,
		"/etc/spire/bundle.crt", cert, "/etc/spire/bundle.key", key, "unix:uid:1000", fmt.Sprint("unix:uid:", os.Getuid()),
		"spire-server entry create", "spire-server entry create -jwtSVIDTTL 12 -socketPath "+s.socket, "bundle show", "bundle show -socketPath "+s.socket,
	)
	s.configure(t, port)
	s.start(t, "spire-server", "run", "-config", "server.conf")
	eventually(t, startTimeout, "the SPIRE server", func() error {
		out, err := s.spire("bundle", "show", "-socketPath", s.socket)
		s.write(t, "root.pem", out)
		return err
	})
	s.run(t, "spire-server entry create")
	token, err := s.spire("token", "generate", "-spiffeID", "spiffe://example.org/host", "-socketPath", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	s.start(t, "spire-agent", "run", "-config", "agent.conf", "-joinToken", strings.TrimSpace(strings.TrimPrefix(token, "Token: ")))
	if s.agent, err = workloadapi.New(t.Context(), workloadapi.WithAddr("unix://"+home+"/agent.sock")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.agent.Close() })
	if err := os.Mkdir(filepath.Join(home, ".bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(watchword(t), filepath.Join(home, ".bin", "watchword")); err != nil {
		t.Fatal(err)
	}
	s.server = serve(t, t.TempDir(), "--issuer", watchwordIssuer, "--access-ttl", "30s")
	return s
}

// configure writes the configurations of the SPIRE server, in which the configuration of the
// documentation stands, and of the agent.
func (s *spire) configure(t *testing.T, port string) {
	t.Helper()
	config := regexp.MustCompile("(?s)```hcl\n(.*?)```").FindStringSubmatch(s.text)
	if config == nil {
		t.Fatal("the documentation has no configuration")
	}
	s.write(t, "server.conf", s.docs.Replace(strings.Replace(config[1], "server {", fmt.Sprintf(`plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "%[1]s/spire.sqlite3" } }
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
}
server {
  bind_address = "127.0.0.1"
  bind_port = "%[2]s"
  socket_path = "%[3]s"
  data_dir = "%[1]s/server"`, s.home, port, s.socket), 1)))
	s.write(t, "agent.conf", fmt.Sprintf(`agent {
  trust_domain = "example.org"
  server_address = "127.0.0.1"
  server_port = "%[2]s"
  socket_path = "%[1]s/agent.sock"
  data_dir = "%[1]s/agent"
  trust_bundle_path = "root.pem"
}
plugins {
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
  WorkloadAttestor "unix" { plugin_data {} }
}`, s.home, port))
}

func (s *spire) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.home, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// tool returns the path of a program of SPIRE. make builds the programs: compiling takes minutes.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(root, ".bin", name))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("%v: run `make .bin/%s`", err, name)
	}
	return path
}

// start runs a program of SPIRE until the end of the test.
func (s *spire) start(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(tool(t, name), args...)
	cmd.Dir = s.home
	start(t, cmd)
}

// spire runs a command of spire-server, and returns what the command prints.
func (s *spire) spire(args ...string) (string, error) {
	out, err := exec.Command(filepath.Join(root, ".bin", "spire-server"), args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("spire-server %v: %w: %s", args, err, out)
	}
	return string(out), err
}

// run runs the command of the documentation that begins with a text.
func (s *spire) run(t *testing.T, begins string) {
	t.Helper()
	_, after, ok := strings.Cut(s.text, "\n    "+begins)
	if !ok {
		t.Fatalf("the documentation has no command %q", begins)
	}
	rest, _, _ := strings.Cut(after, "\n")
	s.command(t, s.docs.Replace(begins+rest))
}

// command runs a command in a shell, as an operator does, and returns what the command prints.
func (s *spire) command(t *testing.T, line string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", line)
	cmd.Dir = s.home
	cmd.Env = environment("PATH=" + filepath.Dir(tool(t, "spire-server")) + ":" + os.Getenv("PATH"))
	if s.server != nil {
		cmd.Env = append(cmd.Env, "WATCHWORD_DATASTORE_URI="+database(s.dir))
	}
	return wantExit(t, 0, run(t, cmd))
}

// fetch returns a JWT-SVID from the agent. The agent learns of a new registration within seconds.
func (s *spire) fetch(t *testing.T, audience string, more ...string) (raw string) {
	t.Helper()
	eventually(t, startTimeout, "the agent", func() error {
		svid, err := s.agent.FetchJWTSVID(callCtx(t), jwtsvid.Params{Audience: audience, ExtraAudiences: more})
		if err == nil {
			raw = noteSecret(svid.Marshal())
		}
		return err
	})
	return raw
}

// callsByWorkload returns a function that calls a guarded service in this process. The calls carry
// tokens of tokensource.Workload. The function returns the id of the token with which the service
// was called.
func (s *spire) callsByWorkload(t *testing.T) func() string {
	t.Helper()
	const method = "/orders.Service/Call"
	conn := dialConn(t, s.grpcAddr, insecure.NewCredentials())
	verifier, err := authn.NewVerifier(callCtx(t), conn, authn.WithAudience("internal"), authn.WithMethodRule(method, &watchwordv1.Access{Roles: []string{"reader"}}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { verifier.Close() })
	guarded := grpc.NewServer(append(verifier.ServerOptions(), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		p, _ := authn.FromContext(stream.Context())
		if p.Kind() != watchwordv1.UserKind_USER_KIND_SERVICE || p.Username() != "orders" || p.SessionID() != "" {
			t.Errorf("the caller is %v", p)
		}
		return stream.SendMsg(wrapperspb.String(p.TokenID()))
	}))...)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go guarded.Serve(listener)
	t.Cleanup(guarded.Stop)
	source, err := tokensource.Workload(conn, func(context.Context) (string, error) { return s.fetch(t, watchwordIssuer), nil }, tokensource.WithAudience("internal"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { source.Close() })
	service, err := grpc.NewClient(listener.Addr().String(), append(source.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { service.Close() })
	return func() string {
		answer := new(wrapperspb.StringValue)
		if err := service.Invoke(callCtx(t), method, &emptypb.Empty{}, answer); err != nil {
			t.Fatal(err)
		}
		return answer.GetValue()
	}
}

// changeKey lets the SPIRE server sign JWT-SVIDs with a new key, and returns the id of the key.
func (s *spire) changeKey(t *testing.T) string {
	t.Helper()
	out, err := s.spire("localauthority", "jwt", "prepare", "-output", "json", "-socketPath", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Prepared struct {
			ID string `json:"authority_id"`
		} `json:"prepared_authority"`
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil || answer.Prepared.ID == "" {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := s.spire("localauthority", "jwt", "activate", "-authorityID", answer.Prepared.ID, "-socketPath", s.socket); err != nil {
		t.Fatal(err)
	}
	return answer.Prepared.ID
}
