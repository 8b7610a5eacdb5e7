package cli_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// issuerFiles makes the files of an issuer: a key set, the certificate of a CA, and the
// certificate beside its private key.
func issuerFiles(t *testing.T) (keys, ca, private string) {
	t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	write := func(name, content string) string {
		t.Helper()
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	block := func(kind string, bytes []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: bytes}))
	}
	set := fmt.Sprintf(`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k","x":%q}]}`, base64.RawURLEncoding.EncodeToString(public))
	return write("keys.jwks", set), write("ca.pem", block("CERTIFICATE", certificate)),
		write("private.pem", block("CERTIFICATE", certificate)+block("PRIVATE KEY", pkcs8))
}

// service show prints each claim in the form that --claim reads, so the printed text binds the
// same claim.
func TestClaimsArePrintedAsTheyAreGiven(t *testing.T) {
	t.Parallel()
	db := database(t)
	keys, _, _ := issuerFiles(t)
	done(t, "", "issuer", "add", "ci", "--issuer=https://ci.example", "--jwks-file="+keys, db)
	done(t, "", "service", "create", "orders", db)
	for given, printed := range map[string]string{
		"ref=refs/heads/main":    "ref=refs/heads/main",
		"empty=":                 "empty=",
		"text=true":              "text=true",
		"flag:=true":             "flag:=true",
		"n:=-1.50":               "n:=-1.5",
		"equal=a=b":              "equal=a=b",
		"/a/b=c":                 "/a/b=c",
		"/https:~1~1ns~1x/y:=0":  "/https:~1~1ns~1x/y:=0",
		"/tilde~0=x":             "/tilde~0=x",
		"/plain=x":               "plain=x",
		"comma=a,b":              "comma=a,b",
		"/comma,name/in,side=ok": "/comma,name/in,side=ok",
	} {
		id := strings.TrimSpace(done(t, "", "service", "bind", "orders", "--issuer=ci", "--subject=s", "--claim="+given, db))
		shown := spaces.ReplaceAllString(done(t, "", "service", "show", "orders", db), " ")
		if !strings.Contains(shown, "binding "+id+" ci s "+printed+"\n") {
			t.Errorf("--claim=%s is shown as\n%s", given, shown)
		}
		fails(t, 2, "with the same claims already", "", "service", "bind", "orders", "--issuer=ci", "--subject=s", "--claim="+printed, db)
		done(t, "", "service", "unbind", "orders", id, db)
	}
}
