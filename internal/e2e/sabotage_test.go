package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// roundsEnv names a variable with a number of rounds, for a longer run.
const roundsEnv = "WATCHWORD_FAULT_ROUNDS"

func faultRounds(t *testing.T, ordinary int) int {
	t.Helper()
	if text := os.Getenv(roundsEnv); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("%s: %v", roundsEnv, err)
		}
		return n
	}
	return ordinary
}

// TestReplicasUnderFaults runs three replicas over a primary with a synchronous standby.
// Clients keep calling while the test kills replicas, cuts connections, kills the primary
// and promotes the standby. Every session's history must be linearizable, and no
// acknowledged change may be lost. With a grace, no session may end without a logout.
func TestReplicasUnderFaults(t *testing.T) {
	t.Run("with a grace", func(t *testing.T) { runUnderFaults(t, rules{grace: true}, "24h", 80, faultRounds(t, 1)) })
	t.Run("without a grace", func(t *testing.T) { runUnderFaults(t, rules{}, "0s", 40, faultRounds(t, 1)) })
}

func runUnderFaults(t *testing.T, r rules, grace string, spacing int64, rounds int) {
	const persons, workers = 6, 2
	// The workers of a person share a session, and often refresh with the same token, so nearly
	// every generation has a repeat.
	in := install(t, "--access-ttl", "1h", "--refresh-grace", grace, "--refresh-repeats", "1000000000")
	in.follow(true)
	for range 3 {
		in.replicate(t)
	}
	p := newPeople(t, in, r, persons)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer p.stop.Store(true)
	for _, person := range p.all {
		for range workers {
			tasks.Go(person.makeCalls)
		}
	}
	tasks.Go(p.all[0].verifySessions)
	f := &saboteur{people: p, in: in, spacing: spacing}
	for range rounds {
		f.round()
	}
	f.awaitAnswers(f.spacing)
	p.stop.Store(true)
	tasks.Wait()
	t.Logf("%d calls, %d answers in %v", p.rec.calls.Load(), p.rec.acked.Load(), time.Since(p.rec.began).Round(time.Millisecond))
	if err := p.checkEnd(in); err != nil {
		t.Error(err)
	}
	began := time.Now()
	checked := r.checkSessions(t, p.rec)
	checkRights(t, p.rec)
	t.Logf("judged %d sessions with %d calls in %v; checked %d guests", checked, len(p.rec.events), time.Since(began).Round(time.Millisecond), len(p.guests))
}

// newPeople makes the users, and a client for each user and replica.
func newPeople(t *testing.T, in *installation, r rules, persons int) *people {
	t.Helper()
	p := &people{t: t, rules: r, rec: newRecorder(), guests: map[string]bool{}}
	door := in.replicas[0].dial(t)
	p.admin = door.login(t, "admin", in.admin, "watchword")
	for i := range persons {
		name, password := fmt.Sprintf("user-%d", i), newPassword()
		person := &person{people: p, name: name, password: password, id: door.create(t, p.admin, name, password).GetId()}
		for _, replica := range in.replicas {
			person.doors = append(person.doors, replica.dial(t))
		}
		p.all = append(p.all, person)
	}
	return p
}

// saboteur causes faults, and waits for clients' answers between two faults.
type saboteur struct {
	*people
	in      *installation
	spacing int64 // the number of answers between two faults
}

// awaitAnswers waits for a number of answers from now on.
func (f *saboteur) awaitAnswers(answers int64) {
	f.t.Helper()
	until := f.rec.acked.Load() + answers
	eventually(f.t, runTimeout, fmt.Sprintf("waiting for %d answers", answers), func() error {
		if n := f.rec.acked.Load(); n < until {
			return fmt.Errorf("%d are missing", until-n)
		}
		return nil
	})
}

// round causes each fault once, in random order.
func (f *saboteur) round() {
	f.t.Helper()
	faults := []struct {
		name string
		do   func()
	}{
		{"kill a replica", f.killReplica},
		{"kill another replica", f.killReplica},
		{"cut half of the clients' connections", f.cutClients},
		{"cut half of the connections to the database", func() { f.disturb(func() { f.in.slots[f.in.at].cutHalf() }) }},
		{"cut all connections to the database", func() { f.disturb(func() { f.in.slots[f.in.at].cut() }) }},
		{"break connections to the database again and again", func() { f.disturb(f.breakAgain) }},
		{"kill the primary and promote the standby", func() { f.disturb(f.failOver) }},
		{"kill the primary while the standby lags, and promote the standby", func() { f.disturb(f.failOverBehind) }},
	}
	rand.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
	for _, fault := range faults {
		f.awaitAnswers(f.spacing)
		before, began := f.rec.acked.Load(), time.Now()
		fault.do()
		f.t.Logf("%v: %s: took %v, with %d answers", began.Sub(f.rec.began).Round(time.Millisecond), fault.name,
			time.Since(began).Round(time.Millisecond), f.rec.acked.Load()-before)
	}
}

func (f *saboteur) killReplica() {
	r := f.in.replicas[rand.IntN(len(f.in.replicas))]
	r.kill()
	r.restart()
}

func (f *saboteur) cutClients() {
	for _, r := range f.in.replicas {
		r.door.cutHalf()
	}
}

// disturb causes a fault of the connections to the database, and waits for answers. disturb
// records the time in between as a window.
func (f *saboteur) disturb(fault func()) {
	from := f.rec.now()
	fault()
	f.awaitAnswers(f.spacing / 3)
	f.rec.mu.Lock()
	f.rec.broken = append(f.rec.broken, window{from, f.rec.now()})
	f.rec.mu.Unlock()
}

// breakAgain breaks every connection to the database after a random number of bytes, so
// also between a commit and the answer.
func (f *saboteur) breakAgain() {
	const most = 20_000 // bytes: some dozen transactions
	door := f.in.slots[f.in.at]
	door.set(lineFaults{breaks: most})
	door.cut()
	f.awaitAnswers(f.spacing)
	door.set(lineFaults{})
	door.cut()
}

func (f *saboteur) failOver() {
	f.preferChanges.Store(true)
	f.awaitAnswers(f.spacing / 5)
	f.in.primary.Kill()
	f.preferChanges.Store(false)
	f.in.promote()
	f.in.follow(true)
}

// standbyPause is the time for which commits wait for the frozen standby before the kill of
// the primary. standbyPause must be shorter than a server's deadline for a commit: after
// the deadline, a server cancels the wait for the standby, and other transactions see a
// commit that no standby has.
const standbyPause = 150 * time.Millisecond

// failOverBehind freezes the standby before the kill, so the primary has commits that the
// standby lacks.
func (f *saboteur) failOverBehind() {
	f.preferChanges.Store(true)
	f.awaitAnswers(f.spacing / 5)
	f.in.standby.Pause()
	<-time.After(standbyPause)
	f.in.primary.Kill()
	f.preferChanges.Store(false)
	f.in.standby.Resume()
	f.in.promote()
	f.in.follow(true)
}

// rolesOf returns the roles in an access token.
func rolesOf(accessToken string) string {
	parts := strings.Split(accessToken, ".")
	var claims struct{ Roles []string }
	if len(parts) == 3 {
		_ = json.Unmarshal(unbase64(parts[1]), &claims)
	}
	return joined(claims.Roles)
}

func joined(roles []string) string { return strings.Join(roles, " ") }
