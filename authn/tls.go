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

// TLSFiles names the files of a client's TLS. A client with the zero value trusts the CAs of
// the operating system, and shows no certificate.
type TLSFiles struct {
	CAFile     string       // file with the CAs for the server's certificate, PEM; empty: the CAs of the operating system
	CertFile   string       // file with the chain of the client's certificate, PEM; empty: the client shows no certificate
	KeyFile    string       // file with the private key of the client's certificate, PEM
	ServerName string       // the name that the server's certificate must have; empty: the host of the connection's target
	Logger     *slog.Logger // gets changes and faults of the files; nil: slog.Default()
}

// TLSCredentials are credentials of gRPC connections that read their files again: give
// TLSCredentials to grpc.WithTransportCredentials. [TLSFromFiles] makes TLSCredentials. Any
// number of connections can use the same TLSCredentials at once.
type TLSCredentials struct {
	files      *reload.Set
	cas        *reload.Value[*x509.CertPool]   // nil: the CAs of the operating system
	pair       *reload.Value[*tls.Certificate] // nil: no certificate
	serverName string

	stop    context.CancelFunc
	looking *sync.WaitGroup
}

// TLSFromFiles reads the files, and returns credentials for the client's side of a connection.
// TLSCredentials read the files again until [TLSCredentials.Close]: new connections use a
// changed file within about two seconds. An open connection continues.
//
// Replace a file by renaming a new file, or change a link as Kubernetes does. A new certificate
// is used only together with its private key. If a new file cannot be used, the old content
// stays in use. The log has one line for the fault, and one line when the file is good again. A
// fault of the certificate does not hinder a change of the CA, nor a fault of the CA a change of
// the certificate.
//
// Errors: an error if a file cannot be read or used; an error for CertFile without KeyFile, or
// for KeyFile without CertFile.
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

// Close ends the reading of the files. Connections can still use the credentials after Close,
// with the content read last. A second Close does nothing. Close always returns nil.
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
	Fault    error     // the reason why the present files cannot be used; nil if the present files are in use
}

// Status returns, for metrics, the state of the CAs and of the certificate. Status leaves out the
// CAs without a CAFile, and the certificate without a CertFile.
func (c *TLSCredentials) Status() (all []TLSFileStatus) {
	for _, s := range c.files.Status() {
		all = append(all, TLSFileStatus{s.Files, s.ReadAt, s.NotAfter, s.Fault})
	}
	return all
}

// present returns the credentials with the present content of the files. The client has no
// cache of TLS sessions, so every connection checks the server's certificate.
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

// ClientHandshake implements credentials.TransportCredentials of grpc-go.
func (c *TLSCredentials) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.present().ClientHandshake(ctx, authority, conn)
}

// ServerHandshake returns an error: TLSCredentials are for clients.
func (c *TLSCredentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("authn: TLSCredentials are for clients")
}

// Info implements credentials.TransportCredentials of grpc-go.
func (c *TLSCredentials) Info() credentials.ProtocolInfo { return c.present().Info() }

// Clone returns credentials that share the files with c. Close of c also ends the reading of
// the files for the clone.
func (c *TLSCredentials) Clone() credentials.TransportCredentials {
	clone := *c
	return &clone
}

// OverrideServerName sets the name that the server's certificate must have. grpc-go needs the
// method; a program sets the field ServerName of [TLSFiles] instead. Call OverrideServerName
// before the first connection.
func (c *TLSCredentials) OverrideServerName(name string) error {
	c.serverName = name
	return nil
}
