package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/durable"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/retry"
)

// following holds the flags of `watchword audit --follow`.
type following struct {
	Follow     bool   `help:"Print the events that are written from now on, the oldest first, until Ctrl-C. While the server or the database is away, wait and go on."`
	ResumeFile string `type:"path" placeholder:"FILE" help:"With --follow: keep in FILE how far the events are printed, and go on from there at the next start. The first start begins with the oldest event, or with --since."`
}

const (
	// firstPause and longestPause bound the pause after a failed stream, until
	// `watchword audit --follow` opens another stream of events.
	firstPause, longestPause = 200 * time.Millisecond, 15 * time.Second
	// silence is the time after which a stream without a message is dead: a server sends a
	// message every five seconds.
	silence = 30 * time.Second
	// maxResumeFile bounds what is read of a resume file, in bytes.
	maxResumeFile = 4096
)

// follower prints the events that the server sends in one stream of WatchEvents after another.
type follower struct {
	*auditCmd
	outage
	audit watchwordv1.AuditServiceClient
	req   *watchwordv1.WatchEventsRequest
	saved string // the content of the resume file
	late  bool   // standard error has a line about events that wait
}

// follow prints events of the security record until ctx ends. Errors: an error that trying
// again cannot mend.
func (c *auditCmd) follow(ctx context.Context, t Terminal, conn grpc.ClientConnInterface) error {
	f := &follower{auditCmd: c, outage: c.newOutage(t), audit: watchwordv1.NewAuditServiceClient(conn), req: &watchwordv1.WatchEventsRequest{
		Type: c.Type, UserName: c.User, UserId: c.UserID, SessionId: c.Session,
	}}
	if err := f.begin(); err != nil {
		return err
	}
	if !c.JSON {
		if err := f.line("TIME", "TYPE", "OUTCOME", "ACTOR", "USER", "SESSION", "SOURCE", "COUNT", "DETAIL"); err != nil {
			return err
		}
	}
	var pause retry.Backoff
	for {
		came, err := f.stream(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if came {
			pause.Reset()
		}
		if err != nil {
			if err := f.retryable(err); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause.Next(firstPause, longestPause, retry.Asked(err, longestPause))):
		}
	}
}

// begin decides where the first stream begins, and makes the resume file if the file does not
// exist, so that a file that cannot be written is an error before the first event.
func (f *follower) begin() error {
	if f.ResumeFile != "" {
		err := f.readResume()
		if errors.Is(err, fs.ErrNotExist) {
			err = f.save("")
		}
		if err != nil {
			return fmt.Errorf("--resume-file: %w", err)
		}
	}
	f.req.Resume = f.saved
	switch {
	case f.saved != "":
	case f.Since > 0:
		f.req.StartTime = timestamppb.New(time.Now().Add(-f.Since))
	case f.ResumeFile != "":
		f.req.StartTime = &timestamppb.Timestamp{} // 1970: the stream begins with the oldest event
	}
	return nil
}

func (f *follower) readResume() error {
	if err := errors.Join(durable.CheckWriters(f.ResumeFile), durable.CheckUsable(f.ResumeFile)); err != nil {
		return err
	}
	text, err := durable.Read(f.ResumeFile, maxResumeFile)
	if err != nil {
		return err
	}
	f.saved = string(bytes.TrimSpace(text))
	if strings.ContainsFunc(f.saved, func(r rune) bool { return r <= ' ' || r > '~' }) { // gRPC refuses to send spaces and characters outside ASCII
		return fmt.Errorf("%s is no resume file: name another file", f.ResumeFile)
	}
	return nil
}

// save writes the text with which a later stream resumes into the file of --resume-file.
func (f *follower) save(resume string) error {
	err := durable.Replace(f.ResumeFile, func(file *os.File) error {
		_, err := fmt.Fprintln(file, resume)
		return err
	})
	if err == nil {
		f.saved = resume
	}
	return err
}

// stream prints the events of one stream of WatchEvents. came tells that at least one message
// of the server came. If the server ends the stream with the status OK, stream returns no
// error: the server ends the stream because the access token is about to expire.
func (f *follower) stream(ctx context.Context) (came bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dead := time.AfterFunc(silence, cancel)
	defer dead.Stop()
	stream, err := f.audit.WatchEvents(ctx, f.req)
	if err != nil {
		return false, err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return came, nil
		}
		if err != nil {
			return came, err
		}
		came = true
		f.over()
		dead.Stop() // no message is expected while print waits for a slow reader of standard output
		if err := f.print(m); err != nil {
			return came, err
		}
		dead.Reset(silence)
	}
}

// print prints the events of a message, and then writes into the resume file that these events
// are printed.
func (f *follower) print(m *watchwordv1.WatchEventsResponse) error {
	if gap, more := gapTexts[m.GetGap()]; more {
		fmt.Fprintln(f.t.Err, "watchword: "+gap)
		if f.JSON {
			if err := json.NewEncoder(f.t.Out).Encode(map[string]string{"gap": m.GetGap().String(), "detail": gap}); err != nil {
				return err
			}
		}
	}
	f.tellDelay(m)
	for _, e := range m.GetEvents() {
		err := error(nil)
		if f.JSON {
			err = json.NewEncoder(f.t.Out).Encode(auditLine(e))
		} else {
			err = f.line(auditCells(e)...)
		}
		if err != nil {
			return err
		}
	}
	f.req.Resume, f.req.StartTime = m.GetResume(), nil
	return f.keep(m.GetResume(), len(m.GetEvents()) > 0)
}

// keep writes the position from which a later stream resumes into the resume file. Call keep after
// the lines of the events before that position were printed.
func (f *follower) keep(resume string, printed bool) error {
	if f.ResumeFile == "" || resume == f.saved {
		return nil
	}
	if printed {
		if err := f.t.syncOut(); err != nil {
			return err
		}
	}
	if err := f.save(resume); err != nil {
		return fmt.Errorf("--resume-file: %w", err)
	}
	return nil
}

// syncOut syncs standard output to disk if standard output is a regular file: after a power
// cut, the resume file must not be ahead of the file with the events.
func (t Terminal) syncOut() error {
	file, ok := t.outFile()
	if !ok {
		return nil
	}
	return syncRegular(file)
}

var gapTexts = map[watchwordv1.EventGap]string{
	watchwordv1.EventGap_EVENT_GAP_DELETED:       "events are missing here: the server has deleted them because of --audit-ttl, before they were printed",
	watchwordv1.EventGap_EVENT_GAP_OTHER_HISTORY: "events may be missing here, and some may come again: the database has lost its newest state, such as after a backup was restored or a standby was promoted",
}

// tellDelay writes one line to standard error if new events wait for a transaction of
// PostgreSQL, until no event waits any more.
func (f *follower) tellDelay(m *watchwordv1.WatchEventsResponse) {
	if m.GetDelay() == nil {
		f.late = false
	} else if !f.late {
		f.late = true
		fmt.Fprintf(f.t.Err, "watchword: events wait, for %s now, for a transaction that is open in PostgreSQL: see \"A stream that waits\" in docs/audit.md\n",
			m.GetDelay().AsDuration().Round(time.Second))
	}
}

// line prints an event for people, in columns of fixed width: unlike [table], line cannot know
// the width of cells in later lines.
func (f *follower) line(cells ...string) error {
	for i, width := range []int{20, 21, 19, 28, 28, 16, 15, 5, 0} {
		cells[i] = fmt.Sprintf("%-*s", width, escape(cells[i], ""))
	}
	_, err := fmt.Fprintln(f.t.Out, strings.TrimRight(strings.Join(cells, "  "), " "))
	return err
}

// retryable returns nil if another stream of WatchEvents can mend the error of a stream. Errors:
// err, if trying again is no help.
func (f *follower) retryable(err error) error {
	switch {
	case refusal.Reason(err) == watchwordv1.ErrorReason_ERROR_REASON_USER_NOT_FOUND:
		return about{err, f.User}
	case refusal.Reason(err) == watchwordv1.ErrorReason_ERROR_REASON_INVALID_REQUEST && f.saved != "":
		return about{err, "the resume file is " + f.ResumeFile}
	case tokenUseless(err) && !f.TokenStdin && f.said == "": // no error yet: the next stream uses a new access token
		f.say(err)
		return nil
	}
	return f.tell(err)
}
