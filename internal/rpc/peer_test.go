package rpc

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/hub"
)

// certificate returns a certificate with the given names, as parsed from its bytes.
func certificate(t *testing.T, names x509.Certificate) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	names.SerialNumber, names.NotAfter = big.NewInt(1), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, &names, &names, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// spiffe returns a SPIFFE id.
func spiffe(path string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: "example.org", Path: path}
}

// Watchers with a certificate are counted by one name of the certificate. A client gets
// no other client's name by writing it into another field.
func TestCertificateName(t *testing.T) {
	t.Parallel()
	common := pkix.Name{CommonName: "spiffe://example.org/notes"}
	names := map[string]string{}
	for what, c := range map[string]struct {
		names x509.Certificate
		want  string // empty: any name is right, except a name that another row has
	}{
		"a SPIFFE id":                 {x509.Certificate{URIs: []*url.URL{spiffe("/notes")}}, "URI spiffe://example.org/notes"},
		"a SPIFFE id and other names": {x509.Certificate{URIs: []*url.URL{spiffe("/mail"), spiffe("/notes")}, DNSNames: []string{"notes"}, Subject: common}, "URI spiffe://example.org/mail"},
		"DNS names":                   {x509.Certificate{DNSNames: []string{"mail", "notes"}, Subject: common}, "DNS mail"},
		"a SPIFFE id as DNS name":     {x509.Certificate{DNSNames: []string{"spiffe://example.org/notes"}}, "DNS spiffe://example.org/notes"},
		"a SPIFFE id as common name":  {x509.Certificate{Subject: common}, ""},
		"a network as common name":    {x509.Certificate{Subject: pkix.Name{CommonName: "192.0.2.1"}}, ""},
		"a network as DNS name":       {x509.Certificate{DNSNames: []string{"192.0.2.1"}}, "DNS 192.0.2.1"},
		"another organization":        {x509.Certificate{Subject: pkix.Name{CommonName: "192.0.2.1", Organization: []string{"other"}}}, ""},
	} {
		got := certificateName(certificate(t, c.names))
		if c.want != "" && got != c.want || names[got] != "" || got == "192.0.2.1" {
			t.Errorf("%s: %q, want %q; the same as %q", what, got, c.want, names[got])
		}
		names[got] = what
	}
}

// A certificate counts only if TLS has verified it and its client made the call: behind a
// trusted proxy the certificate is the proxy's.
func TestWatcherPeer(t *testing.T) {
	t.Parallel()
	cert := certificate(t, x509.Certificate{DNSNames: []string{"notes"}})
	from := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1234}
	verified := credentials.TLSInfo{State: tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{cert, cert}}}}
	unverified := credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}}
	for what, c := range map[string]struct {
		from   *peer.Peer
		source caller.Source
		want   hub.Peer
	}{
		"a certificate":             {&peer.Peer{Addr: from, AuthInfo: verified}, "192.0.2.1", hub.Peer{Name: "DNS notes", Certified: true}},
		"behind a proxy":            {&peer.Peer{Addr: from, AuthInfo: verified}, "198.51.100.7", hub.Peer{Name: "198.51.100.7"}},
		"an unverified certificate": {&peer.Peer{Addr: from, AuthInfo: unverified}, "192.0.2.1", hub.Peer{Name: "192.0.2.1"}},
		"TLS without a certificate": {&peer.Peer{Addr: from, AuthInfo: credentials.TLSInfo{}}, "192.0.2.1", hub.Peer{Name: "192.0.2.1"}},
		"plaintext":                 {&peer.Peer{Addr: from}, "2001:db8::1", hub.Peer{Name: "2001:db8::/64"}},
		"no peer":                   {&peer.Peer{}, "", hub.Peer{}},
	} {
		if got := watcherPeer(c.from, clientCertificate(c.from), c.source); got != c.want {
			t.Errorf("%s: %+v, want %+v", what, got, c.want)
		}
	}
}
