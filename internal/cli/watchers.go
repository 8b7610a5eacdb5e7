package cli

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"
	"google.golang.org/grpc"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/refusal"
)

type watchersCmd struct {
	api
	asJSON
	Watch bool `help:"Show the list again every second, until Ctrl-C; on a terminal in place. While the server or the database is away, wait and go on."`
}

// redrawEvery is the time between two lists of `watchword watchers --watch`.
const redrawEvery = time.Second

// Run lists the watchers (verifiers with a stream) of every replica. With --json, each list is
// one line: the message ListWatchersResponse with every page. With --watch, Run waits for a server
// or a database that is away.
func (c *watchersCmd) Run(ctx context.Context, t Terminal) error {
	var screen *os.File
	if c.Watch {
		if screen = t.screen(); c.JSON {
			screen = nil
		}
		t.Err = struct{ io.Writer }{t.Err} // removes the line that shows that the command is at work: the list shows this itself
	}
	away := c.newOutage(t)
	return c.with(ctx, t, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		for {
			all, err := allWatchers(ctx, conn)
			switch {
			case ctx.Err() != nil && c.Watch:
				return nil
			case err == nil:
				away.over()
				err = c.show(t, screen, all)
			case c.Watch:
				err = away.tell(err)
			}
			if err != nil || !c.Watch {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(redrawEvery):
			}
		}
	})
}

// show prints a list of watchers; if screen is a terminal, the list takes the place of the
// earlier list.
func (c *watchersCmd) show(t Terminal, screen *os.File, all *watchwordv1.ListWatchersResponse) error {
	if c.JSON {
		return t.printLine(all)
	}
	var text bytes.Buffer
	if err := watcherTable(&text, all); err != nil {
		return err
	}
	if screen == nil {
		_, err := text.WriteTo(t.Out)
		return err
	}
	return redraw(screen, escape(text.String(), "\n\t"))
}

// allWatchers joins every page of ListWatchers into one response. Watchers with the same name
// follow each other in the response.
func allWatchers(ctx context.Context, conn grpc.ClientConnInterface) (*watchwordv1.ListWatchersResponse, error) {
	all := &watchwordv1.ListWatchersResponse{}
	err := pages(func(token string) (string, error) {
		resp, err := watchwordv1.NewTrustServiceClient(conn).ListWatchers(ctx, &watchwordv1.ListWatchersRequest{PageSize: 1000, PageToken: token})
		if err != nil {
			return "", err
		}
		resp.Watchers = append(all.Watchers, resp.GetWatchers()...)
		all = resp
		return resp.GetNextPageToken(), nil
	})
	slices.SortStableFunc(all.GetWatchers(), func(a, b *watchwordv1.Watcher) int {
		return cmp.Or(cmp.Compare(a.GetService(), b.GetService()), cmp.Compare(a.GetInstance(), b.GetInstance()))
	})
	return all, err
}

// watcherTable writes a list of watchers for people. The columns SERVICE, INSTANCE and VERSION
// hold what a watcher says of itself; "-" in LAG shows a watcher that reports nothing.
func watcherTable(out *bytes.Buffer, all *watchwordv1.ListWatchersResponse) error {
	replicas := map[string]string{}
	for _, r := range all.GetReplicas() {
		replicas[r.GetId()] = r.GetAddress()
	}
	err := table(out, "SERVICE\tINSTANCE\tVERSION\tADDRESS\tCERTIFICATE\tREPLICA\tLAG\tSTALE FOR\tREFUSED", func(add addRow) error {
		for _, w := range all.GetWatchers() {
			lag, stale, refused := "-", "-", "-"
			if w.GetReports() {
				lag, stale, refused = fmt.Sprint(w.GetLag()), w.GetStaleness().AsDuration().Round(time.Second).String(), refusals(w.GetRefusals())
			}
			err := add(cmp.Or(w.GetService(), "-"), cmp.Or(w.GetInstance(), "-"), cmp.Or(w.GetVersion(), "-"), w.GetAddress(),
				cmp.Or(w.GetCertificate(), "-"), replicas[w.GetReplica()], lag, stale, refused)
			if err != nil {
				return err
			}
		}
		return nil
	})
	fmt.Fprintf(out, "%d watchers, %d replicas; the newest event is %d\n", len(all.GetWatchers()), len(all.GetReplicas()), all.GetPosition())
	for _, line := range slices.Concat(silentReplicas(all, 0), absentCertificates(all)) {
		fmt.Fprintln(out, escape(line, ""))
	}
	return err
}

// refusals returns the numbers of refused tokens by reason, as the text of one cell of the
// table.
func refusals(counts []*watchwordv1.RefusalCount) string {
	var parts []string
	for _, c := range counts {
		parts = append(parts, fmt.Sprintf("%s %d", refusal.Name(c.GetReason()), c.GetCount()))
	}
	return cmp.Or(strings.Join(parts, ", "), "0")
}

// silentReplicas returns lines that name the replicas that cannot be asked, and the replicas
// that have not applied the event with the number position.
func silentReplicas(all *watchwordv1.ListWatchersResponse, position int64) (lines []string) {
	for _, r := range all.GetReplicas() {
		if !r.GetAnswers() {
			lines = append(lines, fmt.Sprintf("replica %s cannot be asked; it was last seen %s, and its watchers are unknown since then", r.GetAddress(), moment(r.GetSeenAt())))
		} else if r.GetPosition() < position {
			lines = append(lines, fmt.Sprintf("replica %s has not read event %d yet", r.GetAddress(), position))
		}
	}
	return lines
}

func absentCertificates(all *watchwordv1.ListWatchersResponse) (lines []string) {
	for _, c := range all.GetAbsent() {
		lines = append(lines, fmt.Sprintf("certificate %s has no watcher now; the last one was seen %s", c.GetCertificate(), moment(c.GetSeenAt())))
	}
	return lines
}

// screen returns standard output if standard output is a terminal, and nil otherwise. The
// caller must escape the text before writing to the terminal.
func (t Terminal) screen() *os.File {
	e, ok := t.Out.(escaping)
	if !ok {
		return nil
	}
	if f, ok := e.to.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

// redraw writes a text over what the terminal shows. If the text has more lines than the
// terminal, the last line tells how many lines are left out.
func redraw(screen *os.File, text string) error {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if _, height, err := term.GetSize(int(screen.Fd())); err == nil && height > 2 && len(lines) >= height {
		rest := len(lines) - (height - 2)
		lines = append(lines[:height-2], fmt.Sprintf("and %d more lines", rest))
	}
	const home, clearLine, clearBelow = "\x1b[H", "\x1b[K", "\x1b[J"
	_, err := screen.WriteString(home + strings.Join(lines, clearLine+"\n") + clearLine + "\n" + clearBelow)
	return err
}
