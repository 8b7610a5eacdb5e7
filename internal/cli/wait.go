package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// waiting holds the flags --wait and --wait-for, with which a command waits until every
// verifier has the change that the command has made.
type waiting struct {
	Wait    bool          `help:"Wait until every watcher of every replica has the change; see watchword watchers. Exit status 3 if some have not reported it in time."`
	WaitFor time.Duration `default:"10s" placeholder:"DURATION" help:"With --wait: how long to wait, such as 30s."`
}

// waitPoll is the time between two calls of ListWatchers, which ask what the verifiers have
// applied.
const waitPoll = 50 * time.Millisecond

// unreached is the error of a command that has made the change, when some watchers (verifiers
// with a stream) have not reported the change in time: exit status 3.
type unreached struct {
	after   time.Duration
	missing []string // lines that name the watchers, replicas and certificates without the change
	cause   error    // why the watchers cannot be listed; nil if the server has listed the watchers
}

func (e unreached) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("the change is made, and which watchers have the change is unknown; see watchword watchers: %s", explainOne(e.cause))
	}
	return fmt.Sprintf("the change is made; after %s, the %d named above may be without the change", e.after, len(e.missing))
}

// afterChange waits, if --wait is given, until every watcher (a verifier with a stream) has
// applied the newest event in the database, which the first answer of ListWatchers names.
// For a replica with --client-ca, afterChange waits only for the watchers that have shown a
// certificate; for another replica, afterChange waits for all watchers.
//
// Errors: unreached is the only error. The change is made, and after another error a script
// would repeat the command.
func (w waiting) afterChange(ctx context.Context, t Terminal, conn grpc.ClientConnInterface) error {
	if !w.Wait {
		return nil
	}
	began, position := time.Now(), int64(0)
	for {
		all, err := allWatchers(ctx, conn)
		if position == 0 {
			position = all.GetPosition()
		}
		late := unreached{time.Since(began).Round(time.Millisecond), missing(all, position), err}
		if err == nil && len(late.missing) == 0 {
			fmt.Fprintf(t.Err, "every watcher has the change: %d, after %s\n", len(all.GetWatchers()), late.after)
			return nil
		}
		wait := w.WaitFor - late.after
		if err != nil && !mayPass(err) {
			wait = 0 // trying again cannot help, such as when the revoked key has signed the caller's token
		}
		if wait > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(waitPoll):
				continue
			}
		}
		for _, line := range late.missing {
			fmt.Fprintln(t.Err, escape(line, ""))
		}
		return late
	}
}

// missing returns lines that name every replica, watcher and certificate that has not applied
// the event number position.
func missing(all *watchwordv1.ListWatchersResponse, position int64) []string {
	return slices.Concat(silentReplicas(all, position), lateWatchers(all, position), absentCertificates(all))
}

// lateWatchers returns lines that name the watchers that have not reported the event with the
// number position.
func lateWatchers(all *watchwordv1.ListWatchersResponse, position int64) (lines []string) {
	certified := map[string]bool{} // the replicas that ask their watchers for certificates
	for _, r := range all.GetReplicas() {
		certified[r.GetId()] = r.GetNeedsCertificate()
	}
	for _, w := range all.GetWatchers() {
		if certified[w.GetReplica()] && w.GetCertificate() == "" || w.GetReports() && w.GetPosition() >= position {
			continue
		}
		name := w.GetAddress()
		if w.GetCertificate() != "" {
			name += ", certificate " + w.GetCertificate()
		}
		if !w.GetReports() {
			lines = append(lines, fmt.Sprintf("watcher at %s reports nothing", name))
			continue
		}
		lines = append(lines, fmt.Sprintf("watcher at %s, in its own words %q %q, is at event %d of %d", name, w.GetService(), w.GetInstance(), w.GetPosition(), position))
	}
	return lines
}
