package e2e

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// guessFrom makes a wrong guess at a user from the n-th address of a guesser, and returns
// the reason of the refusal and the time to wait.
func guessFrom(t *testing.T, n int, addr, username string) (reason string, wait time.Duration) {
	t.Helper()
	c := dialFrom(t, fmt.Sprintf("127.77.%d.1", n), addr)
	defer c.conn.Close()
	return answerOf(c.tryLogin(callCtx(t), username, newPassword()))
}

// answerOf returns the reason of a refusal, and the time to wait.
func answerOf(err error) (reason string, wait time.Duration) {
	for _, detail := range status.Convert(err).Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok {
			wait = retry.GetRetryDelay().AsDuration()
		}
	}
	return strings.TrimPrefix(authn.Reason(err).String(), "ERROR_REASON_"), wait
}

// known logs a user in as a known device.
func (c *client) known(t *testing.T, username, password string, earlier *watchwordv1.TokenPair) (*watchwordv1.TokenPair, error) {
	t.Helper()
	resp, err := c.Login(callCtx(t), &watchwordv1.LoginRequest{Username: username, Password: password, PreviousRefreshToken: earlier.GetRefreshToken()})
	return noteTokens(resp.GetTokens()), err
}

// Guesses at one user from many addresses are soon refused, with a time to wait, and an
// unknown user gets the same answers in the same sequence. A known device gets in at once, a
// new one at the promised time, and a restart keeps the delay.
func TestGuessesFromManyAddresses(t *testing.T) {
	dir := t.TempDir()
	s := serve(t, dir)
	c := dial(t, s.grpcAddr)
	password := newPassword()
	c.create(t, c.login(t, "admin", s.admin, "watchword"), "alice", password)
	device := c.login(t, "alice", password)

	var want []string
	for range 10 {
		want = append(want, "INVALID_CREDENTIALS")
	}
	for range 10 {
		want = append(want, "TOO_MANY_ATTEMPTS")
	}
	// The owner, on a new device, is the first client that asks after the free guesses.
	stranger := dialFrom(t, "127.88.0.1", s.grpcAddr)
	var promised time.Duration
	for _, username := range []string{"nobody-has-this-name", "alice"} {
		var got []string
		for n := range want {
			if n == 10 {
				reason, wait := answerOf(stranger.tryLogin(callCtx(t), username, password))
				if promised = wait; reason != "TOO_MANY_ATTEMPTS" || wait <= 0 {
					t.Errorf("the owner of %s on a new device: %s, wait %v", username, reason, wait)
				}
			}
			reason, wait := guessFrom(t, n, s.grpcAddr, username)
			if reason == "TOO_MANY_ATTEMPTS" && (wait <= 0 || wait > time.Hour+time.Second) {
				t.Errorf("guess %d at %s: the wait is %v", n, username, wait)
			}
			got = append(got, reason)
		}
		if !slices.Equal(got, want) {
			t.Errorf("guesses at %s: %q, want %q", username, got, want)
		}
	}
	next, err := c.known(t, "alice", password, device)
	wantOK(t, "the known device", err)

	began := time.Now() // the owner can use the promised time for 30 s
	eventually(t, promised+20*time.Second, "the owner on a new device", func() error { return stranger.tryLogin(callCtx(t), "alice", password) })
	t.Logf("the owner got in after %v, promised %v", time.Since(began), promised)

	s.stop(t)
	s = serve(t, dir)
	for _, username := range []string{"nobody-has-this-name", "alice"} {
		if reason, wait := guessFrom(t, 30, s.grpcAddr, username); reason != "TOO_MANY_ATTEMPTS" || wait <= 0 {
			t.Errorf("%s after a restart: %s, wait %v", username, reason, wait)
		}
	}
	_, err = dial(t, s.grpcAddr).known(t, "alice", password, next)
	wantOK(t, "the known device after a restart", err)
	named := 0
	for _, line := range s.audit(t, "--type", "login") {
		if line.Reason == "TOO_MANY_ATTEMPTS" && line.UserName == "alice" {
			named++
		}
	}
	if named == 0 {
		t.Error("no record of the refused guesses names alice")
	}
}

// One address may send a bounded number of wrong passwords, at whatever users. Others get
// in, and so does a known device at this address.
func TestGuessesFromOneAddress(t *testing.T) {
	s := serve(t, t.TempDir())
	c := dialFrom(t, "127.0.0.9", s.grpcAddr)
	device := c.login(t, "admin", s.admin)
	refused, began := 0, time.Now()
	guesses := 0
	for refused == 0 && guesses < 1000 {
		guesses++
		reason, wait := answerOf(c.tryLogin(callCtx(t), fmt.Sprint("user-", guesses), newPassword()))
		if reason == "TOO_MANY_ATTEMPTS" && wait > 0 {
			refused++
		} else if reason != "INVALID_CREDENTIALS" {
			t.Fatalf("guess %d: %s", guesses, reason)
		}
	}
	if most := 101 + int(5*time.Since(began).Seconds()) + 1; guesses < 100 || guesses > most {
		t.Errorf("the first refused guess is number %d, want 101 to %d", guesses, most)
	}
	_, err := c.known(t, "admin", s.admin, device)
	wantOK(t, "a known device at the address", err)
	wantOK(t, "a login from another address", dialFrom(t, "127.0.0.10", s.grpcAddr).tryLogin(callCtx(t), "admin", s.admin))
}

// Two replicas share the counts of wrong passwords.
func TestReplicasShareGuesses(t *testing.T) {
	in := install(t)
	replicas := []*replica{in.replicate(t), in.replicate(t)}
	var got []string
	for n := range 20 {
		reason, _ := guessFrom(t, n, replicas[n%2].now().grpcAddr, "admin")
		got = append(got, reason)
	}
	for n, reason := range got {
		want := "INVALID_CREDENTIALS"
		if n >= 10 {
			want = "TOO_MANY_ATTEMPTS"
		}
		if reason != want {
			t.Errorf("guess %d: %s, want %s", n, reason, want)
		}
	}
}

// A thief at one address has an earlier refresh token of the owner, and tries wrong passwords
// with it without end. The owner gets in with the same token: at once by the count of the
// username, and at the promised time when the thief has spent this count too.
func TestGuessesWithAStolenRefreshToken(t *testing.T) {
	s := serve(t, t.TempDir(), "--throttle-free-tries", "3", "--throttle-longest-delay", "10s")
	owner, thief := dialFrom(t, "127.88.0.1", s.grpcAddr), dialFrom(t, "127.77.0.1", s.grpcAddr)
	device := owner.login(t, "admin", s.admin)
	wantOK(t, "the logout", owner.logout(callCtx(t), device)) // the token of an ended session counts, too
	guess := func() (string, time.Duration) {
		_, err := thief.known(t, "admin", newPassword(), device)
		return answerOf(err)
	}
	for n := range 3 {
		if reason, _ := guess(); reason != "INVALID_CREDENTIALS" {
			t.Fatalf("guess %d of the thief: %s", n, reason)
		}
	}
	_, err := owner.known(t, "admin", s.admin, device)
	wantOK(t, "the owner, by the count of the username", err)

	for reason := "INVALID_CREDENTIALS"; reason == "INVALID_CREDENTIALS"; {
		reason, _ = guess()
	}
	_, err = owner.known(t, "admin", s.admin, device)
	reason, wait := answerOf(err)
	if reason == "" { // a second has passed since the last guess, and the thief has a promised time in another network
		t.Skip("the machine is too slow for delays of a second")
	}
	if reason != "TOO_MANY_ATTEMPTS" || wait <= 0 || wait > 30*time.Second || wait%time.Second != 0 {
		t.Fatalf("the owner after the thief: %s, wait %v", reason, wait)
	}
	asking, stop := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for asking.Err() == nil {
			guess()
		}
	}()
	time.Sleep(wait + time.Second) // the owner can use the promised time for 10 s
	_, err = owner.known(t, "admin", s.admin, device)
	wantOK(t, "the owner at the promised time", err)
	stop()
	<-stopped
}

// lockDatabase keeps every other writer out of the SQLite database of a server, until
// unlock.
func lockDatabase(t *testing.T, s *server) (unlock func()) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(s.dir, "watchword.db")+"?_txlock=immediate&_pragma=busy_timeout(30000)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	}
}

// A guess counts although its client has gone before the count could be written.
func TestGuessesOfImpatientClients(t *testing.T) {
	s := serve(t, t.TempDir(), "--throttle-free-tries", "3")
	unlock := lockDatabase(t, s)
	var guesses sync.WaitGroup
	var made atomic.Int32
	for n := range 3 {
		guesses.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond) // the server waits for 5 s for the lock
			defer cancel()
			c := dialFrom(t, fmt.Sprintf("127.77.%d.1", n), s.grpcAddr)
			if err := c.tryLogin(ctx, "admin", newPassword()); status.Code(err) == codes.DeadlineExceeded {
				made.Add(1)
			} else {
				t.Logf("guess %d: %v", n, err) // OVERLOADED on a slow machine: nothing was compared
			}
		})
	}
	guesses.Wait()
	unlock()
	if made.Load() == 0 {
		t.Fatal("no guess was made")
	}
	for n := made.Load(); n < 3; n++ {
		guessFrom(t, int(n), s.grpcAddr, "admin")
	}
	if reason, _ := guessFrom(t, 9, s.grpcAddr, "admin"); reason != "TOO_MANY_ATTEMPTS" {
		t.Errorf("after %d guesses without an answer, and others up to 3: %s", made.Load(), reason)
	}
}

// While the database refuses the counts, no guess is compared after the first, right or
// wrong. When the database takes counts again, logins work.
func TestGuessesThatCannotBeCounted(t *testing.T) {
	s := serve(t, t.TempDir())
	inDatabase(t, s, `CREATE TRIGGER full BEFORE INSERT ON throttle BEGIN SELECT RAISE(ABORT, 'full'); END`)
	c := dial(t, s.grpcAddr)
	if err := c.tryLogin(callCtx(t), "admin", newPassword()); err == nil || authn.Reason(err) == watchwordv1.ErrorReason_ERROR_REASON_INVALID_CREDENTIALS {
		t.Errorf("a guess that is not counted: %v", err)
	}
	for what, password := range map[string]string{"right": s.admin, "wrong": newPassword()} {
		err := c.tryLogin(callCtx(t), "admin", password)
		if err == nil || authn.Reason(err) == watchwordv1.ErrorReason_ERROR_REASON_INVALID_CREDENTIALS {
			t.Errorf("the answer tells that the password is %s: %v", what, err)
		}
	}
	inDatabase(t, s, `DROP TRIGGER full`)
	wantOK(t, "a login", c.tryLogin(callCtx(t), "admin", s.admin))
	if reason, _ := guessFrom(t, 0, s.grpcAddr, "admin"); reason != "INVALID_CREDENTIALS" {
		t.Errorf("a guess: %s", reason)
	}
}
