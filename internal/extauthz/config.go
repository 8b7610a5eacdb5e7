package extauthz

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/tokensource"
	"github.com/watchword-auth/watchword/internal/reload"
	"github.com/watchword-auth/watchword/internal/settings"
	"github.com/watchword-auth/watchword/internal/transport"
)

// Config holds the flags of `watchword-ext-authz serve`.
type Config struct {
	GRPCAddr string   `name:"grpc-addr" default:"127.0.0.1:50052" help:"Address for Envoy, and for the gRPC health service."`
	HTTPAddr string   `name:"http-addr" default:"127.0.0.1:8081" help:"Address of /healthz, /readyz and /metrics."`
	TLSCert  string   `name:"tls-cert" type:"path" placeholder:"FILE" help:"Certificate chain of both addresses, PEM. Read again when the file changes."`
	TLSKey   string   `name:"tls-key" type:"path" placeholder:"FILE" help:"Private key of the certificate, PEM."`
	ClientCA string   `name:"client-ca" type:"path" placeholder:"FILE" help:"CAs of Envoy's client certificates, PEM: then the gRPC address needs a client certificate."`
	Insecure bool     `help:"Allow addresses other than loopback without TLS. Everyone on the path can read the callers' tokens."`
	Audience []string `default:"internal" placeholder:"NAME" help:"Audience that access tokens must be for, on routes that name no audience. May be given several times."`

	Addr         string `default:"127.0.0.1:50051" help:"Address of the Watchword server's gRPC API."`
	CAFile       string `name:"ca-file" type:"path" placeholder:"FILE" help:"CA of the Watchword server's certificate, PEM. Default: the system's CAs."`
	CertFile     string `name:"cert-file" type:"path" placeholder:"FILE" help:"Certificate to show to the Watchword server, PEM, for a server with --client-ca."`
	KeyFile      string `name:"key-file" type:"path" placeholder:"FILE" help:"Private key of --cert-file, PEM."`
	ServerName   string `help:"Name that the Watchword server's certificate must have. Default: the host in --addr."`
	Plaintext    bool   `help:"Connect without TLS to a Watchword server on this machine."`
	SnapshotFile string `type:"path" placeholder:"FILE" help:"File that keeps the trust bundle, to start while the Watchword server is away."`

	settings.Log
}

// check returns an error with a line for each fault of the flags.
func (c *Config) check() error {
	var faults []error
	for _, address := range []struct{ flag, value string }{{"--grpc-addr", c.GRPCAddr}, {"--http-addr", c.HTTPAddr}} {
		host, _, err := net.SplitHostPort(address.value)
		switch {
		case err != nil:
			faults = append(faults, fmt.Errorf("%s: %q is not HOST:PORT", address.flag, address.value))
		case c.TLSCert == "" && !c.Insecure && !transport.LoopbackListener(host):
			faults = append(faults, fmt.Errorf("%s: not a loopback address, so tokens would travel in the clear: set --tls-cert and --tls-key, or --insecure", address.flag))
		}
	}
	for _, rule := range []struct {
		broken bool
		text   string
	}{
		{(c.TLSCert == "") != (c.TLSKey == ""), "--tls-cert and --tls-key go together"},
		{c.ClientCA != "" && c.TLSCert == "", "--client-ca needs --tls-cert and --tls-key"},
		{(c.CertFile == "") != (c.KeyFile == ""), "--cert-file and --key-file go together"},
		{c.Plaintext && (c.CAFile != "" || c.CertFile != "" || c.ServerName != ""), "--plaintext contradicts --ca-file, --cert-file and --server-name"},
	} {
		if rule.broken {
			faults = append(faults, errors.New(rule.text))
		}
	}
	return errors.Join(faults...)
}

// dial returns a connection to the Watchword server.
func (c *Config) dial(logger *slog.Logger) (conn *grpc.ClientConn, release func(), err error) {
	if c.Plaintext {
		conn, err = tokensource.Dial(c.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		return conn, func() {}, err
	}
	files, err := authn.TLSFromFiles(authn.TLSFiles{CAFile: c.CAFile, CertFile: c.CertFile, KeyFile: c.KeyFile, ServerName: c.ServerName, Logger: logger})
	if err != nil {
		return nil, nil, fmt.Errorf("--ca-file, --cert-file, --key-file: %w", err)
	}
	conn, err = tokensource.Dial(c.Addr, grpc.WithTransportCredentials(files))
	return conn, func() { _ = files.Close() }, err // Close returns nil
}

// tls returns the TLS configurations of --grpc-addr and --http-addr, which are nil without
// --tls-cert, and adds the files to the set, which reads changed files again.
func (c *Config) tls(files *reload.Set) (forGRPC, forHTTP *tls.Config, err error) {
	if c.TLSCert == "" {
		return nil, nil, nil
	}
	pair, err := reload.KeyPair(files, "--tls-cert, --tls-key", c.TLSCert, c.TLSKey)
	if err != nil {
		return nil, nil, err
	}
	var cas *reload.Value[*x509.CertPool]
	if c.ClientCA != "" {
		if cas, err = reload.CAs(files, "--client-ca", c.ClientCA); err != nil {
			return nil, nil, err
		}
	}
	forGRPC = reload.ServerTLS("h2", pair, cas, tls.RequireAndVerifyClientCert)
	return forGRPC, reload.ServerTLS("http/1.1", pair, nil, tls.NoClientCert), nil
}

// listen listens on --grpc-addr and on --http-addr.
func (c *Config) listen(ctx context.Context) (forGRPC, forHTTP net.Listener, err error) {
	if forGRPC, err = transport.Listen(ctx, "--grpc-addr", c.GRPCAddr); err != nil {
		return nil, nil, err
	}
	if forHTTP, err = transport.Listen(ctx, "--http-addr", c.HTTPAddr); err != nil {
		return nil, nil, errors.Join(err, forGRPC.Close())
	}
	return forGRPC, forHTTP, nil
}
