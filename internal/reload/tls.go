package reload

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// longestChain bounds the length of all certificates of a chain together, in bytes. OpenSSL
// refuses a longer chain; Go refuses a chain of 256 KiB.
const longestChain = 100 << 10

var errDamaged = errors.New("a PEM block of the file is damaged")

// KeyPair adds a certificate chain and its private key, both PEM. The name begins the text of
// every error. A certificate and a private key that do not belong together are not used, and
// neither is a chain of which one certificate is damaged, as in a file that is half written.
//
// Errors: errors of reading the files; errors of the content of the files.
func KeyPair(s *Set, name, certFile, keyFile string) (*Value[*tls.Certificate], error) {
	return add(s, source[*tls.Certificate]{name, []string{certFile, keyFile}, parsePair})
}

func parsePair(contents [][]byte) (*tls.Certificate, time.Time, error) {
	pair, err := tls.X509KeyPair(contents[0], contents[1])
	if err != nil {
		return nil, time.Time{}, err
	}
	length := 0
	for _, cert := range pair.Certificate {
		length += len(cert)
	}
	switch {
	case !isWhole(contents[0]):
		return nil, time.Time{}, errDamaged
	case length > longestChain:
		return nil, time.Time{}, fmt.Errorf("the chain has %d bytes, and clients refuse a chain of more than %d", length, longestChain)
	}
	return &pair, pair.Leaf.NotAfter, nil
}

// isWhole reports whether no PEM block of a file is damaged. Packages tls and pem skip damaged
// blocks in silence.
func isWhole(content []byte) bool {
	blocks := 0
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		blocks++
	}
	return bytes.Count(content, []byte("-----BEGIN ")) == blocks
}

// CAs adds the CA certificates of a PEM file; blocks of other kinds are ignored. The name
// begins the text of every error. One damaged certificate makes the whole file unusable:
// without one of the CAs, connections would fail that worked before. The value expires
// ([Status].NotAfter) when the last of the CAs expires.
//
// Errors: errors of reading the file; errors of the content of the file.
func CAs(s *Set, name, file string) (*Value[*x509.CertPool], error) {
	return add(s, source[*x509.CertPool]{name, []string{file}, parseCAs})
}

// ServerTLS returns the configuration of an address with one application protocol (ALPN). Every
// new handshake uses the present content of the files. cas holds the CAs of client certificates,
// for a server that asks for client certificates as auth says; cas can be nil: then the server
// asks for no client certificate.
//
// TLS 1.3 (RFC 8446) is the only version, since the clients are services of the same
// organization and can all be new. The server resumes no session (RFC 8446, section 2.2): a
// resumed session skips the check of the client's certificate, so a client could continue after
// the operator has removed the client's CA from cas.
func ServerTLS(protocol string, pair *Value[*tls.Certificate], cas *Value[*x509.CertPool], auth tls.ClientAuthType) *tls.Config {
	base := tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{protocol}, SessionTicketsDisabled: true}
	config := base.Clone()
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		current := base.Clone()
		current.Certificates = []tls.Certificate{*pair.Get()}
		if cas != nil {
			current.ClientCAs, current.ClientAuth = cas.Get(), auth
		}
		return current, nil
	}
	return config
}

func parseCAs(contents [][]byte) (*x509.CertPool, time.Time, error) {
	pool, last, blocks := x509.NewCertPool(), time.Time{}, 0
	for block, rest := pem.Decode(contents[0]); block != nil; block, rest = pem.Decode(rest) {
		blocks++
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, last, fmt.Errorf("block %d of the file: %w", blocks, err)
		}
		pool.AddCert(cert)
		if cert.NotAfter.After(last) {
			last = cert.NotAfter
		}
	}
	switch {
	case !isWhole(contents[0]):
		return nil, last, errDamaged
	case last.IsZero():
		return nil, last, errors.New("the file holds no certificate in PEM")
	}
	return pool, last, nil
}
