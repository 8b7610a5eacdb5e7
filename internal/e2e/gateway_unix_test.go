//go:build unix

package e2e

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/watchword-auth/watchword/authn/tokensource"
	"github.com/watchword-auth/watchword/internal/strangertest"
)

// gateway is a running nginx, HAProxy or Caddy in front of a server, with the configuration
// that docs/proxies.md shows.
type gateway struct {
	*process
	kind gatewayKind
	dir  string
	addr string
	ca   *authority // the CA of the proxy's certificate for auth.example
}

// gatewayKind says how a test runs a kind of proxy in a folder of its own.
type gatewayKind struct {
	name string
	// edits hold texts of the page's block, and what replaces them: DIR stands for the
	// folder, and PORT for the port.
	edits [][2]string
	// plain finds the part of the block that the page replaces for a server without TLS.
	plain   *regexp.Regexp
	endless bool // a reload ends no stream
	args    func(dir string) []string
	reload  func(t *testing.T, g *gateway)
}

var gatewayKinds = []gatewayKind{
	{
		name: "nginx",
		edits: [][2]string{
			{"listen 443 ", "listen 127.0.0.1:PORT "},
			{"pid /run/nginx.pid;", "pid nginx.pid; daemon off; error_log stderr;"},
			{"http {\n", "http {\naccess_log off; client_body_temp_path c; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;\n"},
		},
		plain: regexp.MustCompile(`(?m)^ *grpc_pass .*$`),
		args:  func(dir string) []string { return []string{"-p", dir, "-e", "stderr", "-c", "proxy.conf"} },
		reload: func(t *testing.T, g *gateway) {
			g.signal(t, syscall.SIGHUP)
		},
	},
	{
		name:  "haproxy",
		edits: [][2]string{{"bind :443 ", "bind 127.0.0.1:PORT "}},
		plain: regexp.MustCompile(`ssl alpn h2 verify .*`),
		args:  func(dir string) []string { return []string{"-W", "-f", filepath.Join(dir, "proxy.conf")} },
		reload: func(t *testing.T, g *gateway) {
			g.signal(t, syscall.SIGUSR2)
		},
	},
	{
		name: "caddy",
		edits: [][2]string{
			{"https://auth.example {", "{\nadmin unix/DIR/admin\nskip_install_trust\nauto_https disable_redirects\n}\nhttps://auth.example:PORT {\nbind 127.0.0.1"},
		},
		endless: true,
		plain:   regexp.MustCompile(`(?ms)reverse_proxy https://10.0.0.5:50051 .*^    }$`),
		args: func(dir string) []string {
			return []string{"run", "--adapter", "caddyfile", "--config", filepath.Join(dir, "proxy.conf")}
		},
		reload: func(t *testing.T, g *gateway) {
			reload := exec.Command(g.kind.program(t), "reload", "--force", "--adapter", "caddyfile",
				"--config", filepath.Join(g.dir, "proxy.conf"), "--address", "unix/"+filepath.Join(g.dir, "admin"))
			reload.Env = environment("HOME=" + g.dir)
			wantExit(t, 0, run(t, reload))
		},
	},
}

// program returns the path of the proxy's program, which Debian may keep out of PATH.
func (k gatewayKind) program(t *testing.T) string {
	t.Helper()
	for _, name := range []string{k.name, "/usr/sbin/" + k.name} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatalf("%s is missing; Debian, Ubuntu: apt-get install %s", k.name, k.name)
	return ""
}

// block returns the configuration of docs/proxies.md for a kind of proxy.
func (k gatewayKind) block(t *testing.T) string {
	t.Helper()
	language := strings.Replace(k.name, "caddy", "caddyfile", 1)
	found := regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(repositoryFile(t, "docs/proxies.md"), -1)
	if len(found) != 1 {
		t.Fatalf("docs/proxies.md has %d blocks of %s, want 1", len(found), language)
	}
	return found[0][1]
}

// plainBlock returns the configuration for a server without TLS, with the line that the table of
// docs/proxies.md has for the kind of proxy.
func (k gatewayKind) plainBlock(t *testing.T) string {
	t.Helper()
	row := regexp.MustCompile("(?mi)^\\| " + k.name + " \\| [^|]* \\| `([^`]+)` \\|$").FindStringSubmatch(repositoryFile(t, "docs/proxies.md"))
	if row == nil {
		t.Fatalf("docs/proxies.md has no line for %s and a server without TLS", k.name)
	}
	block := regexp.MustCompile(`(?m)^ *grpc_ssl_.*\n`).ReplaceAllString(k.block(t), "")
	return k.plain.ReplaceAllLiteralString(block, row[1])
}

// replaceIn returns a text with another part. The text must have the part.
func replaceIn(t *testing.T, text, part, by string) string {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Fatalf("no %q in\n%s", part, text)
	}
	return strings.ReplaceAll(text, part, by)
}

// start runs a proxy with a configuration in front of a server, and waits until the proxy
// accepts connections. The end of the test ends the proxy.
func (k gatewayKind) start(t *testing.T, ca *authority, config, grpcAddr, httpAddr string) *gateway {
	t.Helper()
	dir, err := os.MkdirTemp("", "proxy-") // short, since a Unix socket is in the folder
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	port := freePort(t)
	g := &gateway{kind: k, dir: dir, addr: "127.0.0.1:" + port, ca: ca}
	g.writeCertificates(t)
	for _, edit := range k.edits {
		config = replaceIn(t, config, edit[0], edit[1])
	}
	config = strings.NewReplacer("DIR", dir, "PORT", port, "10.0.0.5:50051", grpcAddr, "10.0.0.5:8080", httpAddr, "/etc/"+k.name+"/tls", dir).Replace(config)
	if err := os.WriteFile(filepath.Join(dir, "proxy.conf"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(k.program(t), k.args(dir)...)
	cmd.Env = environment("HOME=" + dir)
	g.process = start(t, cmd)
	eventually(t, startTimeout, k.name+" accepts connections", func() error {
		conn, err := net.Dial("tcp", g.addr)
		if err == nil {
			conn.Close()
		}
		return err
	})
	return g
}

// writeCertificates writes the files that the configurations name into the folder of the proxy.
func (g *gateway) writeCertificates(t *testing.T) {
	t.Helper()
	_, certFile, keyFile := g.ca.issue(t, g.kind.name, x509.ExtKeyUsageServerAuth)
	read := func(file string) []byte {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	cert, key := read(certFile), read(keyFile)
	for name, data := range map[string][]byte{"auth.example.crt": cert, "auth.example.key": key,
		"auth.example.pem": append(cert[:len(cert):len(cert)], key...), "watchword-ca.crt": read(g.ca.file)} {
		if err := os.WriteFile(filepath.Join(g.dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// dial connects to the proxy from an address of the loopback network.
func (g *gateway) dial(t *testing.T, ip string) *client {
	t.Helper()
	config := g.ca.trusting()
	config.ServerName = "auth.example"
	conn, err := tokensource.Dial("passthrough:///"+g.addr, append(keepErrors(), grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return strangertest.From(ip).DialContext(ctx, "tcp", addr)
		}))...)
	if err != nil {
		t.Fatal(fmt.Errorf("dialing %s: %w", g.kind.name, err))
	}
	t.Cleanup(func() { conn.Close() })
	return newClient(conn)
}
