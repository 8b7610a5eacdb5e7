package tokensource

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/watchword-auth/watchword/internal/durable"
	"github.com/watchword-auth/watchword/internal/retry"
)

// WithTokenFile makes [Workload] keep its access token in a file, for a process in another
// language on the same machine: gRPC's JWT file credentials (gRFC A97) read such a file. The file
// has mode 0600 and is replaced whole, so a reader sees one token or the next. Only a process of
// the same user can read the file.
//
// The Source renews the token also without calls, when about half of the token's life is left: gRPC
// looks for a new token from 90 seconds before the expiry on, and stops using a token 30 seconds
// before the expiry. If the file cannot be written, the log says so, and the Source tries again.
//
// Close leaves the file, because the reader of the file may outlive this process; the token in
// the file expires after some minutes. If a service has refused the token of the file as
// revoked, this process does not know: the file gets a new token at the next renewal.
//
// Use a folder in which only this user can create files. In a folder such as /tmp another user can
// create the file before the first token is there, and the reader sees a stranger's token.
//
// Errors of [Workload]: INVALID_ARGUMENT if path is empty, if every user of the machine is able to
// replace the file, or if another user has created the file in a folder such as /tmp. [Password]
// and [Refresh] refuse the option.
func WithTokenFile(path string) Option {
	return func(c *config) { c.tokenFile, c.fileGiven = path, true }
}

const (
	// firstWriteDelay and longestWriteDelay limit the pause after a failed write: the operator
	// has to make room or to give a permission.
	firstWriteDelay   = time.Second
	longestWriteDelay = time.Minute
	// draftAge is the age from which on a draft of the token file is deleted: writing a draft
	// takes far less time.
	draftAge = time.Minute
)

// checkOptions returns an error for an option that does not fit the session.
func (s *session) checkOptions() error {
	switch {
	case s.assertion != nil && s.store != nil:
		return misused("Workload has no refresh token for WithStore")
	case s.assertion == nil && s.fileGiven:
		return misused("WithTokenFile is for Workload")
	case s.fileGiven && s.tokenFile == "":
		return misused("WithTokenFile needs a path")
	case !s.fileGiven:
		return nil
	}
	if err := errors.Join(durable.CheckWriters(s.tokenFile), durable.CheckOwner(s.tokenFile)); err != nil {
		return misused("WithTokenFile: " + err.Error())
	}
	return nil
}

// keepFile renews the token when due, and writes each new token to the token file, until the
// Source ends.
func (s *Source) keepFile() {
	durable.RemoveDrafts(s.session.tokenFile, draftAge) // removes the drafts of processes that were killed while writing
	var written string
	var failures retry.Backoff
	for s.ctx.Err() == nil {
		token, err := s.Token(context.Background()) // returns when the Source ends; with s.ctx, Token would refuse the call as one of a renewal
		var pause time.Duration
		if err == nil && token != written {
			if err := s.writeFile(token); err != nil {
				pause = failures.Next(firstWriteDelay, longestWriteDelay, 0)
				s.session.log.Error("the token file cannot be written", "path", s.session.tokenFile, "error", err, "pause", pause)
			} else {
				written = token
				failures.Reset()
			}
		}
		s.waitForNews(pause)
	}
}

func (s *Source) writeFile(token string) error {
	return durable.Replace(s.session.tokenFile, func(f *os.File) error {
		_, err := f.WriteString(token)
		return err
	})
}

// waitForNews returns when the Source may have another token, when a renewal is due, after pause
// if pause is not zero, or at the end of the Source, whatever comes first.
func (s *Source) waitForNews(pause time.Duration) {
	s.mu.Lock()
	running, due := s.renewal, s.notBefore
	if s.access != "" && due.Before(s.renewAt) {
		due = s.renewAt
	}
	s.mu.Unlock()
	if until := time.Until(due); pause == 0 || until < pause {
		pause = until
	}
	if running != nil {
		select {
		case <-running.done:
		case <-s.ctx.Done():
		}
		return
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.wake:
	case <-s.ctx.Done():
	}
}

// wakeKeeper wakes the keeper of the token file, if there is one.
func (s *Source) wakeKeeper() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
