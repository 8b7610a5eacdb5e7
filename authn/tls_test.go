package authn_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/watchword-auth/watchword/authn"
)

// Files that cannot be used are an error at the start. What happens when the files change is in
// internal/reload and internal/e2e.
func TestTLSFromFiles(t *testing.T) {
	t.Parallel()
	missing, broken := filepath.Join(t.TempDir(), "missing.pem"), filepath.Join(t.TempDir(), "broken.pem")
	if err := os.WriteFile(broken, []byte("S3cret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for says, files := range map[string]authn.TLSFiles{
		"CertFile and KeyFile go together": {CertFile: broken},
		"authn: CAFile: stat " + missing:   {CAFile: missing},
		"holds no certificate":             {CAFile: broken},
		"authn: CertFile, KeyFile: tls: ":  {CertFile: broken, KeyFile: broken},
	} {
		if c, err := authn.TLSFromFiles(files); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "S3cret") {
			t.Errorf("%+v: got %v, %v; want an error with %q", files, c, err, says)
		}
	}
	creds, err := authn.TLSFromFiles(authn.TLSFiles{ServerName: "auth.example"}) // the CAs of the system
	if err != nil {
		t.Fatal(err)
	}
	defer creds.Close()
	if _, _, err := creds.ServerHandshake(nil); err == nil {
		t.Error("credentials of a client accept a connection")
	}
	if len(creds.Status()) != 0 || creds.Close() != nil || creds.Close() != nil {
		t.Error("credentials without files have a status, or cannot be closed twice")
	}
}
