package reload_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/watchword-auth/watchword/internal/reload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair returns a new certificate with a serial number, and its private key, both PEM.
func pair(t *testing.T, serial int64) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Duration(serial) * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// log collects lines.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// take returns the lines since the last call.
func (l *log) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.text.Reset()
	return l.text.String()
}

// files are a certificate and a private key behind a link, as Kubernetes mounts a secret.
type files struct {
	t    *testing.T
	dir  string
	n    int
	log  log
	set  *reload.Set
	keys [][]byte
}

func newFiles(t *testing.T) *files {
	f := &files{t: t, dir: t.TempDir()}
	f.set = reload.NewSet(slog.New(slog.NewTextHandler(&f.log, nil)))
	return f
}

func (f *files) cert() string { return filepath.Join(f.dir, "..data", "tls.crt") }
func (f *files) key() string  { return filepath.Join(f.dir, "..data", "tls.key") }

// swap replaces the folder of both files at once.
func (f *files) swap(cert, key []byte) {
	f.t.Helper()
	f.n++
	folder := filepath.Join(f.dir, "version"+string(rune('0'+f.n)))
	if err := os.Mkdir(folder, 0o700); err != nil {
		f.t.Fatal(err)
	}
	f.write(filepath.Join(folder, "tls.crt"), cert)
	f.write(filepath.Join(folder, "tls.key"), key)
	link := filepath.Join(f.dir, "..data_tmp")
	if err := os.Symlink(folder, link); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(link, filepath.Join(f.dir, "..data")); err != nil {
		f.t.Fatal(err)
	}
}

func (f *files) write(path string, content []byte) {
	f.t.Helper()
	if strings.HasSuffix(path, ".key") {
		f.keys = append(f.keys, content)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// lines returns how many new lines of the log hold a text. No line may hold a part of a
// private key.
func (f *files) lines(text string) int {
	f.t.Helper()
	log := f.log.take()
	for _, key := range f.keys {
		if strings.Contains(log, string(key[30:60])) {
			f.t.Errorf("the log holds a private key:\n%s", log)
		}
	}
	return strings.Count(log, text)
}

const (
	readAgain = "read again"
	broken    = "the new files cannot be used"
	mended    = "the files hold what is in use"
)

// TestKeyPair replaces the files while a Set looks at them once a second.
func TestKeyPair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFiles(t)
		cert1, key1 := pair(t, 1)
		cert2, key2 := pair(t, 2)
		cert3, key3 := pair(t, 3)
		f.swap(cert1, key1)
		value, err := reload.KeyPair(f.set, "--tls-cert, --tls-key", f.cert(), f.key())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); f.set.Run(ctx) }()
		defer func() { cancel(); <-done }()
		// look lets n looks pass, and checks the serial number in use and the fault.
		look := func(what string, n int, serial int64, faulty bool) {
			t.Helper()
			time.Sleep(time.Duration(n) * time.Second)
			synctest.Wait()
			status := f.set.Status()[0]
			if got := value.Get().Leaf; got.SerialNumber.Int64() != serial || !status.NotAfter.Equal(got.NotAfter) {
				t.Errorf("%s: certificate %v is in use, and the status says %v; want %d", what, got.SerialNumber, status.NotAfter, serial)
			}
			if (status.Fault != nil) != faulty {
				t.Errorf("%s: fault %v", what, status.Fault)
			}
		}
		time.Sleep(time.Second / 2) // changes come between two looks
		look("no change", 3, 1, false)
		f.swap(cert2, key2)
		look("one look", 1, 1, false) // may have found the files half changed
		look("two looks", 1, 2, false)
		if f.lines(readAgain) != 1 {
			t.Error("a change is not logged once")
		}

		f.write(f.cert(), cert3) // the private key comes later
		look("the certificate came first", 1, 2, false)
		f.write(f.key(), key3)
		look("the private key has come", 2, 3, false)
		if n := f.lines(broken); n != 0 {
			t.Errorf("%d faults were logged for a change in two steps", n)
		}

		f.write(f.key(), key1)
		look("the key of another certificate", 5, 3, true)
		f.write(f.key(), append(key3[:60:60], "no base64"...))
		look("a damaged key", 5, 3, true)
		if n := f.lines(broken); n != 2 {
			t.Errorf("two faults were logged %d times", n)
		}
		f.write(f.key(), key3)
		look("mended", 2, 3, false)
		if f.lines(mended) != 1 {
			t.Error("the end of a fault is not logged once")
		}
		f.write(f.cert(), slices.Concat(cert3, cert1[:100])) // the key stays: only the chain is renewed
		look("a chain that ends within a certificate", 5, 3, true)
		f.write(f.cert(), slices.Concat(cert3, bytes.Repeat(cert1, 400)))
		look("a chain that clients refuse", 5, 3, true)
		if n := f.lines(broken); n != 2 {
			t.Errorf("two faults of a chain were logged %d times", n)
		}
		f.write(f.cert(), slices.Concat(cert3, key3, cert1)) // some programs want all in one file
		look("a whole chain", 2, 3, false)
		if n := len(value.Get().Certificate); n != 2 {
			t.Errorf("the chain has %d certificates, want 2", n)
		}
		f.lines(readAgain)
		f.write(f.cert(), cert3)
		look("mended again", 2, 3, false)
		if err := os.Remove(f.cert()); err != nil {
			t.Fatal(err)
		}
		look("a missing file", 5, 3, true)
		f.write(f.cert(), cert3)
		look("the file is back", 2, 3, false)
		if err := os.Remove(f.cert()); err != nil {
			t.Fatal(err)
		}
		look("missing again", 5, 3, true)
		if n := f.lines(broken); n != 2 {
			t.Errorf("a file was missing twice, and the log says so %d times", n)
		}
		f.swap(cert1, key1)
		f.set.Now(ctx)
		look("at once", 0, 1, false)
		if f.lines(readAgain) != 1 {
			t.Error("Now does not log what was read")
		}
		f.set.Now(ctx)
		if f.lines(mended) != 1 {
			t.Error("Now does not log that nothing has changed")
		}
	})
}

func TestCAs(t *testing.T) {
	cert1, key := pair(t, 1)
	cert2, _ := pair(t, 2)
	damaged := bytes.Replace(cert1, []byte("\n"), []byte("\n!"), 1)
	for _, c := range []struct {
		what    string
		content []byte
		says    string // part of the error; empty: the file is good
	}{
		{"two certificates, a text and a key", slices.Concat([]byte("Our CAs\n"), cert1, key, cert2), ""},
		{"nothing", nil, "no certificate in PEM"},
		{"a key alone", key, "no certificate in PEM"},
		{"a damaged block before a good one", slices.Concat(damaged, cert2), "damaged"},
		{"a block that is cut off", slices.Concat(cert1, cert2[:len(cert2)/2]), "damaged"},
		{"another thing in the block", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("nothing")}), "block 1"},
		{"a file without a bound", bytes.Repeat([]byte("a\n"), 4<<20), "larger than"},
	} {
		file := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(file, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		value, err := reload.CAs(reload.NewSet(slog.New(slog.DiscardHandler)), "--client-ca", file)
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%s: %v", c.what, err)
		case c.says == "":
			if until := time.Until(value.Status().NotAfter); until < 110*time.Minute {
				t.Errorf("%s: the last CA expires in %v", c.what, until)
			}
		case err == nil || !strings.HasPrefix(err.Error(), "--client-ca: ") || !strings.Contains(err.Error(), c.says):
			t.Errorf("%s: got error %v, want one with %q", c.what, err, c.says)
		}
	}
	if _, err := reload.CAs(reload.NewSet(slog.New(slog.DiscardHandler)), "--client-ca", t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a folder: got %v", err)
	}
}
