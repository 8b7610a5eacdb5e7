package seal_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/watchword-auth/watchword/internal/seal"
)

func create(t *testing.T) (*seal.Keys, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "master")
	keys, err := seal.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	return keys, path
}

func TestSealedOpensAfterReload(t *testing.T) {
	keys, path := create(t)
	sealed, err := keys.Seal("signing key", "kid1", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, []byte("secret")) {
		t.Fatal("the secret is in the clear")
	}
	again, err := seal.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := again.Open("signing key", "kid1", sealed)
	if err != nil || string(opened) != "secret" {
		t.Fatalf("Open = %q, %v", opened, err)
	}
}

func TestOpenRefusesAnotherPurposeRowOrKey(t *testing.T) {
	keys, _ := create(t)
	stranger, _ := create(t)
	sealed, err := keys.Seal("signing key", "kid1", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(sealed)
	flipped[len(flipped)-1] ^= 1
	for name, open := range map[string]func() ([]byte, error){
		"purpose":   func() ([]byte, error) { return keys.Open("mac key", "kid1", sealed) },
		"row":       func() ([]byte, error) { return keys.Open("signing key", "kid2", sealed) },
		"flipped":   func() ([]byte, error) { return keys.Open("signing key", "kid1", flipped) },
		"truncated": func() ([]byte, error) { return keys.Open("signing key", "kid1", sealed[:12]) },
		"empty":     func() ([]byte, error) { return keys.Open("signing key", "kid1", nil) },
	} {
		if opened, err := open(); err == nil {
			t.Errorf("%s: opened as %q", name, opened)
		}
	}
	if _, err := stranger.Open("signing key", "kid1", sealed); !errors.Is(err, seal.ErrWrongKey) {
		t.Errorf("another master key: %v, want ErrWrongKey", err)
	}
}

func TestSeveralKeysFirstSealsAllOpen(t *testing.T) {
	old, oldPath := create(t)
	young, youngPath := create(t)
	both := filepath.Join(t.TempDir(), "both")
	a, _ := os.ReadFile(youngPath)
	b, _ := os.ReadFile(oldPath)
	if err := os.WriteFile(both, append(a, b...), 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := seal.Load(both)
	if err != nil {
		t.Fatal(err)
	}
	byOld, _ := old.Seal("p", "r", []byte("x"))
	if _, err := keys.Open("p", "r", byOld); err != nil {
		t.Errorf("the second key does not open: %v", err)
	}
	byBoth, _ := keys.Seal("p", "r", []byte("x"))
	if _, err := young.Open("p", "r", byBoth); err != nil {
		t.Errorf("the first key did not seal: %v", err)
	}
}

func TestFileIsPrivateAndNeverOverwritten(t *testing.T) {
	_, path := create(t)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	if _, err := seal.Create(path); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("second Create: %v", err)
	}
}

// Every call of Add that returned a key has put the key in the file, whatever other calls
// ran at once: a lost key would lose everything sealed under the key.
func TestAddsAtOnceLoseNoKey(t *testing.T) {
	_, path := create(t)
	var added atomic.Int64
	var calls sync.WaitGroup
	for range 8 {
		calls.Go(func() {
			for range 40 {
				if _, err := seal.Add(path); err == nil {
					added.Add(1)
				} else if !errors.Is(err, fs.ErrExist) {
					t.Error(err)
				}
			}
		})
	}
	calls.Wait()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := int64(strings.Count(string(text), "wwmk1_")), 1+added.Load(); got != want || want == 1 {
		t.Errorf("the file holds %d keys, want %d", got, want)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("the folder holds %v, %v", entries, err)
	}
}

func TestMalformedFiles(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "comment": "# nothing\n", "no prefix": strings.Repeat("A", 43),
		"short": "wwmk1_AAAA", "not base64": "wwmk1_" + strings.Repeat("!", 43),
	} {
		path := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := seal.Load(path); err == nil || (len(text) > 20 && strings.Contains(err.Error(), text)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKeysPrintWithoutContent(t *testing.T) {
	keys, path := create(t)
	data, _ := os.ReadFile(path)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if out := fmt.Sprintf(verb, keys); len(out) > 20 || bytes.Contains(data, []byte(out)) {
			t.Errorf("%s prints %q", verb, out)
		}
	}
}
