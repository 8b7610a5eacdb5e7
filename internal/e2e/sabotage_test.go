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

// roundsEnv names the variable with a number of rounds for a longer run.
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

// Three replicas over a primary with a synchronous standby, and clients who go on
// while replicas are killed, connections are cut, and the primary is killed and
// the standby promoted. Every session's history is linearizable, nothing that was
// acknowledged is lost, and with a grace nobody is logged out who did not ask.
func TestReplicasUnderFaults(t *testing.T) {
	t.Run("with a grace", func(t *testing.T) { faults(t, rules{grace: true}, "24h", 80, faultRounds(t, 2)) })
	t.Run("without a grace", func(t *testing.T) { faults(t, rules{}, "0s", 40, faultRounds(t, 1)) })
}

func faults(t *testing.T, r rules, grace string, spacing int64, rounds int) {
	const persons, workers = 6, 2
	in := install(t, "--access-ttl", "1h", "--refresh-grace", grace)
	in.follow(true)
	for range 3 {
		in.replicate(t)
	}
	p := gather(t, in, r, persons)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer p.stop.Store(true)
	for _, person := range p.all {
		for range workers {
			tasks.Go(person.live)
		}
	}
	tasks.Go(p.all[0].watchAll)
	f := &saboteur{people: p, in: in, spacing: spacing}
	for range rounds {
		f.round()
	}
	f.progress(f.spacing)
	p.stop.Store(true)
	tasks.Wait()
	t.Logf("%d calls, %d answers in %v", p.rec.calls.Load(), p.rec.acked.Load(), time.Since(p.rec.began).Round(time.Millisecond))
	if err := p.checkEnd(in); err != nil {
		t.Error(err)
	}
	began := time.Now()
	checked := r.check(t, p.rec)
	checkRights(t, p.rec)
	t.Logf("%d sessions with %d calls, and %d guests, judged in %v", checked, len(p.rec.events), len(p.guests), time.Since(began).Round(time.Millisecond))
}

func gather(t *testing.T, in *installation, r rules, persons int) *people {
	t.Helper()
	p := &people{t: t, rules: r, rec: newRecorder(), guests: map[string]bool{}}
	door := in.replicas[0].dial(t)
	p.admin = door.login(t, "admin", in.admin)
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

// saboteur does harm, and lets clients get on in between.
type saboteur struct {
	*people
	in      *installation
	spacing int64 // how many answers clients get between two faults
}

// progress waits for so many more answers.
func (f *saboteur) progress(answers int64) {
	f.t.Helper()
	until := f.rec.acked.Load() + answers
	eventually(f.t, runTimeout, fmt.Sprintf("%d more answers", answers), func() error {
		if n := f.rec.acked.Load(); n < until {
			return fmt.Errorf("%d are missing", until-n)
		}
		return nil
	})
}

// round does each harm once, in any order.
func (f *saboteur) round() {
	f.t.Helper()
	harms := []struct {
		name string
		do   func()
	}{
		{"a replica is killed", f.killReplica},
		{"another is killed", f.killReplica},
		{"clients' connections are cut", f.cutClients},
		{"some connections to the database are cut", func() { f.disturb(func() { f.in.slots[f.in.at].cutHalf() }) }},
		{"all connections to the database are cut", func() { f.disturb(func() { f.in.slots[f.in.at].cut() }) }},
		{"connections to the database break again and again", func() { f.disturb(f.breakAgain) }},
		{"the primary is killed and the standby promoted", func() { f.disturb(f.failOver) }},
		{"the same, the standby having lagged behind", func() { f.disturb(f.failOverBehind) }},
	}
	rand.Shuffle(len(harms), func(i, j int) { harms[i], harms[j] = harms[j], harms[i] })
	for _, h := range harms {
		f.progress(f.spacing)
		before, began := f.rec.acked.Load(), time.Now()
		h.do()
		f.t.Logf("%v: %s, in %v, with %d answers meanwhile", began.Sub(f.rec.began).Round(time.Millisecond), h.name,
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

// disturb notes that the way to the database was disturbed, until answers come
// again.
func (f *saboteur) disturb(harm func()) {
	from := f.rec.now()
	harm()
	f.progress(f.spacing / 3)
	f.rec.mu.Lock()
	f.rec.broken = append(f.rec.broken, window{from, f.rec.now()})
	f.rec.mu.Unlock()
}

// breakAgain lets every connection to the database break anywhere, so also between
// a commit and its answer.
func (f *saboteur) breakAgain() {
	const most = 20_000 // bytes: some dozen transactions
	door := f.in.slots[f.in.at]
	door.set(lineFaults{breaks: most})
	door.cut()
	f.progress(f.spacing)
	door.set(lineFaults{})
	door.cut()
}

func (f *saboteur) failOver() {
	f.changing.Store(true)
	f.progress(f.spacing / 5)
	f.in.primary.Kill()
	f.changing.Store(false)
	f.in.promote()
	f.in.follow(true)
}

// behind is for how long commits wait for the standby before the primary is
// killed: for less than a server gives any commit, or it would ask the primary to
// wait no longer, and others would see what no standby has.
const behind = 150 * time.Millisecond

// failOverBehind makes sure that the primary has what the standby has not.
func (f *saboteur) failOverBehind() {
	f.changing.Store(true)
	f.progress(f.spacing / 5)
	f.in.standby.Pause()
	<-time.After(behind)
	f.in.primary.Kill()
	f.changing.Store(false)
	f.in.standby.Resume()
	f.in.promote()
	f.in.follow(true)
}

// rolesOf reads the roles in an access token.
func rolesOf(accessToken string) string {
	parts := strings.Split(accessToken, ".")
	var claims struct{ Roles []string }
	if len(parts) == 3 {
		_ = json.Unmarshal(unbase64(parts[1]), &claims)
	}
	return joined(claims.Roles)
}

func joined(roles []string) string { return strings.Join(roles, " ") }
