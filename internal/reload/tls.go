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

// KeyPair adds a certificate chain and its private key, both PEM. The name begins the errors.
// A certificate and a private key that do not belong together are not used.
//
// Errors: of reading the files; of the content.
func KeyPair(s *Set, name, certFile, keyFile string) (*Value[*tls.Certificate], error) {
	return add(s, source[*tls.Certificate]{name, []string{certFile, keyFile}, parsePair})
}

func parsePair(contents [][]byte) (*tls.Certificate, time.Time, error) {
	pair, err := tls.X509KeyPair(contents[0], contents[1])
	if err != nil {
		return nil, time.Time{}, err
	}
	return &pair, pair.Leaf.NotAfter, nil
}

// CAs adds the CA certificates of a PEM file; blocks of other kinds are ignored. The name
// begins the errors. One damaged certificate makes the whole file unusable: without one of the
// CAs, connections would fail that worked before. The CAs expire when the last CA does.
//
// Errors: of reading the file; of the content.
func CAs(s *Set, name, file string) (*Value[*x509.CertPool], error) {
	return add(s, source[*x509.CertPool]{name, []string{file}, parseCAs})
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
	case bytes.Count(contents[0], []byte("-----BEGIN ")) != blocks: // pem.Decode skips damaged blocks
		return nil, last, errors.New("a PEM block of the file is damaged")
	case last.IsZero():
		return nil, last, errors.New("the file holds no certificate in PEM")
	}
	return pool, last, nil
}
