package federation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

const (
	// fetchTime bounds one fetch: the metadata and the keys together. Issuers answer within
	// a second.
	fetchTime = 10 * time.Second
	// maxHeader bounds the headers of an answer, in bytes.
	maxHeader = 16 << 10
	// maxMetadata bounds the metadata of an issuer, in bytes. The metadata of large public
	// issuers have up to 5 KiB.
	maxMetadata = 64 << 10
)

// dial opens a connection, like [net.Dialer.DialContext].
type dial = func(ctx context.Context, network, address string) (net.Conn, error)

// fetcher fetches the keys of one issuer. A fetcher never changes.
type fetcher struct {
	issuer    string
	uri       string // the URL of the key set; empty: the metadata of the issuer name the URL
	transport *http.Transport
}

// newFetcher returns a fetcher for an issuer's row. The transport belongs to the issuer: the CA
// of one issuer vouches for no other issuer. Every fetch opens a connection, so that no idle
// connection stays.
//
// Errors: a text if the CAs of the row cannot be read.
func newFetcher(row *store.Issuer, open dial) (*fetcher, error) {
	var roots *x509.CertPool // nil: the CAs of the system
	if row.CAPEM != "" {
		if roots = x509.NewCertPool(); !roots.AppendCertsFromPEM([]byte(row.CAPEM)) {
			return nil, errors.New("the CA of the issuer has no certificate in PEM")
		}
	}
	return &fetcher{issuer: row.Issuer, uri: row.JwksURI, transport: &http.Transport{
		Proxy:           nil, // a proxy of the environment would dial in place of open, which checks the address
		DialContext:     open,
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		// The transport speaks HTTP/1.1 alone, for which the bounds below are enough.
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
	}}, nil
}

// fetch fetches the key set. If the row names no URL of the key set, fetch first fetches the
// metadata of the issuer.
//
// Errors: errors with a text for the admin. For a key set without a key that can be used, fetch
// returns both the key set and an error.
func (f *fetcher) fetch(ctx context.Context) (*keySet, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	uri := f.uri
	if uri == "" {
		var err error
		if uri, err = f.discover(ctx); err != nil {
			return nil, err
		}
	}
	document, err := f.get(ctx, uri, maxKeySetLength)
	if err != nil {
		return nil, fmt.Errorf("fetching the keys: %w", err)
	}
	set, err := parseKeySet(document)
	if err != nil {
		err = fmt.Errorf("the key set at %s %w", uri, err)
	}
	return set, err
}

// discover returns the URL of the keys from the metadata of the issuer: the metadata of OpenID
// Connect Discovery 1.0 section 4, which most issuers have, or the metadata of RFC 8414 section
// 3. The metadata must name the issuer byte for byte: another issuer at the same host may be
// able to write metadata of its own (RFC 8414 section 3.3).
func (f *fetcher) discover(ctx context.Context) (string, error) {
	urls, err := metadataURLs(f.issuer)
	if err != nil {
		return "", err
	}
	var failed []error
	for _, at := range urls {
		uri, err := f.jwksURI(ctx, at)
		if err == nil {
			return uri, nil
		}
		failed = append(failed, fmt.Errorf("metadata at %s: %w", at, err))
	}
	return "", errors.Join(failed...)
}

func (f *fetcher) jwksURI(ctx context.Context, at string) (string, error) {
	document, err := f.get(ctx, at, maxMetadata)
	if err != nil {
		return "", err
	}
	var metadata map[string]any // a struct would also read the name "ISSUER"
	if json.Unmarshal(document, &metadata) != nil {
		return "", errors.New("not a JSON object")
	}
	if metadata["issuer"] != f.issuer {
		return "", errors.New("the metadata name another issuer")
	}
	uri, _ := metadata["jwks_uri"].(string)
	if _, err := parseURL(uri); err != nil {
		return "", fmt.Errorf("jwks_uri %w", err)
	}
	return uri, nil
}

// metadataURLs returns the URLs at which an issuer can have metadata. checkIssuer has refused
// an issuer with a query.
func metadataURLs(issuer string) ([]string, error) {
	u, err := parseURL(issuer)
	if err != nil {
		return nil, fmt.Errorf("the issuer %w", err)
	}
	path := strings.TrimSuffix(u.EscapedPath(), "/")
	return []string{
		u.Scheme + "://" + u.Host + path + "/.well-known/openid-configuration",
		u.Scheme + "://" + u.Host + "/.well-known/oauth-authorization-server" + path,
	}, nil
}

// get returns the body of an answer with status 200. A redirect is an error: a redirect can
// lead to a host that the admin did not choose.
func (f *fetcher) get(ctx context.Context, uri string, most int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "watchword")
	resp, err := f.transport.RoundTrip(req) // an http.Client would follow redirects
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the server answers with status %d; redirects are not followed", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err == nil && int64(len(body)) > most {
		err = fmt.Errorf("the answer is longer than %d bytes", most)
	}
	return body, err
}

// dialer returns the dial function for an issuer. Without allowPrivate, the function opens
// connections to public addresses alone. The function checks the address after the name was
// resolved, since a name can resolve to another address at each question.
func dialer(allowPrivate bool) dial {
	d := &net.Dialer{Timeout: fetchTime}
	if !allowPrivate {
		d.Control = func(_, address string, _ syscall.RawConn) error {
			at, err := netip.ParseAddrPort(address)
			if err != nil || !isPublic(at.Addr()) {
				return fmt.Errorf("%s is a private, loopback, link-local or reserved address; allow it with allow_private", address)
			}
			return nil
		}
	}
	return d.DialContext
}

// nat64 holds the IPv6 addresses with an IPv4 address in the last 32 bits (RFC 6052 section
// 2.1).
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// unpublic lists the networks beside the private, loopback and link-local ones from which no
// keys are fetched (IANA's special-purpose address registries). Of IPv6, isPublic allows
// 2000::/3 alone.
var unpublic = prefixes(
	"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15",
	"198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
	"2001::/23",     // protocols, Teredo among them, which carries IPv4 addresses
	"2001:db8::/32", // reserved for documentation
	"2002::/16",     // 6to4, which carries IPv4 addresses
	"3fff::/20",     // reserved for documentation
)

var unicast6 = netip.MustParsePrefix("2000::/3")

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

// isPublic reports whether an address belongs to the public Internet. An IPv6 address that
// stands for an IPv4 address is judged as the IPv4 address.
func isPublic(addr netip.Addr) bool {
	addr = addr.WithZone("").Unmap()
	if nat64.Contains(addr) {
		bytes := addr.As16()
		addr = netip.AddrFrom4([4]byte(bytes[12:]))
	}
	if !addr.IsValid() || addr.IsPrivate() || addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.Is6() && !unicast6.Contains(addr) {
		return false
	}
	for _, network := range unpublic {
		if network.Contains(addr) {
			return false
		}
	}
	return true
}
