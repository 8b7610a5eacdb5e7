package cli_test

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// configFile writes a file of --config, and returns its path.
func configFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "watchword.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// setting returns the line of a setting in the output of config check.
func setting(t *testing.T, out, name string) string {
	t.Helper()
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, name+": ") {
			return strings.Join(strings.Fields(line), " ")
		}
	}
	t.Errorf("there is no setting %s in\n%s", name, out)
	return ""
}

// The command line counts before the variables, and the variables before the file. What config
// check prints is a file of --config with the same settings.
func TestSettingsFromThreePlaces(t *testing.T) {
	file := configFile(t, "# settings\naccess-ttl: 7m\naudience: [billing, 'notes']\nmax-sessions: 12\ninsecure: true\n"+
		"hash-memory: 256MiB\njwks-max-age: \"2m\"\ntrusted-proxy: 10.0.0.0/8\nissuer: >-\n  https://auth.example\n")
	t.Setenv("WATCHWORD_MAX_SESSIONS", "13")
	t.Setenv("WATCHWORD_JWKS_MAX_AGE", "3m")
	t.Setenv("WATCHWORD_ACCESS_TTL", "") // counts as not set
	out := done(t, "", "config", "check", "--config", file, "--jwks-max-age=4m")
	want := map[string]string{
		"access-ttl":    "7m0s # " + file + ", line 2",
		"audience":      `["billing", "notes"] # ` + file + ", line 3",
		"max-sessions":  "13 # the environment variable WATCHWORD_MAX_SESSIONS",
		"insecure":      "true # " + file + ", line 5",
		"hash-memory":   "256MiB # " + file + ", line 6",
		"jwks-max-age":  "4m0s # the command line",
		"trusted-proxy": `["10.0.0.0/8"] # ` + file + ", line 8",
		"issuer":        `"https://auth.example" # ` + file + ", line 9",
		"key-ttl":       "720h0m0s # default",
	}
	for name, line := range want {
		if got := setting(t, out, name); got != name+": "+line {
			t.Errorf("got %s, want %s", got, line)
		}
	}
	t.Setenv("WATCHWORD_MAX_SESSIONS", "")
	t.Setenv("WATCHWORD_JWKS_MAX_AGE", "")
	t.Setenv("WATCHWORD_CONFIG", configFile(t, out))
	again := done(t, "", "config", "check")
	for name, line := range want {
		value, _, _ := strings.Cut(line, " #")
		if got := setting(t, again, name); !strings.HasPrefix(got, name+": "+value+" #") {
			t.Errorf("from the printed file: got %s, want %s", got, value)
		}
	}
}

// A command reports all wrong settings in one error, with the place of each setting and without
// its value.
func TestEveryFaultOfTheSettings(t *testing.T) {
	folder := t.TempDir()
	t.Chdir(folder)
	file := configFile(t, "acess-ttl: S3cret\nrefresh_ttl: 3h\naccess-ttl: S3cret\nmax-sessions: 0\nkey-ttl:\ntls:\n  cert: S3cret\nlog-level: S3cret\n"+
		"audience: [a]\naudience: [S3cret]\ntrusted-proxy: [[S3cret]]\n--issuer: x\nS3cret: x\nclient-ca: S3cret.pem\nconfig: other.yaml\n")
	t.Setenv("WATCHWORD_DRAIN_TIMEOUT", "S3cret")
	t.Setenv("WATCHWORD_AUDIT_TTL", "1m")
	t.Setenv("WATCHWORD_SIGNING_ALG", "S3cret")
	at := func(line string) string { return file + ", line " + line }
	faults := []string{
		"unknown flag (argument 4 of 7) is not shown",
		"--shutdown-delay: expected a duration such as 90s, 12h or 30d",
		`--log-format must be one of "text","json"`,
		at("1") + ": unknown key; did you mean access-ttl?",
		at("2") + ": unknown key; did you mean refresh-ttl?",
		at("5") + ": key-ttl: the value is missing",
		at("6") + ": unknown key: the keys are the names of the flags",
		at("10") + ": audience stands in line 9 too",
		at("11") + ": trusted-proxy: a list has texts alone",
		at("12") + ": unknown key; did you mean issuer?",
		at("13") + ": unknown key",
		at("15") + ": unknown key",
		"--access-ttl: expected a duration such as 90s, 12h or 30d (from " + at("3") + ")",
		"--drain-timeout: expected a duration such as 90s, 12h or 30d (from the environment variable WATCHWORD_DRAIN_TIMEOUT)",
		`--signing-alg must be one of "EdDSA","ES256","RS256" (from the environment variable WATCHWORD_SIGNING_ALG)`,
		`--log-level must be one of "debug","info","warn","error" (from ` + at("8") + ")",
		"--max-sessions: must be between 1 and 10000 (from " + at("4") + ")",
		"--audit-ttl: must be at least 1h (from the environment variable WATCHWORD_AUDIT_TTL)",
		"--client-ca needs --tls-cert and --tls-key (from " + at("14") + ")",
	}
	for _, command := range [][]string{{"serve"}, {"config", "check"}} {
		args := slices.Concat([]string{"--config=" + file}, command, []string{"--bogus=S3cret", "--shutdown-delay", "S3cret", "--log-format=S3cret"})
		r := run(t, "", args...)
		text := strings.TrimPrefix(r.err, "watchword: ")
		for _, fault := range faults {
			if command[0] == "serve" {
				fault = strings.Replace(fault, "argument 4 of 7", "argument 3 of 6", 1)
			}
			if n := strings.Count("\n"+text, "\n"+fault); n != 1 {
				t.Errorf("%v: %d lines begin with %q", command, n, fault)
			}
		}
		if n := strings.Count(text, "\n") - 1; n != len(faults) { // the last line is a hint
			t.Errorf("%v: %d faults, want %d", command, n, len(faults))
		}
		if r.status != 2 || r.out != "" || strings.Contains(strings.ToLower(r.err), "s3cret") {
			t.Errorf("%v: %+v; want status 2, and no value", command, r)
		}
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("the commands left %v, %v", left, err)
	}
}

// A file of --config that cannot be used as a whole is refused, without a word of the file.
func TestConfigFileThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	good := configFile(t, "access-ttl: 7m\n")
	for says, path := range map[string]string{
		"there is no such file":        filepath.Join(t.TempDir(), "S3cret"),
		"is a folder: name a file":     t.TempDir(),
		"larger than":                  configFile(t, strings.Repeat("# S3cret\n", 1<<18)),
		"line 2: not YAML":             configFile(t, "audience: [S3cret\naccess-ttl: \"S3cret\n"),
		"line 1: a value in a value":   configFile(t, "access-ttl: "+strings.Repeat("[", 5000)+"S3cret"),
		"line 3: a value in a value":   configFile(t, "issuer: https://auth.example\naudience:\n- - S3cret\n"),
		"not a list of settings":       configFile(t, "postgres://watchword:S3cret@db/watchword\n"),
		"more than one document":       configFile(t, "access-ttl: 7m\n---\naccess-ttl: 8m\n"),
		"write one value, or a list":   configFile(t, "access-ttl: {a: S3cret}\n"),
		"access-ttl: write one value":  configFile(t, "access-ttl: &anchor S3cret\n"),
		"audience: write one value":    configFile(t, "access-ttl: 7m\naudience: *S3cret\n"),
		"the postgres:// URI":          configFile(t, "master-key-file: "+good+"\ndatastore-uri: postgres://u:S3cret%@db/d\n"),
		"PostgreSQL needs one":         configFile(t, "datastore-uri: postgres://u:S3cret@db/d\n"),
		"--password-list: open":        configFile(t, "password-list: nothing\n"),
		"--tls-cert, --tls-key: stat":  configFile(t, "tls-cert: nothing\ntls-key: nothing\n"),
		"--datastore-uri: URI must be": configFile(t, "datastore-uri: mysql://u:S3cret@db/d\n"),
	} {
		r := run(t, "", "config", "check", "--config", path)
		if r.status != 2 || r.out != "" || !strings.Contains(r.err, says) || strings.Contains(r.err, "S3cret") {
			t.Errorf("%q: %+v", says, r)
		}
	}
	if runtime.GOOS == "windows" {
		return // a mode does not tell which users may write
	}
	if err := os.Chmod(good, 0o606); err != nil {
		t.Fatal(err)
	}
	fails(t, 2, "run chmod o-w "+good, "", "config", "check", "--config", good)
}

// Both serve and config check tell every fault of the files at once, before there is a database.
func TestEveryFaultOfTheFiles(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	exists := configFile(t, "")
	faults := []string{"--master-key-file: ", "--password-list: ", "--tls-cert, --tls-key: ", "--client-ca: ", "--initial-password-file: "}
	for _, password := range []string{exists, filepath.Join(folder, "missing", "password")} {
		flags := []string{"--datastore-uri=sqlite:" + filepath.Join(folder, "new", "watchword.db"), "--grpc-addr=127.0.0.1:0", "--http-addr=127.0.0.1:0",
			"--master-key-file=" + folder, "--password-list=nothing", "--tls-cert=nothing", "--tls-key=nothing", "--client-ca=nothing", "--initial-password-file=" + password}
		for status, command := range map[int][]string{1: {"serve"}, 2: {"config", "check"}} {
			r := run(t, "", append(command, flags...)...)
			text := "\n" + strings.TrimPrefix(r.err, "watchword: ")
			for _, fault := range faults {
				if n := strings.Count(text, "\n"+fault); n != 1 {
					t.Errorf("%v: %d lines begin with %q", command, n, fault)
				}
			}
			if n := strings.Count(r.err, "\n"); r.status != status || n != len(faults) {
				t.Errorf("%v: %d lines, want %d: %+v", command, n, len(faults), r)
			}
		}
	}
	made := filepath.Join(folder, "new") // by a start, for the database
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	relative, err := filepath.Rel(here, made)
	if err != nil {
		t.Fatal(err)
	}
	done(t, "", "config", "check", "--datastore-uri=sqlite:"+filepath.Join(relative, "watchword.db"), "--initial-password-file="+filepath.Join(made, "password"))
	if entries, err := os.ReadDir(folder); err != nil || len(entries) > 0 {
		t.Errorf("the refused starts leave %v, %v", entries, err)
	}
}

// The password of a database URI is not printed.
func TestConfigCheckHidesThePassword(t *testing.T) {
	t.Parallel()
	key := filepath.Join(t.TempDir(), "master.key")
	done(t, "", "key", "create-master-key", key)
	file := configFile(t, "datastore-uri: postgres://u:S3cret@db.example/d?sslpassword=S3cret\nmaster-key-file: "+key+"\nissuer: https://auth.example\n")
	if got := setting(t, done(t, "", "config", "check", "--config", file), "datastore-uri"); got != `datastore-uri: "postgres://u@db.example/d" # `+file+", line 1" {
		t.Errorf("got %s", got)
	}
}

// The server warns about a file with the password of the database that other users may read.
func TestConfigFileThatOthersRead(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("outside of Unix a mode does not tell which users may read")
	}
	file := configFile(t, "datastore-uri: postgres://u:S3cret@127.0.0.1:1/d\nmaster-key-file: none\n")
	for mode, warned := range map[os.FileMode]bool{0o600: false, 0o644: true} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		r := run(t, "", "serve", "--config", file)
		if r.status != 1 || strings.Contains(r.err, "other users can use a file with secrets") != warned || strings.Contains(r.err, "S3cret") {
			t.Errorf("mode %04o: %+v; want a warning: %v", mode, r, warned)
		}
	}
}

// Commands on the database take the settings from the file that mean the same for the command.
// Commands for a running server take none, and ignore the file.
func TestOtherCommandsShareTheFile(t *testing.T) {
	t.Parallel()
	db := database(t)
	file := configFile(t, "datastore-uri: "+strings.TrimPrefix(db, "--datastore-uri=")+"\nmin-password-length: 20\naudience: [billing]\n")
	fails(t, 1, "fewer than 20", "a password of 19ch.", "user", "create", "alice", "--config", file)
	done(t, "a password of twenty characters", "user", "create", "alice", "--config", file)
	if list := done(t, "", "user", "list", db); !strings.Contains(list, "alice") {
		t.Errorf("got %s", list)
	}
	unknown := configFile(t, "bogus: 1\n")
	for _, command := range []string{"user list", "service list", "issuer list", "session list", "key list", "audit", "watchers", "explain"} {
		args := append(strings.Fields(command), "--plaintext", "--addr=127.0.0.1:1", "--config="+unknown)
		fails(t, 2, "line 1: unknown key", "token", args...)
	}
	fails(t, 1, "connection refused", "token", "verify", "--plaintext", "--addr=127.0.0.1:1", "--config=no-such-file")
}
