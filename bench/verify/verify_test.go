package verify

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

// TestLibraries holds every row of docs/verify.md against the library, for each algorithm at the
// first start, across a change of the algorithm, and after the withdrawal of a key.
func TestLibraries(t *testing.T) {
	rows := readPage(t)
	for name := range Libraries {
		if !slices.ContainsFunc(rows, func(r row) bool { return r.program == "bench/verify/"+name }) {
			t.Errorf("docs/verify.md has no row for %s", name)
		}
	}
	for i, alg := range algorithms {
		t.Run(alg, func(t *testing.T) {
			t.Parallel()
			next := algorithms[(i+1)%len(algorithms)]
			w := newWorld(t, rows, alg)
			defer w.closeAll()
			first := w.loginWith(t, alg)
			w.first(t, first)
			w.rotated(t, first, next)
			w.withdrawn(t, first, next)
			w.foreign(t, serve(t, alg).login(t, audience))
		})
	}
}

// world is a server, and every library of the page.
type world struct {
	*server
	rows     []row
	verifies []verifier // of each row, the verifiers that run
}

// verifier is a library at work.
type verifier struct {
	ask   func(token string) (said string) // "ok SUBJECT" or "refused ERROR"
	close func()
}

func newWorld(t *testing.T, rows []row, alg string) *world {
	t.Helper()
	w := &world{server: serve(t, alg), rows: rows}
	w.open(t)
	return w
}

// open starts the libraries anew, with empty caches.
func (w *world) open(t *testing.T) {
	t.Helper()
	w.closeAll()
	for _, r := range w.rows {
		v, err := w.start(r)
		if err != nil {
			t.Fatalf("%s: %v", r.name, err)
		}
		w.verifies = append(w.verifies, v)
	}
}

func (w *world) closeAll() {
	for _, v := range w.verifies {
		v.close()
	}
	w.verifies = nil
}

// first tries good and hostile tokens of the key that signs.
func (w *world) first(t *testing.T, good string) {
	subject := claims(t, good)["sub"].(string)
	head := header(t, good)
	alg := head["alg"].(string)
	hostile := attempts(t, good, w.private(t, head["kid"].(string)))
	for i, r := range w.rows {
		said := w.verifies[i].ask(good)
		switch {
		case r.good(alg) && said != "ok "+subject:
			t.Errorf("%s: a good token with %s: %s", r.name, alg, said)
		case !r.good(alg) && (!strings.HasPrefix(said, "refused ") || !strings.Contains(said, r.refusal(alg))):
			t.Errorf("%s: a good token with %s: %s; want %q", r.name, alg, said, r.refusal(alg))
		}
		t.Logf("%s, %s: %s", r.name, alg, said)
		for _, a := range hostile {
			said := w.verifies[i].ask(a.token)
			if want := a.accepts(r); want && said != "ok "+subject || !want && !strings.HasPrefix(said, "refused ") {
				t.Errorf("%s: a token with %s, %s: %s; want accepted=%v", r.name, alg, a.name, said, want)
			}
		}
	}
}

// within matches the time after which a library must know a new key. A busy machine gets slack
// more.
var within = regexp.MustCompile(`^within (\d+) seconds$`)

const slack = 20 * time.Second

// patience returns how long a program may refuse the tokens of a new key.
func (r row) patience(t *testing.T) time.Duration {
	switch match := within.FindStringSubmatch(r.newKey); {
	case strings.HasPrefix(r.newKey, "at once"):
		return 0
	case match != nil:
		seconds, _ := strconv.Atoi(match[1])
		return time.Duration(seconds)*time.Second + slack
	case r.newKey == "after `--jwks-max-age`":
		return slack
	}
	t.Errorf("%s: a new key is accepted %q", r.name, r.newKey)
	return 0
}

// eventually asks a library until the library accepts a token, for as long as the page allows.
func (w *world) eventually(t *testing.T, i int, what, token string) {
	r := w.rows[i]
	patience := r.patience(t)
	for began := time.Now(); ; time.Sleep(500 * time.Millisecond) {
		said := w.verifies[i].ask(token)
		if strings.HasPrefix(said, "ok ") {
			t.Logf("%s: %s is accepted after %v", r.name, what, time.Since(began).Round(time.Second))
			return
		}
		if took := time.Since(began); took > patience {
			t.Errorf("%s: %s, %v after the first try: %s", r.name, what, took.Round(time.Second), said)
			return
		}
	}
}

// together does something for each row at the same time, since some libraries wait before they
// fetch the JWKS again.
func (w *world) together(do func(i int, r row)) {
	var wait sync.WaitGroup
	for i, r := range w.rows {
		wait.Go(func() { do(i, r) })
	}
	wait.Wait()
}

// rotated changes the algorithm, while the libraries run with the earlier keys.
func (w *world) rotated(t *testing.T, first, alg string) {
	w.command(t, "key", "rotate", "--alg", alg)
	second := w.loginWith(t, alg)
	before := header(t, first)["alg"].(string)
	w.together(func(i int, r row) {
		if r.good(alg) {
			w.eventually(t, i, "the first token with "+alg, second)
		} else if said := w.verifies[i].ask(second); !strings.HasPrefix(said, "refused ") {
			t.Errorf("%s: the first token with %s: %s", r.name, alg, said)
		}
		if said := w.verifies[i].ask(first); strings.HasPrefix(said, "ok ") != r.good(before) {
			t.Errorf("%s: a token of the earlier key, with %s: %s", r.name, before, said)
		}
	})
}

// untilUnseen begins the cell of a library that drops a withdrawn key as soon as the library
// fetches the JWKS for a token of a key that it has not seen.
const untilUnseen = "until a token of the unseen key"

// withdrawn withdraws the first key, which the libraries have in their caches.
func (w *world) withdrawn(t *testing.T, first, alg string) {
	w.open(t)
	second := w.login(t, audience)
	old := header(t, first)["alg"].(string)
	for i, r := range w.rows {
		for _, raw := range []string{first, second} {
			said := w.verifies[i].ask(raw)
			if alg := header(t, raw)["alg"].(string); strings.HasPrefix(said, "ok ") != r.good(alg) {
				t.Errorf("%s: before the withdrawal, with %s: %s", r.name, alg, said)
			}
		}
	}
	w.command(t, "key", "revoke", header(t, first)["kid"].(string))
	unseen := w.loginWith(t, alg, header(t, second)["kid"].(string))
	w.together(func(i int, r row) {
		if !r.good(alg) || !r.good(old) {
			return
		}
		w.eventually(t, i, "the first token of the unseen key", unseen)
		if !strings.Contains(r.withdrawn, untilUnseen) {
			t.Logf("%s, after a token of the unseen key, to a token of the withdrawn key: %s", r.name, w.verifies[i].ask(first))
			return
		}
		// go-oidc answers a moment before the fetched keys are in its cache.
		for began := time.Now(); strings.HasPrefix(w.verifies[i].ask(first), "ok "); time.Sleep(100 * time.Millisecond) {
			if time.Since(began) > 5*time.Second {
				t.Errorf("%s trusts the withdrawn key after a token of the unseen key", r.name)
				return
			}
		}
	})
}

// foreign tries a token of another installation. The token comes last: an unknown kid may use up
// a library's fetches.
func (w *world) foreign(t *testing.T, token string) {
	w.together(func(i int, r row) {
		if said := w.verifies[i].ask(token); !strings.HasPrefix(said, "refused ") {
			t.Errorf("%s: a token of another installation: %s", r.name, said)
		}
	})
}

// start starts the program of a row: one library with its settings.
func (w *world) start(r row) (verifier, error) {
	if dir, file := filepath.Split(r.program); dir == "bench/verify/" {
		return w.inProcess(file)
	}
	program := filepath.Join(root, r.program)
	var command []string
	switch filepath.Ext(program) {
	case ".mjs":
		if _, err := os.Stat(filepath.Join(filepath.Dir(program), "node_modules")); err != nil {
			return verifier{}, errors.New("run npm ci in clients/verify/node")
		}
		command = []string{"node", program}
	case ".py":
		command = []string{"/usr/bin/python3", program}
	case ".rb":
		command = []string{"ruby", program}
	case ".pl":
		command = []string{"perl", program}
	case ".c":
		command = []string{filepath.Join(w.dir, "libjwt")}
		if err := compile("cc", "-Wall", "-Wextra", "-Werror", "-o", command[0], program, "-ljwt"); err != nil {
			return verifier{}, err
		}
	case ".cpp":
		command = []string{filepath.Join(w.dir, "cpp-jwt")}
		if err := compile("c++", "-std=c++17", "-o", command[0], program, "-lssl", "-lcrypto"); err != nil {
			return verifier{}, err
		}
	default:
		return verifier{}, fmt.Errorf("%s: unknown kind of program", program)
	}
	return asProcess("", append(command, w.Issuer, w.Audience, w.JWKS, w.keys))
}

func compile(command ...string) error {
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", command, err, out)
	}
	return nil
}

func (w *world) inProcess(file string) (verifier, error) {
	library := Libraries[file]
	if library == nil {
		return verifier{}, fmt.Errorf("no Go library has the file %s", file)
	}
	ctx, stop := context.WithCancel(context.Background())
	verify, err := library(ctx, w.Server)
	if err != nil {
		stop()
		return verifier{}, err
	}
	return verifier{func(token string) string {
		ctx, cancel := context.WithTimeout(ctx, answerWithin)
		defer cancel()
		subject, err := verify(ctx, token)
		if err != nil {
			return "refused " + err.Error()
		}
		return "ok " + subject
	}, stop}, nil
}

// answerWithin bounds the time for an answer.
const answerWithin = time.Minute

// asProcess starts a program, in a folder or in the folder of the test, that answers each line. If
// a line has no answer, the answer is "failed" with the output of the program.
func asProcess(dir string, command []string) (verifier, error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = dir
	cmd.Env = append(environment(), "PYTHONDONTWRITEBYTECODE=1")
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	in, err := cmd.StdinPipe()
	if err != nil {
		return verifier{}, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return verifier{}, err
	}
	if err := cmd.Start(); err != nil {
		return verifier{}, fmt.Errorf("%w: scripts/prerequisites.sh --slow says what is missing", err)
	}
	lines := bufio.NewReader(out)
	closed := sync.OnceFunc(func() {
		in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return verifier{func(token string) string {
		stop := time.AfterFunc(answerWithin, closed)
		defer stop.Stop()
		_, err := io.WriteString(in, token+"\n")
		line := ""
		if err == nil {
			line, err = lines.ReadString('\n')
		}
		if err != nil {
			closed()
			return fmt.Sprintf("failed: %v: is a package missing? See scripts/prerequisites.sh --slow\n%s", err, complaints.String())
		}
		return strings.TrimSpace(line)
	}, closed}, nil
}

// get-jwks returns a key that is no longer in the JWKS as long as the key is used once in ttl.
func TestGetJwksKeepsAWithdrawnKey(t *testing.T) {
	const ttl = 2 * time.Second // longer than a busy machine takes from one question to the next
	var withdrawn atomic.Bool
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		kid := "old"
		if withdrawn.Load() {
			kid = "new"
		}
		fmt.Fprintf(w, `{"keys": [{"kid": %q, "kty": "RSA"}]}`, kid)
	}))
	defer keys.Close()
	const program = `
import { createInterface } from 'node:readline'
import buildGetJwks from 'get-jwks'
const keys = buildGetJwks({ ttl: Number(process.argv[2]) })
for await (const _ of createInterface({ input: process.stdin })) {
  console.log(await keys.getJwk({ domain: process.argv[1], kid: 'old' }).then((key) => 'ok ' + key.kid, (error) => 'refused ' + error.message))
}`
	v, err := asProcess(filepath.Join(root, "clients/verify/node"), []string{"node", "--input-type=module", "-e", program, keys.URL, fmt.Sprint(ttl.Milliseconds())})
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	if said := v.ask("before"); said != "ok old" {
		t.Fatal(said)
	}
	withdrawn.Store(true)
	for began := time.Now(); time.Since(began) < 3*ttl; time.Sleep(100 * time.Millisecond) {
		if said := v.ask("after"); said != "ok old" {
			t.Fatalf("after %v: %s; docs/verify.md can say something better of get-jwks", time.Since(began), said)
		}
	}
}

// Authlib's rules for the metadata of OpenID Connect find no fault but what Watchword does not
// have: a token endpoint and a response type.
func TestAuthlibReadsTheMetadata(t *testing.T) {
	s := serve(t, "EdDSA", "--issuer", "https://auth.test")
	const program = `
import json, sys, urllib.request
from authlib.oidc.discovery import OpenIDProviderMetadata
metadata = OpenIDProviderMetadata(json.load(urllib.request.urlopen(sys.argv[1])))
for key in metadata.REGISTRY_KEYS:
    try:
        getattr(metadata, "validate_" + key)()
    except ValueError as error:
        print(error)`
	out, err := exec.Command("/usr/bin/python3", "-c", program, s.http+"/.well-known/openid-configuration").CombinedOutput()
	if want := "\"token_endpoint\" is required\n\"response_types_supported\" is required\n"; err != nil || string(out) != want {
		t.Errorf("%v: %s; want %s", err, out, want)
	}
}

// With oidc.NewVerifier, go-oidc accepts RS256 alone, unless SupportedSigningAlgs names the
// algorithms.
func TestGoOIDCWithoutMetadata(t *testing.T) {
	for _, alg := range algorithms {
		s := serve(t, alg)
		keys := oidc.NewRemoteKeySet(t.Context(), s.JWKS)
		raw := s.login(t, audience)
		_, plain := oidc.NewVerifier(s.Issuer, keys, &oidc.Config{ClientID: audience}).Verify(t.Context(), raw)
		_, named := oidc.NewVerifier(s.Issuer, keys, &oidc.Config{ClientID: audience, SupportedSigningAlgs: algorithms}).Verify(t.Context(), raw)
		if (plain == nil) != (alg == "RS256") || named != nil {
			t.Errorf("%s: %v; with SupportedSigningAlgs %v", alg, plain, named)
		}
	}
}
