package settings

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Any file of --config is read or refused, and no fault shows a text of the file.
func FuzzConfigFile(f *testing.F) {
	for _, seed := range []string{
		"access-ttl: 5m\n", "audience: [a, 'b']\nissuer: >-\n  x\n", "S3cret: &a [*a]\n", "? S3cret\n: x\n", "\"access-ttl\": {S3cret: }\n",
		"---\n...\n---\n!!S3cret x", "<<: *S3cret\n", "access-ttl: |\n S3cret\n\tx: [", "%YAML 1.2\n", "- S3cret\n", "\x00\xff: S3cret",
	} {
		f.Add([]byte(seed))
	}
	path := filepath.Join(f.TempDir(), "watchword.yaml")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, faults := readConfig(path, keys{names: []string{"access-ttl", "audience", "issuer"}})
		for _, fault := range faults {
			if strings.Contains(fault, "S3cret") {
				t.Errorf("the fault %q shows a text of the file", fault)
			}
		}
	})
}
