package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// unthrottled are flags with which the hashes alone bound the guesses.
var unthrottled = []string{"--throttle-free-tries", "1000000", "--throttle-source-rate", "0"}

// serveOn runs a server that uses the given number of cores, on a new database.
func serveOn(t *testing.T, cores int, args ...string) *server {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command(watchword(t), serveArgs(dir, args...)...)
	cmd.Env = []string{fmt.Sprint("GOMAXPROCS=", cores)}
	return serveCommand(t, dir, cmd)
}

// checkOverloaded returns an error unless err has the reason OVERLOADED and a delay for a
// retry.
func checkOverloaded(err error) error {
	if status.Code(err) != codes.ResourceExhausted || authn.Reason(err) != overloaded {
		return fmt.Errorf("got %w, want OVERLOADED", err)
	}
	for _, detail := range status.Convert(err).Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok && retry.GetRetryDelay().AsDuration() > 0 {
			return nil
		}
	}
	return errors.New("the error has no RetryInfo with a delay")
}

// stranger makes 150 logins a second from an address, with wrong passwords, until stop is
// called. stranger returns when a login was refused, so the queue of the server is full.
func stranger(t *testing.T, from, addr string) (stop func()) {
	t.Helper()
	c := dialFrom(t, from, addr)
	ctx, cancel := context.WithCancel(t.Context())
	full := make(chan struct{})
	fullOnce := sync.OnceFunc(func() { close(full) })
	var calls sync.WaitGroup
	calls.Go(func() {
		tick := time.NewTicker(time.Second / 150)
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			calls.Go(func() {
				err := c.tryLogin(ctx, "admin", "guessed by a stranger")
				switch {
				case ctx.Err() != nil || checkRefusal(err, "INVALID_CREDENTIALS") == nil:
				case checkOverloaded(err) == nil:
					fullOnce()
				default:
					t.Errorf("a login of the stranger: %v", err)
				}
			})
		}
	})
	select {
	case <-full:
	case <-time.After(runTimeout):
		t.Error("the stranger does not fill the queue")
	}
	return func() { cancel(); calls.Wait() }
}

// One stranger cannot keep others out: while a stranger makes more logins than the server
// can hash, every login from another address succeeds, and so do the changes of passwords.
func TestStrangerDoesNotShutOthersOut(t *testing.T) {
	s := serveOn(t, 2, unthrottled...)
	honest := dialFrom(t, "127.0.0.1", s.grpcAddr)
	admin := honest.login(t, "admin", s.admin, "watchword")
	password := newPassword()
	alice := honest.create(t, admin, "alice", password)
	defer stranger(t, "127.0.0.9", s.grpcAddr)()
	for range 15 {
		pair := honest.login(t, "alice", password)
		next := newPassword()
		_, err := honest.ChangePassword(bearer(callCtx(t), pair), &watchwordv1.ChangePasswordRequest{CurrentPassword: password, NewPassword: next})
		wantOK(t, "a ChangePassword beside the stranger", err)
		password = newPassword()
		_, err = honest.SetPassword(bearer(callCtx(t), admin), &watchwordv1.SetPasswordRequest{Id: alice.GetId(), Password: password})
		wantOK(t, "a SetPassword beside the stranger", err)
	}
}

// Every one of 500 logins at once gets an answer that the API documents, the memory stays within
// --hash-memory, and no goroutine and no memory of the logins remains.
func TestManyLoginsAtOnce(t *testing.T) {
	const (
		memory = 128 // in MiB
		base   = 128 // MiB, for everything else; measured: 45 to 70 MiB
	)
	s := serveOn(t, 32, append(unthrottled, "--hash-memory", "128MiB")...) // without the flag, 31 hashes at a time: some 1,400 MiB
	calm := s.metric(t, "go_goroutines")
	var clients []*client
	for i := range 10 {
		clients = append(clients, dialFrom(t, fmt.Sprint("127.0.0.", 2+i), s.grpcAddr))
	}
	answers := make(chan string, 500)
	var calls sync.WaitGroup
	for i := range cap(answers) {
		calls.Go(func() {
			password := s.admin
			if i%2 == 0 {
				password = "guessed by a stranger"
			}
			err := clients[i%len(clients)].tryLogin(callCtx(t), "admin", password)
			switch {
			case err == nil:
				answers <- "OK"
			case checkOverloaded(err) == nil:
				answers <- "OVERLOADED"
			default:
				if wrong := checkRefusal(err, "INVALID_CREDENTIALS"); wrong != nil || i%2 == 1 {
					t.Errorf("a login: %v", err)
				}
				answers <- "INVALID_CREDENTIALS"
			}
		})
	}
	calls.Wait()
	close(answers)
	count := map[string]int{}
	for answer := range answers {
		count[answer]++
	}
	peak := s.memory(t, "VmHWM")
	t.Logf("%v; at most %d MiB of memory", count, peak)
	if count["OK"] == 0 || count["INVALID_CREDENTIALS"] == 0 || count["OVERLOADED"] == 0 {
		t.Errorf("answers: %v, want some of each kind", count)
	}
	if peak > memory+base {
		t.Errorf("the server took %d MiB at most, want %d MiB for hashes and %d MiB for everything else", peak, memory, base)
	}
	for _, c := range clients {
		c.conn.Close()
	}
	s.calmsDown(t, calm)
}

// The number of hashes at a time follows from the memory and from the cores, and the log
// says so.
func TestHashMemory(t *testing.T) {
	for name, test := range map[string]struct {
		env    []string
		args   []string
		memory string
		hashes string
	}{
		"bounded by the flag":  {[]string{"GOMAXPROCS=32"}, []string{"--hash-memory", "256MiB"}, "256MiB", "4"},
		"bounded by the cores": {[]string{"GOMAXPROCS=3"}, []string{"--hash-memory", "256MiB"}, "256MiB", "2"},
		"by the variable":      {[]string{"GOMAXPROCS=32", "WATCHWORD_HASH_MEMORY=120MiB"}, nil, "120MiB", "2"},
		"half of GOMEMLIMIT":   {[]string{"GOMAXPROCS=32", "GOMEMLIMIT=400MiB"}, nil, "200MiB", "3"},
		"less than one hash":   {[]string{"GOMAXPROCS=32", "GOMEMLIMIT=64MiB"}, nil, "32MiB", "1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			cmd := exec.Command(watchword(t), serveArgs(dir, test.args...)...)
			cmd.Env = test.env
			s := serveCommand(t, dir, cmd)
			got := s.awaitLog(t, regexp.MustCompile(`msg="hashing passwords" memory=(\S+) at_a_time=(\d+)`))
			if got[1] != test.memory || got[2] != test.hashes {
				t.Errorf("the log says %q, want %s and %s hashes", got[0], test.memory, test.hashes)
			}
		})
	}
	for _, text := range []string{"256", "256MB", "1MiB", "-256MiB", ""} {
		r := cli(t, t.TempDir(), "", "serve", "--hash-memory="+text)
		if r.code == 0 || !strings.Contains(r.stderr, "--hash-memory") || !strings.Contains(r.stderr, "MiB") {
			t.Errorf("--hash-memory=%s: %v", text, r)
		}
	}
}
