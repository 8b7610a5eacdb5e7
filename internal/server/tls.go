package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"

	"github.com/watchword-auth/watchword/internal/reload"
)

// tlsFiles holds the certificate, the key and the CAs that the gRPC address and the HTTP
// address use for TLS, as the files are now. Open connections continue when a file changes;
// every new handshake uses the new content.
type tlsFiles struct {
	pair      *reload.Value[*tls.Certificate]
	clientCAs *reload.Value[*x509.CertPool] // the CAs of client certificates; nil without --client-ca
}

// tls reads the certificate, the private key and the CAs of clients, and adds the three files
// to the set, which reads changed files again. Without a certificate, tls returns nil.
func (c *Config) tls(files *reload.Set) (*tlsFiles, error) {
	if c.TLSCert == "" {
		return nil, nil
	}
	f := new(tlsFiles)
	var errPair, errCAs error
	f.pair, errPair = reload.KeyPair(files, "--tls-cert, --tls-key", c.TLSCert, c.TLSKey)
	if c.ClientCA != "" {
		f.clientCAs, errCAs = reload.CAs(files, "--client-ca", c.ClientCA)
	}
	return f, errors.Join(errPair, errCAs)
}

// certificate returns the certificate that the server shows to new clients; nil without TLS.
func (f *tlsFiles) certificate() *x509.Certificate {
	if f == nil {
		return nil
	}
	return f.pair.Get().Leaf
}

// config returns the TLS configuration of an address with one application protocol (ALPN). Only
// some methods, such as WatchBundle, need a client certificate. The handler of the method checks
// the certificate, since a handshake does not know the method.
func (f *tlsFiles) config(protocol string) *tls.Config {
	return reload.ServerTLS(protocol, f.pair, f.clientCAs, tls.VerifyClientCertIfGiven)
}

// Reload reads the files of TLS at once, and logs what was read. If a file cannot be used, the
// server continues with the content that it has read before.
func (s *Server) Reload(ctx context.Context) { s.files.Now(ctx) }
