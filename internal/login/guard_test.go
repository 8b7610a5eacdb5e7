package login_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/login"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/session/sessiontest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/throttle"
	"github.com/watchword-auth/watchword/internal/user"
)

// guarded is a world with a login service of its own.
type guarded struct {
	*sessiontest.World
	logins *login.Service
	free   int
	began  time.Time
}

// guard returns a world with so many free tries for a user, and so many wrong passwords a
// second from a source. The first delay takes a second, and each further one twice as long.
func guard(t *testing.T, w *sessiontest.World, free, rate int) guarded {
	t.Helper()
	pool := password.NewPool(password.Config{Params: password.Params{Memory: 64, Time: 1, Threads: 1}, Parallel: 2})
	logins, err := login.New(w.Store, w.Feed, w.Sessions, pool, login.Limits{
		Limits: throttle.Limits{FreeTries: free, LongestDelay: 10 * time.Minute}, SourceRate: rate,
	})
	if err != nil {
		t.Fatal(err)
	}
	return guarded{w, logins, free, time.Now()}
}

// try logs in from an address, and returns what the client sees: "ok", "wrong", or "wait".
func (g guarded) try(t *testing.T, from caller.Source, name user.Name, pw, previous string) string {
	t.Helper()
	_, err := g.logins.Login(caller.WithSource(context.Background(), from), name, sessiontest.Parse(t, pw), nil, previous)
	return answer(t, err)
}

func answer(t *testing.T, err error) string {
	t.Helper()
	var refused *throttle.Refused
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, login.ErrCredentials):
		return "wrong"
	case errors.As(err, &refused) && refused.RetryAfter > 0:
		return "wait"
	}
	t.Fatal(err)
	return ""
}

// refused returns the answer to a try that has to wait. On a slow machine, the try may come after
// its delay: then a wrong password is one more guess, and doubles the delay.
func (g guarded) refused(try func() string) string {
	for passed, delay := time.Second, time.Second; ; delay, passed = 2*delay, passed+2*delay {
		if got := try(); got != "wrong" || time.Since(g.began) < passed {
			return got
		}
	}
}

// repeat returns the answers to tries with wrong passwords, each from another network.
func (g guarded) repeat(t *testing.T, n int, name user.Name, previous string) (answers []string) {
	t.Helper()
	for i := range n {
		try := func() string {
			return g.try(t, caller.Source(fmt.Sprintf("10.0.%d.1", i)), name, "a wrong password", previous)
		}
		if i < g.free {
			answers = append(answers, try())
		} else {
			answers = append(answers, g.refused(try))
		}
	}
	return answers
}

const wrong = "a wrong password"

// After the free tries at one username, every further try has to wait, from any address. An
// unknown name and the name of a service account get the same answers in the same sequence.
func TestGuessesAtOneName(t *testing.T) {
	t.Parallel()
	sessiontest.EachEngine(t, func(t *testing.T, w *sessiontest.World) {
		g := guard(t, w, 5, 0)
		w.Service(t, "search")
		want := []string{"wrong", "wrong", "wrong", "wrong", "wrong", "wait", "wait", "wait"}
		for _, name := range []user.Name{"alice", "mallory", "search"} {
			if got := g.repeat(t, len(want), name, ""); !slices.Equal(got, want) {
				t.Errorf("%s: %v, want %v", name, got, want)
			}
		}
		if got := g.try(t, "192.0.2.1", "alice", sessiontest.Password, ""); got != "wait" {
			t.Errorf("the right password on a new device: %s", got)
		}
	})
}

// A login from a known device succeeds at once, however many passwords others guess, and only
// the wrong passwords of the device itself delay the device.
func TestKnownDevice(t *testing.T) {
	t.Parallel()
	sessiontest.EachEngine(t, func(t *testing.T, w *sessiontest.World) {
		g := guard(t, w, 3, 0)
		device, other := w.Login(t), w.Login(t)
		newer := w.Refresh(t, device.Refresh)
		g.repeat(t, 4, "alice", "")
		for name, token := range map[string]string{"a spent token": device.Refresh, "the newest token": newer.Refresh} {
			if got := g.try(t, "192.0.2.1", "alice", sessiontest.Password, token); got != "ok" {
				t.Errorf("%s: %s", name, got)
			}
		}
		if err := w.Sessions.Logout(t.Context(), newer.Refresh); err != nil {
			t.Fatal(err)
		}
		if got := g.try(t, "192.0.2.1", "alice", sessiontest.Password, device.Refresh); got != "ok" {
			t.Errorf("after the logout: %s", got)
		}
		if got, want := g.repeat(t, 4, "alice", device.Refresh), []string{"wrong", "wrong", "wrong", "wait"}; !slices.Equal(got, want) {
			t.Errorf("the device's own guesses: %v, want %v", got, want)
		}
		if got := g.try(t, "192.0.2.1", "alice", sessiontest.Password, other.Refresh); got != "ok" {
			t.Errorf("another device: %s", got)
		}
		if got := g.try(t, "192.0.2.1", "mallory", wrong, other.Refresh); got != "wrong" {
			t.Errorf("the device at another name: %s", got)
		}
		g.repeat(t, 3, "mallory", "")
		if got := g.refused(func() string { return g.try(t, "192.0.2.1", "mallory", wrong, other.Refresh) }); got != "wait" {
			t.Errorf("the device at another name that is delayed: %s", got)
		}
	})
}

// A thief with an earlier refresh token of the owner uses up the free tries of the owner's
// device. The owner still logs in by the free tries of the username, and from another device.
// When the tries of the device and of the username are used up, each network with the token is
// promised a time for its next try.
func TestStolenDevice(t *testing.T) {
	t.Parallel()
	sessiontest.EachEngine(t, func(t *testing.T, w *sessiontest.World) {
		g := guard(t, w, 3, 0)
		stolen, other := w.Login(t), w.Login(t)
		thief := func() string { return g.try(t, "198.51.100.1", "alice", wrong, stolen.Refresh) }
		for range 3 {
			if got := thief(); got != "wrong" {
				t.Fatalf("the thief: %s", got)
			}
		}
		if got := g.try(t, "192.0.2.1", "alice", sessiontest.Password, stolen.Refresh); got != "ok" {
			t.Errorf("the owner with the stolen token: %s", got)
		}
		for range 3 { // these logins succeed by the count of the username
			if got := thief(); got != "wrong" {
				t.Fatalf("the thief: %s", got)
			}
		}
		if got := g.refused(thief); got != "wait" {
			t.Errorf("the thief after six guesses: %s", got)
		}
		if got := g.try(t, "192.0.2.1", "alice", sessiontest.Password, other.Refresh); got != "ok" {
			t.Errorf("the owner on another device: %s", got)
		}
	})
}

// While every time for a try at the username is promised to other clients, the owner on a known
// device is promised a time of the device.
func TestPromiseOfADevice(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // the clock stands still
		w := sessiontest.New(t)
		g := guard(t, w, 3, 0)
		stolen := w.Login(t).Refresh
		refusal := func(from caller.Source, previous string) *throttle.Refused {
			t.Helper()
			for {
				_, err := g.logins.Login(caller.WithSource(t.Context(), from), "alice", sessiontest.Parse(t, wrong), nil, previous)
				var refused *throttle.Refused
				switch {
				case errors.As(err, &refused):
					return refused
				case !errors.Is(err, login.ErrCredentials):
					t.Fatal(err)
				}
			}
		}
		refusal("198.51.100.1", stolen)
		for n := 0; !refusal(caller.Source(fmt.Sprintf("10.0.%d.1", n)), "").Full; n++ { // six promises fill the hour
			continue
		}
		if refused := refusal("192.0.2.1", stolen); refused.Full || refused.RetryAfter > 20*time.Minute+2*time.Second {
			t.Errorf("the owner: %v", refused)
		}
	})
}

// The ten newest sessions are known devices, and a text that is no refresh token is none.
func TestUnknownDevices(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // the clock stands still during the guesses
		w := sessiontest.New(t)
		g := guard(t, w, 3, 0)
		var devices []*session.Tokens
		for range 12 {
			devices = append(devices, w.Login(t))
			time.Sleep(time.Millisecond) // so that the sessions have an order
		}
		if err := w.Sessions.Logout(t.Context(), devices[11].Refresh); err != nil { // an ended session counts, too
			t.Fatal(err)
		}
		g.repeat(t, 4, "alice", "")
		forged := []byte(devices[11].Refresh)
		forged[20] ^= 1
		for _, token := range []string{devices[0].Refresh, devices[1].Refresh, string(forged), "x", devices[11].Access} {
			if got := g.try(t, "192.0.2.1", "alice", wrong, token); got != "wait" {
				t.Errorf("%.12s…: %s", token, got)
			}
		}
		for _, device := range []*session.Tokens{devices[2], devices[11]} {
			if got := g.try(t, "192.0.2.1", "alice", wrong, device.Refresh); got != "wrong" {
				t.Errorf("a known device: %s", got)
			}
		}
	})
}

// The wrong passwords of ChangePassword count for the session, and then for the username.
func TestGuessesOfASignedInUser(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // the clock stands still
		w := sessiontest.New(t)
		g := guard(t, w, 3, 0)
		by, other := world{w}.caller(t, w.Alice.ID, w.Login(t)), world{w}.caller(t, w.Alice.ID, w.Login(t))
		change := func(by caller.Caller, pw string) string {
			t.Helper()
			_, err := g.logins.ChangePassword(t.Context(), by, sessiontest.Parse(t, pw), sessiontest.Parse(t, "changed by Alice"))
			return answer(t, err)
		}
		for _, want := range []string{"wrong", "wrong", "wrong", "wrong", "wrong", "wrong", "wait"} {
			if got := change(by, wrong); got != want {
				t.Errorf("ChangePassword: %s, want %s", got, want)
			}
		}
		if got := g.try(t, "", "alice", wrong, ""); got != "wait" { // the session's last guesses count for the username
			t.Errorf("Login: %s", got)
		}
		if got := change(by, sessiontest.Password); got != "wait" {
			t.Errorf("with the right password: %s", got)
		}
		if got := change(other, sessiontest.Password); got != "ok" {
			t.Errorf("in another session: %s", got)
		}
	})
}

// One source may send a bounded number of wrong passwords, at whatever names. A known
// device of the same network gets in.
func TestGuessesFromOneSource(t *testing.T) {
	t.Parallel()
	w := sessiontest.New(t)
	g := guard(t, w, 1000, 1) // a source can make 20 wrong guesses at once
	device := w.Login(t)
	admitted := 0
	for i := range 60 {
		if g.try(t, "192.0.2.1", user.Name(fmt.Sprint("name", i)), wrong, "") == "wrong" {
			admitted++
		}
	}
	if admitted < 20 || admitted > 40 { // some seconds may have passed
		t.Errorf("%d guesses were admitted, want 20", admitted)
	}
	for _, c := range []struct {
		from           caller.Source
		name           user.Name
		previous, want string
	}{
		{"192.0.2.1", "bob", "", "wait"},
		{"192.0.2.1", "bob", device.Refresh, "wait"},
		{"192.0.2.1", "alice", device.Refresh, "ok"},
		{"192.0.2.2", "alice", "", "ok"},
	} {
		if c.want == "wait" {
			for g.try(t, c.from, "somebody", wrong, "") == "wrong" { // uses up the free tries of the source again
				continue
			}
		}
		pw := wrong
		if c.want == "ok" {
			pw = sessiontest.Password
		}
		if got := g.try(t, c.from, c.name, pw, c.previous); got != c.want {
			t.Errorf("%s from %s, device %t: %s, want %s", c.name, c.from, c.previous != "", got, c.want)
		}
	}
}

// If the database cannot count a wrong guess, the client does not learn that the guess was
// wrong: the count of the source stays as it is, and no guess is compared until the database
// counts again.
func TestGuessesThatCannotBeCounted(t *testing.T) {
	t.Parallel()
	w := sessiontest.New(t)
	g := guard(t, w, 1000, 1) // a source can make 20 wrong guesses at once
	database, err := sql.Open("sqlite", "file:"+w.Store.Path()+"?_pragma=busy_timeout(30000)")
	if err != nil {
		t.Fatal(err)
	}
	defer database.Close()
	do := func(statement string) {
		t.Helper()
		if _, err := database.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	from := caller.WithSource(t.Context(), "192.0.2.1")
	do(`CREATE TRIGGER full BEFORE INSERT ON throttle BEGIN SELECT RAISE(ABORT, 'full'); END`)
	for _, pw := range []string{wrong, sessiontest.Password, wrong} {
		if _, err := g.logins.Login(from, "alice", sessiontest.Parse(t, pw), nil, ""); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%q: %v", pw, err)
		}
	}
	do(`DROP TRIGGER full`)
	for n := range 20 {
		if got := g.try(t, "192.0.2.1", "alice", wrong, ""); got != "wrong" {
			t.Errorf("guess %d of 20: %s", n, got)
		}
	}
	if got := g.try(t, "192.0.2.2", "alice", sessiontest.Password, ""); got != "ok" {
		t.Error(got)
	}
}

// A right password, however often, costs nothing: no count, and so no delay.
func TestRightPasswordsAreNotCounted(t *testing.T) {
	t.Parallel()
	w := sessiontest.New(t)
	g := guard(t, w, 2, 1)
	for range 50 {
		if got := g.try(t, "192.0.2.1", "alice", sessiontest.Password, ""); got != "ok" {
			t.Fatal(got)
		}
	}
}

// A refused try costs one read of the database, and a wrong password costs one write.
func TestCostOfGuesses(t *testing.T) {
	w, proxy := sessiontest.Wired(t)
	g := guard(t, w, 100, 0)
	count := sessiontest.Count(proxy)
	for range 40 { // the first call on a connection prepares its statements there
		g.try(t, "192.0.2.1", "mallory", wrong, "")
	}
	// the statements, with "|" or "and" between two round trips: BEGIN, settings, buckets |
	// user | COMMIT, and BEGIN, settings, two rows, buckets, time | two rows, COMMIT.
	count.Want(t, "a wrong password", 14, 5, func() { g.try(t, "192.0.2.1", "mallory", wrong, "") })
	for g.try(t, "192.0.2.1", "mallory", wrong, "") == "wrong" {
		continue
	}
	count.Want(t, "a refused try", 5, 3, func() {
		if got := g.try(t, "192.0.2.1", "mallory", wrong, ""); got != "wait" {
			t.Error(got)
		}
	})
}
