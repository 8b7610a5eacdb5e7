package check

import (
	"bytes"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/watchword-auth/watchword/internal/pgtest"
)

// loadCompose reads compose.yaml as `docker compose` does. An unknown key is an error.
func loadCompose(t *testing.T) *types.Project {
	t.Helper()
	path := deploy + "/compose/compose.yaml"
	project, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir:  filepath.Dir(path),
		ConfigFiles: []types.ConfigFile{{Filename: path}},
		Environment: types.Mapping{},
	}, func(o *loader.Options) { o.SetProjectName("watchword", true) })
	if err != nil {
		t.Fatal(err)
	}
	return project
}

// variables returns the environment of a service.
func variables(service types.ServiceConfig) map[string]string {
	all := map[string]string{}
	for name, value := range service.Environment {
		all[name] = *value
	}
	return all
}

// TestCompose checks how the services of compose.yaml start, stop and are kept apart.
func TestCompose(t *testing.T) {
	project := loadCompose(t)
	server, migrate := project.Services["watchword"], project.Services["migrate"]
	if server.Deploy.Replicas == nil || *server.Deploy.Replicas < 2 {
		t.Errorf("replicas: %v", server.Deploy.Replicas)
	}
	if server.DependsOn["migrate"].Condition != types.ServiceConditionCompletedSuccessfully {
		t.Error("a replica starts before the migration has ended")
	}
	if migrate.DependsOn["db"].Condition != types.ServiceConditionHealthy {
		t.Error("the migration starts before PostgreSQL is healthy")
	}
	wantTimeToStop(t, "stop_grace_period", time.Duration(*server.StopGracePeriod), variables(server))
	if parse(t, variables(server)["WATCHWORD_SHUTDOWN_DELAY"]) < time.Second {
		t.Error("WATCHWORD_SHUTDOWN_DELAY gives clients no time")
	}
	file := regexp.MustCompile(`/run/secrets/([\w.-]+)`)
	for name, service := range project.Services {
		mounted := map[string]bool{}
		for _, secret := range service.Secrets {
			mounted[secret.Source] = true
		}
		for variable, value := range variables(service) {
			for _, m := range file.FindAllStringSubmatch(value, -1) {
				if !mounted[m[1]] {
					t.Errorf("%s: %s names the secret %s, which the service does not have", name, variable, m[1])
				}
			}
			if strings.Contains(variable, "PASSWORD") && !strings.HasSuffix(variable, "_FILE") {
				t.Errorf("%s: %s holds a secret: name a file", name, variable)
			}
		}
		if service.HealthCheck == nil && name != "migrate" {
			t.Errorf("%s has no health check", name)
		}
	}
}

// TestComposeRuns runs the commands of compose.yaml as processes on a real PostgreSQL: the
// secrets of secrets.sh, the migration, two replicas, the health check of each, and a password
// for the first user. Docker itself is left out.
func TestComposeRuns(t *testing.T) {
	project := loadCompose(t)
	secrets := makeSecrets(t)
	uri := writePassword(t, secrets)
	here := func(service types.ServiceConfig, replaced map[string]string) []string {
		env := environment()
		for name, value := range variables(service) {
			value = strings.ReplaceAll(value, "/run/secrets", secrets)
			if instead, set := replaced[name]; set {
				value = instead
			}
			env = append(env, name+"="+value)
		}
		return env
	}
	command := func(service types.ServiceConfig, args []string, replaced map[string]string) *exec.Cmd {
		replaced["WATCHWORD_DATASTORE_URI"] = uri
		cmd := exec.Command(watchword(t), args...)
		cmd.Env = here(service, replaced)
		return cmd
	}
	migrate, server := project.Services["migrate"], project.Services["watchword"]
	output(t, command(migrate, migrate.Command, map[string]string{}))
	for range *server.Deploy.Replicas {
		replica := startReplica(t, command(server, server.Command, map[string]string{
			"WATCHWORD_GRPC_ADDR": "127.0.0.1:0", "WATCHWORD_HTTP_ADDR": "127.0.0.1:0",
			"WATCHWORD_INITIAL_PASSWORD_FILE": filepath.Join(t.TempDir(), "admin-password"),
		}))
		check := server.HealthCheck.Test
		if len(check) < 3 || check[0] != "CMD" || check[1] != "/watchword" {
			t.Fatalf("the health check is %q", check)
		}
		var args []string
		for _, arg := range check[2:] {
			arg = strings.ReplaceAll(arg, "/run/secrets", secrets)
			args = append(args, strings.ReplaceAll(arg, "127.0.0.1:50051", replica.grpc))
		}
		output(t, command(server, args, map[string]string{}))
	}
	// The command of docs/deploy.md, which replaces the password in the container.
	setPassword := command(server, []string{"user", "set-password", "admin", "--password-stdin"}, map[string]string{})
	setPassword.Stdin = strings.NewReader("correct horse battery staple\n")
	output(t, setPassword)
}

// makeSecrets runs secrets.sh, and returns the folder of the secrets.
func makeSecrets(t *testing.T) string {
	t.Helper()
	tool(t, "openssl", "openssl")
	folder := filepath.Join(t.TempDir(), "secrets")
	script := func() *exec.Cmd {
		cmd := exec.Command(deploy+"/compose/secrets.sh", folder)
		cmd.Env = append(environment(), "WATCHWORD="+watchword(t))
		return cmd
	}
	output(t, script())
	before := read(t, folder+"/master.key")
	if out, err := script().CombinedOutput(); err == nil || read(t, folder+"/master.key") != before {
		t.Errorf("a second run replaced the secrets: %s", out)
	}
	for name := range loadCompose(t).Secrets {
		if read(t, filepath.Join(folder, name)) == "" {
			t.Errorf("the secret %s is empty", name)
		}
	}
	if info, err := os.Stat(folder); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("other users may enter %s: %v", folder, err)
	}
	return folder
}

// writePassword makes a database, writes its password into the secret pgpass, and returns the
// database's URI without the password.
func writePassword(t *testing.T, secrets string) string {
	t.Helper()
	uri, err := url.Parse(pgtest.URI(t))
	if err != nil {
		t.Fatal("the database's URI is malformed")
	}
	password, set := uri.User.Password()
	if !set {
		t.Skip("the database has no password")
	}
	user := uri.User.Username()
	uri.User = url.User(user)
	line := strings.Join([]string{uri.Hostname(), uri.Port(), uri.Path[1:], user, password}, ":")
	if got := strings.Count(read(t, secrets+"/pgpass"), ":"); got != 4 {
		t.Errorf("pgpass of secrets.sh has %d fields", got+1)
	}
	if err := os.WriteFile(secrets+"/pgpass", []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return uri.String()
}

// addresses are those of a server.
type addresses struct{ grpc, http string }

// logged keeps the log of a process, and tells the addresses of the line ready.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
	addr chan addresses
}

var ready = regexp.MustCompile(`msg=ready grpc=(\S+) http=(\S+)[^\n]*\n`)

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	if m := ready.FindStringSubmatch(l.text.String()); m != nil {
		select {
		case l.addr <- addresses{m[1], m[2]}:
		default:
		}
	}
	return len(p), nil
}

// startReplica starts a replica, waits until the replica is ready, and returns its
// addresses. The end of the test stops the replica, which must end with status 0.
func startReplica(t *testing.T, cmd *exec.Cmd) addresses {
	t.Helper()
	cmd.Env = append(cmd.Env, "WATCHWORD_SHUTDOWN_DELAY=0s")
	log := &logged{addr: make(chan addresses, 1)}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case addr := <-log.addr:
		t.Cleanup(func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			if err := <-ended; err != nil {
				t.Errorf("%v\n%s", err, log.text.String())
			}
		})
		return addr
	case err := <-ended:
		t.Fatalf("the replica ended before the line ready: %v\n%s", err, log.text.String())
	case <-time.After(time.Minute):
		_ = cmd.Process.Kill()
		t.Fatalf("no line ready: %s", log.text.String())
	}
	return addresses{}
}
