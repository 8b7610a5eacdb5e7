package authn

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/watchword-auth/watchword/internal/reload"
)

// TLSFiles names the files of a client's TLS. The zero value trusts the CAs of the operating
// system, and shows no certificate.
type TLSFiles struct {
	CAFile     string       // CA of the server's certificate, PEM; empty: the CAs of the operating system
	CertFile   string       // chain of the client's certificate, PEM; empty: the client shows no certificate
	KeyFile    string       // private key of the client's certificate, PEM
	ServerName string       // name that the server's certificate must have; empty: the host of the connection's target
	Logger     *slog.Logger // for changes and faults of the files; nil: slog.Default()
}

// TLSCredentials are the credentials of gRPC connections that read their files again: give
// them to grpc.WithTransportCredentials. [TLSFromFiles] makes TLSCredentials. TLSCredentials may
// be used by any number of connections at once.
type TLSCredentials struct {
	files      *reload.Set
	cas        *reload.Value[*x509.CertPool]   // nil: the CAs of the operating system
	pair       *reload.Value[*tls.Certificate] // nil: no certificate
	serverName string

	stop    context.CancelFunc
	looking *sync.WaitGroup
}

// TLSFromFiles reads the files, and returns credentials for the client's side of a connection.
// TLSCredentials read the files again until [TLSCredentials.Close]: a change of a file counts
// within some two seconds, for new connections. An open connection goes on.
//
// Replace a file by renaming a new file, or change a link as Kubernetes does. A certificate
// counts only together with its private key. If a new file cannot be used, the old content
// stays in use, and the log has one line, and one more when the file is good again. The
// certificate and the CA are judged each on its own.
//
// Errors: a file that cannot be read or used; CertFile without KeyFile, or KeyFile without
// CertFile.
func TLSFromFiles(from TLSFiles) (*TLSCredentials, error) {
	if (from.CertFile == "") != (from.KeyFile == "") {
		return nil, errors.New("authn: TLSFiles: CertFile and KeyFile go together")
	}
	c := &TLSCredentials{files: reload.NewSet(cmp.Or(from.Logger, slog.Default())), serverName: from.ServerName}
	var errCA, errPair error
	if from.CAFile != "" {
		c.cas, errCA = reload.CAs(c.files, "authn: CAFile", from.CAFile)
	}
	if from.CertFile != "" {
		c.pair, errPair = reload.KeyPair(c.files, "authn: CertFile, KeyFile", from.CertFile, from.KeyFile)
	}
	if err := errors.Join(errCA, errPair); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	c.stop, c.looking = stop, new(sync.WaitGroup)
	c.looking.Go(func() { c.files.Run(ctx) })
	return c, nil
}

// Close ends the reading. Connections may go on using the credentials, with the content read
// last. Close may be called again, and always returns nil.
func (c *TLSCredentials) Close() error {
	c.stop()
	c.looking.Wait()
	return nil
}

// TLSFileStatus is the state of the CAs or of the certificate of [TLSCredentials].
type TLSFileStatus struct {
	Files    []string
	ReadAt   time.Time // when the content in use was read
	NotAfter time.Time // expiry of the certificate, or of the last CA
	Fault    error     // why the present files cannot be used; nil if the present files are in use
}

// Status returns the state of the CAs and of the certificate, for metrics: of those that have
// files.
func (c *TLSCredentials) Status() (all []TLSFileStatus) {
	for _, s := range c.files.Status() {
		all = append(all, TLSFileStatus{s.Files, s.ReadAt, s.NotAfter, s.Fault})
	}
	return all
}

// present returns the credentials as the files are now. Without a cache of sessions in the
// client, every connection checks the server's certificate.
func (c *TLSCredentials) present() credentials.TransportCredentials {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.serverName}
	if c.cas != nil {
		config.RootCAs = c.cas.Get()
	}
	if c.pair != nil {
		config.Certificates = []tls.Certificate{*c.pair.Get()}
	}
	return credentials.NewTLS(config)
}

// ClientHandshake is for gRPC.
func (c *TLSCredentials) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.present().ClientHandshake(ctx, authority, conn)
}

// ServerHandshake returns an error: TLSCredentials are for clients.
func (c *TLSCredentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("authn: TLSCredentials are for clients")
}

// Info is for gRPC.
func (c *TLSCredentials) Info() credentials.ProtocolInfo { return c.present().Info() }

// Clone returns credentials that share the files, and the end of the reading, with c.
func (c *TLSCredentials) Clone() credentials.TransportCredentials {
	clone := *c
	return &clone
}

// OverrideServerName sets the name that the server's certificate must have. Call
// OverrideServerName before the first connection: it is for gRPC, and [TLSFiles] has the field
// ServerName.
func (c *TLSCredentials) OverrideServerName(name string) error {
	c.serverName = name
	return nil
}
