package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// shipper runs `watchword audit --follow --json` again and again, as a service manager does,
// and keeps the lines that every run has printed.
type shipper struct {
	command func(args ...string) *exec.Cmd
	resume  string
	now     *process
	earlier string // the lines of the runs before
}

func newShipper(t *testing.T, command func(args ...string) *exec.Cmd) *shipper {
	t.Helper()
	s := &shipper{command: command, resume: filepath.Join(t.TempDir(), "resume")}
	s.run(t)
	return s
}

func (s *shipper) run(t *testing.T) {
	t.Helper()
	s.now = start(t, s.command("audit", "--follow", "--json", "--resume-file", s.resume))
}

// again kills the command while events come, and starts the command again.
func (s *shipper) again(t *testing.T) {
	t.Helper()
	before := strings.Count(s.now.printed(t), "\n")
	eventually(t, runTimeout, "printing more events", func() error {
		if n := strings.Count(s.now.printed(t), "\n"); n <= before {
			return fmt.Errorf("%d lines", n)
		}
		return nil
	})
	s.now.kill()
	s.earlier += whole(s.now.printed(t))
	s.run(t)
}

// whole returns the lines of a text that are complete: a shipper drops the rest.
func whole(text string) string { return text[:strings.LastIndex(text, "\n")+1] }

// shippedLine is a line of the command.
type shippedLine struct {
	ID    string
	Count int64
	Gap   string
}

func (s *shipper) lines(t *testing.T) (lines []shippedLine) {
	t.Helper()
	for text := range strings.Lines(s.earlier + whole(s.now.printed(t))) {
		var line shippedLine
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		lines = append(lines, line)
	}
	return lines
}

// gaps returns the gaps in the lines.
func (s *shipper) gaps(t *testing.T) (gaps []string) {
	for _, line := range s.lines(t) {
		if line.Gap != "" {
			gaps = append(gaps, line.Gap)
		}
	}
	return gaps
}

// awaitAll waits until the shipped lines have every event that `watchword audit` lists, with the
// same counts, and returns how many lines repeat an event with an unchanged count.
func (s *shipper) awaitAll(t *testing.T, what string, list func() string) (repeated int) {
	t.Helper()
	eventually(t, runTimeout, what, func() error {
		want, got := map[string]int64{}, map[string]int64{}
		for text := range strings.Lines(list()) {
			var line shippedLine
			if err := json.Unmarshal([]byte(text), &line); err != nil {
				return err
			}
			want[line.ID] = line.Count
		}
		repeated = 0
		for _, line := range s.lines(t) {
			if line.Gap != "" {
				continue
			}
			if count, known := got[line.ID]; known && count == line.Count {
				repeated++
			}
			got[line.ID] = line.Count
		}
		if !maps.Equal(want, got) {
			return fmt.Errorf("%d events are shipped, and %d are on record", len(got), len(want))
		}
		return nil
	})
	return repeated
}

// busy makes events until the caller stops it: changes of users by an admin, and refused calls,
// of which many are counted in one record.
func busy(t *testing.T, c *client, admin *watchwordv1.TokenPair, users ...string) (stop func()) {
	t.Helper()
	done := make(chan struct{})
	var working sync.WaitGroup
	for _, id := range users {
		working.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(10 * time.Millisecond): // a load that leaves the machine to others
				}
				ctx := callCtx(t)
				_, _ = c.RevokeUserSessions(bearer(ctx, admin), &watchwordv1.RevokeUserSessionsRequest{UserId: id})
				_, _ = c.Refresh(ctx, &watchwordv1.RefreshRequest{RefreshToken: "wwrt_rubbish"})
			}
		})
	}
	return sync.OnceFunc(func() { close(done); working.Wait() })
}

// The record is shipped from a running server and from the database, while the shippers are
// killed and the server restarts. Nothing is missing; after a restored backup the shippers say
// that events may be missing, and have every event of the restored database.
func TestShippingTheRecord(t *testing.T) {
	s := serve(t, t.TempDir())
	door := newProxy(t, s.grpcAddr)
	c := dial(t, door.addr())
	wantExit(t, 0, cli(t, s.dir, s.admin+"\n", "login", "admin", "--audience", "watchword", "--password-stdin", "--addr", door.addr(), "--plaintext"))
	admin := c.login(t, "admin", s.admin, "watchword")
	var users []string
	for i := range 4 {
		users = append(users, c.create(t, admin, fmt.Sprint("user", i), newPassword()).GetId())
	}
	shippers := map[string]*shipper{
		"of a server": newShipper(t, func(args ...string) *exec.Cmd {
			return cliCommand(t, s.dir, "", append(args, "--addr", door.addr(), "--plaintext")...)
		}),
		"of a database": newShipper(t, func(args ...string) *exec.Cmd {
			return cliCommand(t, s.dir, "", append(args, "--datastore-uri", database(s.dir))...)
		}),
	}
	list := func() string {
		return wantExit(t, 0, cli(t, s.dir, "", "audit", "--json", "--limit", "0", "--datastore-uri", database(s.dir)))
	}
	stop := busy(t, c, admin, users...)
	for range 3 {
		for _, shipping := range shippers {
			shipping.again(t)
		}
	}
	backup := filepath.Join(t.TempDir(), "backup.db")
	wantExit(t, 0, cli(t, s.dir, "", "backup", backup, "--datastore-uri", database(s.dir)))
	s.stop(t)
	next := serve(t, s.dir)
	door.move(next.grpcAddr)
	for _, shipping := range shippers {
		shipping.again(t)
	}
	stop()
	for name, shipping := range shippers {
		if repeated := shipping.awaitAll(t, "shipping the record "+name, list); repeated > 5*200 || len(shipping.gaps(t)) > 0 {
			t.Errorf("%s: %d lines repeat others, and the gaps are %v", name, repeated, shipping.gaps(t))
		}
		if info, err := os.Stat(shipping.resume); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the resume file %s: %v, %v", name, info, err)
		}
	}
	shippers["of a database"].now.kill() // no process may have the file open that is replaced
	next.stop(t)
	replaceDatabase(t, s.dir, backup)
	door.move(serve(t, s.dir).grpcAddr)
	shippers["of a database"].earlier += whole(shippers["of a database"].now.printed(t))
	shippers["of a database"].run(t)
	for name, shipping := range shippers {
		eventually(t, runTimeout, "telling of the lost events "+name, func() error {
			if gaps := shipping.gaps(t); len(gaps) != 1 || gaps[0] != "EVENT_GAP_OTHER_HISTORY" {
				return fmt.Errorf("the gaps are %v", gaps)
			}
			return nil
		})
	}
}

// A shipper that starts while the server behind a proxy is away waits, and ships every event
// when the server is back. The proxy closes each connection without an answer meanwhile.
func TestShippingBeginsWithoutTheServer(t *testing.T) {
	s := serve(t, t.TempDir())
	door := newProxy(t, s.grpcAddr)
	wantExit(t, 0, cli(t, s.dir, s.admin+"\n", "login", "admin", "--audience", "watchword", "--password-stdin", "--addr", door.addr(), "--plaintext"))
	s.stop(t)
	shipping := newShipper(t, func(args ...string) *exec.Cmd {
		return cliCommand(t, s.dir, "", append(args, "--addr", door.addr(), "--plaintext")...)
	})
	shipping.now.awaitLog(t, regexp.MustCompile("trying again"))
	door.move(serve(t, s.dir).grpcAddr)
	shipping.awaitAll(t, "shipping the record", func() string {
		return wantExit(t, 0, cli(t, s.dir, "", "audit", "--json", "--limit", "0", "--datastore-uri", database(s.dir)))
	})
}

// A change by a command on the database is recorded with the user of the operating system, and a
// running server logs the change.
func TestTheCommandLineIsOnRecord(t *testing.T) {
	s := serve(t, t.TempDir())
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	uri := []string{"--datastore-uri", database(s.dir)}
	for _, command := range []struct {
		event, target, stdin string
		args                 []string
	}{
		{"user.created", "user_name=bob", newPassword() + "\n", []string{"user", "create", "bob", "--password-stdin"}},
		{"user.sessions_revoked", "user_name=bob", "", []string{"session", "revoke-all", "bob"}},
		{"key.rotated", "kid=", "", []string{"key", "rotate"}},
		{"keys.resealed", "", "", []string{"key", "reseal", "--new-master-key"}},
		{"datastore.restored", "", "", []string{"datastore", "restored"}},
	} {
		wantExit(t, 0, cli(t, s.dir, command.stdin, append(command.args, uri...)...))
		s.awaitLog(t, regexp.MustCompile(`audit.* type=`+regexp.QuoteMeta(command.event)+` .*actor_name=`+regexp.QuoteMeta(me.Username)+` .*`+command.target+`.*source=cli`))
		found := s.audit(t, "--type", command.event)
		if newest := found[0]; newest.ActorName != me.Username || newest.Source != "cli" {
			t.Errorf("%s on record: %+v", command.event, newest)
		}
	}
	if text := s.stderr.String(); strings.Count(text, "type=user.created") != 2 { // the first admin, and bob
		t.Error("an event is in the log more than once")
	}
}

// The record of two replicas on PostgreSQL is shipped from a running server and from the
// database, while a replica is killed. When a standby is promoted that lacks commits, the
// shippers say so, and then ship what the new primary writes.
func TestShippingTheRecordOfReplicas(t *testing.T) {
	in := install(t)
	in.follow(false)
	a, b := in.replicate(t), in.replicate(t)
	door := newProxy(t, a.now().grpcAddr)
	c, other := dial(t, door.addr()), b.dial(t)
	admin := c.login(t, "admin", in.admin, "watchword")
	var users []string
	for i := range 4 {
		users = append(users, c.create(t, admin, fmt.Sprint("user", i), newPassword()).GetId())
	}
	dir := t.TempDir()
	wantExit(t, 0, cli(t, dir, in.admin+"\n", "login", "admin", "--audience", "watchword", "--password-stdin", "--addr", door.addr(), "--plaintext"))
	shippers := map[string]*shipper{
		"of a server": newShipper(t, func(args ...string) *exec.Cmd {
			return cliCommand(t, dir, "", append(args, "--addr", door.addr(), "--plaintext")...)
		}),
		"of a database": newShipper(t, in.command),
	}
	list := func() string { return wantExit(t, 0, run(t, in.command("audit", "--json", "--limit", "0"))) }
	stops := []func(){busy(t, c, admin, users[:2]...), busy(t, other, admin, users[2:]...)}
	for _, shipping := range shippers {
		shipping.again(t)
	}
	a.kill()
	door.move(b.now().grpcAddr)
	for _, shipping := range shippers {
		shipping.again(t)
	}
	for _, stop := range stops {
		stop()
	}
	a.restart()
	all := func(what string) {
		t.Helper()
		for name, shipping := range shippers {
			shipping.awaitAll(t, what+" "+name, list)
		}
	}
	all("shipping the record")
	in.standby.Detach(t)
	stop := busy(t, other, admin, users...)
	for _, shipping := range shippers {
		shipping.again(t)
	}
	stop()
	all("shipping what the standby lacks")
	lost := strings.Count(list(), "\n")
	in.primary.Kill()
	in.promote()
	eventually(t, runTimeout, "writing to the new primary", func() error {
		_, err := other.RevokeUserSessions(bearer(callCtx(t), admin), &watchwordv1.RevokeUserSessionsRequest{UserId: users[0]})
		return err
	})
	if now := strings.Count(list(), "\n"); now >= lost {
		t.Fatalf("the new primary lacks nothing: %d events of %d", now, lost)
	}
	for name, shipping := range shippers {
		eventually(t, runTimeout, "shipping what the new primary has "+name, func() error {
			shipped, gaps := map[string]bool{}, shipping.gaps(t)
			for _, line := range shipping.lines(t) {
				shipped[line.ID] = true
			}
			if len(gaps) != 1 || gaps[0] != "EVENT_GAP_OTHER_HISTORY" {
				return fmt.Errorf("the gaps are %v", gaps)
			}
			for text := range strings.Lines(list()) {
				var line shippedLine
				if err := json.Unmarshal([]byte(text), &line); err != nil || !shipped[line.ID] {
					return fmt.Errorf("%s is not shipped: %v", text, err)
				}
			}
			return nil
		})
	}
}
