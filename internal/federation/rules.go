package federation

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/watchword-auth/watchword/internal/store"
)

const (
	maxIssuers  = 256
	maxOfIssuer = 5000 // the largest number of bindings of one issuer: an issuer is removed in one transaction
	maxOfUser   = 100  // the largest number of bindings of one account
	// maxOfSubject bounds the bindings that one exchange reads.
	maxOfSubject = 256
	// maxPageLength bounds the documents in a page of issuers, in bytes. With the largest
	// issuer, a page stays below the 4 MiB of a gRPC message.
	maxPageLength = 2 << 20
	pageStep      = 16 // the issuers that one SQL statement reads

	maxTextLength    = 512 // bytes: of a claim iss, of a subject, and of the value of a claim
	maxURLLength     = 2048
	maxJwksLength    = 32 << 10 // keys and certificates together fit into the 64 KiB of a request
	maxCALength      = 24 << 10
	maxClaims        = 16
	maxPathLength    = 8   // the largest number of names in the path of a claim
	maxClaimName     = 128 // the longest name in the path of a claim, in bytes
	maxClaimsLength  = 2048
	defaultLifetime  = 24 * time.Hour
	shortestLifetime = time.Second
	// longestLifetime bounds MaxLifetime: an assertion that lives longer is as dangerous as a
	// password.
	longestLifetime = 30 * 24 * time.Hour
)

// isName reports whether a text has the form of an issuer's name. A regular expression would
// take 50 KiB of memory from the start of the server on.
func isName(text string) bool {
	other := func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' }
	return text != "" && len(text) <= 64 && text[0] >= 'a' && text[0] <= 'z' && !strings.ContainsFunc(text, other)
}

// checkIssuer checks every field of an issuer, and brings the certificates into one form.
//
// Errors: Invalid.
func checkIssuer(row *store.Issuer) error {
	if !isName(row.Name) {
		return invalid("name", "must be a lower-case letter, followed by up to 63 lower-case letters, digits and hyphens")
	}
	if err := checkText(row.Issuer, maxTextLength); err != nil {
		return Invalid{"issuer", err}
	}
	if row.MaxLifetime < shortestLifetime || row.MaxLifetime > longestLifetime || row.MaxLifetime%time.Second != 0 {
		return invalid("max_lifetime", "must be whole seconds, from %s to %s", shortestLifetime, longestLifetime)
	}
	if err := checkSource(row); err != nil {
		return err
	}
	var err error
	if row.CAPEM, err = ParseCA(row.CAPEM); err != nil {
		return Invalid{"ca_pem", err}
	}
	return nil
}

// checkSource checks from where the keys of an issuer come, and the fields that belong to the
// source.
func checkSource(row *store.Issuer) error {
	sources := 0
	for _, set := range []bool{row.Jwks != "", row.JwksURI != "", row.Discovery} {
		if set {
			sources++
		}
	}
	switch {
	case sources != 1:
		return invalid("jwks", "one of jwks, jwks_uri and discovery is required, and only one")
	case row.Jwks != "" && row.CAPEM != "":
		return invalid("ca_pem", "is for keys that are fetched: leave ca_pem empty with jwks")
	case row.Jwks != "" && row.AllowPrivate:
		return invalid("allow_private", "is for keys that are fetched: leave allow_private false with jwks")
	case row.Jwks != "":
		if err := CheckDocument(row.Jwks); err != nil {
			return Invalid{"jwks", err}
		}
	case row.JwksURI != "":
		u, err := parseURL(row.JwksURI)
		if err == nil {
			err = checkAddress(u, row.AllowPrivate)
		}
		if err != nil {
			return Invalid{"jwks_uri", err}
		}
	case row.Discovery:
		// RFC 8414 section 2: an https URL without query and fragment.
		u, err := parseURL(row.Issuer)
		if err == nil && (u.RawQuery != "" || u.ForceQuery) {
			err = errors.New("must not have a query")
		}
		if err == nil {
			err = checkAddress(u, row.AllowPrivate)
		}
		if err != nil {
			return invalid("issuer", "of an issuer with discovery: %w", err)
		}
	}
	return nil
}

// checkAddress returns an error for a URL with an address that [dialer] refuses. A name in place of
// an address is judged at each fetch alone: a name can get another address.
func checkAddress(u *url.URL, allowPrivate bool) error {
	addr, err := netip.ParseAddr(u.Hostname())
	if err != nil || allowPrivate || isPublic(addr) {
		return nil
	}
	return fmt.Errorf("has the address %s, which is private, loopback, link-local or reserved: "+
		"set allow_private (--allow-private of the command line) to fetch the keys from such an address", addr)
}

// CheckDocument checks the document with the keys of an issuer. A private key is refused even
// beside a public key: a database and an admin's screen are no place for a private key.
func CheckDocument(text string) error {
	if !store.IsText(text) {
		return errForm
	}
	if len(text) > maxJwksLength {
		return fmt.Errorf("must not be longer than %d bytes; larger key sets can be fetched, by jwks_uri", maxJwksLength)
	}
	set, err := parseKeySet([]byte(text))
	if err != nil {
		return err
	}
	for _, k := range set.refused {
		if errors.Is(k, errPrivateKey) {
			return k
		}
	}
	return nil
}

// parseURL parses an https URL from which the server can fetch, and refuses other URLs.
func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case len(text) > maxURLLength:
		return nil, fmt.Errorf("must not be longer than %d bytes", maxURLLength)
	case err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Opaque != "" || !store.IsText(text):
		return nil, errors.New("must be an https URL with a host")
	case u.User != nil:
		return nil, errors.New("must not have a username or a password")
	case strings.Contains(text, "#"):
		return nil, errors.New("must not have a fragment")
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, errors.New("must have a port from 1 to 65535, or none")
		}
	}
	return u, nil
}

// ParseCA returns the certificates of a PEM text, without the text around the certificates.
// ParseCA refuses other PEM blocks: the database must not store a private key.
func ParseCA(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	if len(text) > maxCALength {
		return "", fmt.Errorf("must not be longer than %d bytes", maxCALength)
	}
	var certificates strings.Builder
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if strings.Contains(string(rest), "-----BEGIN") {
				return "", errors.New("has a PEM block that is damaged")
			}
			break
		}
		if block.Type != "CERTIFICATE" {
			return "", errors.New("has a PEM block that is no certificate: give the certificates of CAs alone")
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return "", errors.New("has a certificate that cannot be read")
		}
		if err := pem.Encode(&certificates, &pem.Block{Type: block.Type, Bytes: block.Bytes}); err != nil {
			return "", err
		}
	}
	if certificates.Len() == 0 {
		return "", errors.New("has no certificate in PEM")
	}
	return certificates.String(), nil
}

// checkText checks a text that is compared byte for byte. Characters that a screen does not
// show are refused: an admin could not tell two texts apart.
func checkText(text string, most int) error {
	switch {
	case text == "":
		return errors.New("is required")
	case len(text) > most:
		return fmt.Errorf("must not be longer than %d bytes", most)
	case !store.IsText(text) || strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) }):
		return errors.New("must have printable characters alone")
	case strings.TrimSpace(text) != text:
		return errors.New("must not begin or end with a space")
	}
	return nil
}
