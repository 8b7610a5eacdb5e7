package authn

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/retry"
)

const (
	// reportPause is the shortest time between two reports. A server ends the stream of a
	// watcher that reports more than twenty times a second.
	reportPause = 75 * time.Millisecond
	// reportsPerStream is the number of reports on one stream of ReportWatcher, after which the
	// reporter opens a new stream: a server resets a stream with more than 1024 small frames,
	// since a client could send one message in tiny pieces.
	reportsPerStream = 400
	// After a failure the reporter waits from firstReportDelay to longestReportDelay before it
	// reports again.
	firstReportDelay   = time.Second
	longestReportDelay = time.Minute
	// maxWords is the largest length, in bytes, of each text in which a verifier describes
	// itself.
	maxWords = 128
)

// A reporter sends the server the name, the instance and the version of the verifier, and which
// events the verifier has applied, for `watchword watchers`. One goroutine of the feed reports
// after the heartbeats of the server. Nothing waits for a report, and a report that cannot be
// sent is lost.
type reporter struct {
	said   *watchwordv1.WatcherIdentity
	status func() *watchwordv1.WatcherReport
	due    chan struct{} // has room for one element, which means that a heartbeat was applied
}

// newReporter returns the reporter of a verifier. said holds what the options of NewVerifier say of
// the program. The function status returns what the verifier has applied and refused so far.
func newReporter(said *watchwordv1.WatcherIdentity, status func() *watchwordv1.WatcherReport) *reporter {
	return &reporter{said: said, status: status, due: make(chan struct{}, 1)}
}

// heartbeat makes the reporter report soon. heartbeat does not block: one report serves
// several heartbeats.
func (r *reporter) heartbeat() {
	select {
	case r.due <- struct{}{}:
	default:
	}
}

// run sends reports over conn until ctx ends. If the server does not have the method
// ReportWatcher, run returns: the feed calls run again for the next stream of the bundle,
// perhaps at a newer server.
func (r *reporter) run(ctx context.Context, conn grpc.ClientConnInterface) {
	var backoff retry.Backoff
	for r.wait(ctx) {
		began := time.Now()
		err := r.report(ctx, conn)
		for err == nil {
			backoff.Reset()
			err = r.report(ctx, conn)
		}
		if status.Code(err) == codes.Unimplemented {
			return
		}
		if time.Since(began) > longestReportDelay {
			backoff.Reset()
		}
		sleep(ctx.Done(), backoff.Next(firstReportDelay, longestReportDelay, retry.Asked(err, longestReportDelay)))
	}
}

// errReportsEnded means that the server has ended a stream of ReportWatcher without an error.
var errReportsEnded = errors.New("the server has ended the stream")

// report opens one stream of ReportWatcher, and sends a report at once and after each
// heartbeat. After reportsPerStream reports and a further heartbeat, report ends the stream and
// returns nil, and the next report needs a new stream.
//
// Errors: the reason for the end of the stream.
func (r *reporter) report(ctx context.Context, conn grpc.ClientConnInterface) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := watchwordv1.NewTrustServiceClient(conn).ReportWatcher(ctx)
	if err != nil {
		return err
	}
	send := func(m *watchwordv1.ReportWatcherRequest) error {
		err := stream.Send(m)
		if errors.Is(err, io.EOF) { // the server has ended the stream
			if _, err = stream.CloseAndRecv(); err == nil {
				err = errReportsEnded
			}
		}
		return err
	}
	if err := send(&watchwordv1.ReportWatcherRequest{Message: &watchwordv1.ReportWatcherRequest_Identity{Identity: r.said}}); err != nil {
		return err
	}
	for range reportsPerStream {
		if err := send(&watchwordv1.ReportWatcherRequest{Message: &watchwordv1.ReportWatcherRequest_Report{Report: r.status()}}); err != nil {
			return err
		}
		if !sleep(ctx.Done(), reportPause) || !r.wait(ctx) {
			return ctx.Err()
		}
	}
	_, err = stream.CloseAndRecv()
	return err
}

// wait waits for the next heartbeat from the server. wait returns false if ctx ends first.
func (r *reporter) wait(ctx context.Context) bool {
	select {
	case <-r.due:
		return true
	case <-ctx.Done():
		return false
	}
}

// report returns what ListWatchers shows about the state of the verifier, such as the newest
// event that the verifier has applied.
func (v *Verifier) report() *watchwordv1.WatcherReport {
	fresh := v.bundle.fresh
	r := &watchwordv1.WatcherReport{Resume: fresh.position.Load().resume, Staleness: durationpb.New(fresh.age())}
	for reason := range v.counters.byReason {
		if n := v.counters.byReason[reason].Load(); n > 0 {
			r.Refusals = append(r.Refusals, &watchwordv1.RefusalCount{Reason: watchwordv1.ErrorReason(reason), Count: n})
		}
	}
	return r
}

// identity returns how a verifier describes itself: by the values of WithName, WithInstance and
// WithVersion, or else by the name of the program, the name of the machine, and the version of
// the program's main module.
func (c *config) identity() *watchwordv1.WatcherIdentity {
	said := &watchwordv1.WatcherIdentity{Watcher: make([]byte, 16)}
	rand.Read(said.Watcher)
	said.Service = c.words[0]
	if said.Service == "" && len(os.Args) > 0 {
		said.Service = cut(filepath.Base(os.Args[0]))
	}
	if said.Instance = c.words[1]; said.Instance == "" {
		host, _ := os.Hostname() // the error is ignored: without a name of the machine, the instance stays empty
		said.Instance = cut(host)
	}
	if said.Version = c.words[2]; said.Version == "" {
		if build, ok := debug.ReadBuildInfo(); ok {
			said.Version = cut(build.Main.Version)
		}
	}
	return said
}

// cut returns the beginning of a text, as many bytes as the server accepts.
func cut(text string) string {
	text = strings.ToValidUTF8(strings.ReplaceAll(text, "\x00", ""), "")
	return strings.ToValidUTF8(text[:min(len(text), maxWords)], "")
}

// goodWords reports whether the server accepts the texts in which the verifier describes
// itself.
func goodWords(words ...string) bool {
	return !slices.ContainsFunc(words, func(text string) bool { return text != cut(text) })
}
