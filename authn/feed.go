package authn

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/retry"
	"github.com/watchword-auth/watchword/internal/transport"
)

const (
	// firstDelay is the pause after the first failure of a stream: short, so that no caller
	// notices the pause, and long enough to spread out the verifiers of a restarted server.
	firstDelay = 50 * time.Millisecond
	// longestDelay is the longest pause between two streams: a verifier finds a server that has
	// come back within longestDelay.
	longestDelay = 10 * time.Second
	// shortLife is the shortest life of a stream that shows a healthy server, if the stream has
	// brought the whole bundle.
	shortLife = time.Second
	// cutInARow is the number of short streams, one after the other, after which the log
	// names a timeout as the probable cause.
	cutInARow = 3
	// The last part of a pause, one eighth (1/connectPart), is for connecting again before
	// the next stream.
	connectPart = 8
	// silence is the time without a message after which the feed opens a new stream: servers
	// send a heartbeat every few seconds, and a new stream may reach another server. If the
	// connection under conn is dead, only conn can replace the connection.
	silence = time.Minute
	// patience is the time that the server has for an answer before Ready accepts the snapshot
	// file. A running server answers within milliseconds, a restarted server within about a
	// second.
	patience = 2 * time.Second
)

// A feed keeps a trust bundle up to date from a server's stream, in one goroutine.
//
// mu guards only the state of the wait in [Verifier.Ready].
type feed struct {
	conn      grpc.ClientConnInterface
	bundle    *bundle
	plaintext bool // true: the feed accepts keys from another machine without TLS
	reporter  *reporter
	cancel    context.CancelFunc
	done      chan struct{} // closed when the goroutine has ended
	fallback  *time.Timer   // calls acceptSnapshot; nil without a snapshot

	mu       sync.Mutex
	complete bool          // true after the first bundle has come, or after the snapshot was accepted
	last     error         // the error of the last stream; not used after complete is true
	changed  chan struct{} // closed and replaced when complete or last changes
}

// startFeed starts the goroutine that watches the trust bundle. The stream outlives the call
// that made the Verifier, so the stream has a context without the call's deadline, peer and
// values.
func startFeed(conn grpc.ClientConnInterface, b *bundle, plaintext bool, r *reporter) *feed {
	ctx, cancel := context.WithCancel(context.Background())
	f := &feed{
		conn: conn, bundle: b, plaintext: plaintext, reporter: r, cancel: cancel,
		done: make(chan struct{}), changed: make(chan struct{}),
	}
	if b.fresh.complete.Load() {
		f.fallback = time.AfterFunc(patience, f.acceptSnapshot)
	}
	go f.run(ctx)
	return f
}

// stop ends the goroutine and waits for its end.
func (f *feed) stop() {
	f.cancel()
	<-f.done
	if f.fallback != nil {
		f.fallback.Stop()
	}
}

// run opens streams, one after the other, until ctx ends.
func (f *feed) run(ctx context.Context) {
	defer close(f.done)
	var backoff retry.Backoff
	for cut := 0; ctx.Err() == nil; {
		began := time.Now()
		caughtUp, err := f.watch(ctx)
		if ctx.Err() != nil {
			return
		}
		lasted := time.Since(began)
		// A stream that has lasted shows a healthy server. A complete bundle alone does not show
		// a healthy server, since the server may crash just after.
		if lasted > longestDelay || caughtUp && lasted >= shortLife {
			backoff.Reset()
		}
		if cut++; !caughtUp || lasted < shortLife || lasted > longestDelay {
			cut = 0
		}
		pause := backoff.Next(firstDelay, longestDelay, retry.Asked(err, longestDelay))
		f.logEnd(err, cut, lasted, pause)
		f.report(false, err)
		f.pause(ctx, pause)
	}
}

// logEnd logs the end of a stream. cut counts the streams in a row that were healthy and ended
// within seconds. After cutInARow such streams, one line of the log names the probable cause,
// and the ends of later streams are logged at level debug.
func (f *feed) logEnd(err error, cut int, lasted, pause time.Duration) {
	level := slog.LevelWarn
	if cut == cutInARow {
		f.bundle.log.Warn("the streams of the trust bundle end after some seconds each: probably a timeout of a gRPC service config, "+
			"of a proxy or of a load balancer ends them; give the method WatchBundle no timeout", "lasted", lasted, "error", err)
	}
	if cut >= cutInARow {
		level = slog.LevelDebug
	}
	f.bundle.log.Log(context.Background(), level, "the stream of the trust bundle ended; opening another", "error", err, "in", pause)
}

// pause waits before the next stream, and a little before the end of the wait tells the
// connection to connect again. Otherwise grpc-go would wait for up to two minutes between two
// attempts to connect, and every stream opened during the wait would fail.
func (f *feed) pause(ctx context.Context, pause time.Duration) {
	last := pause / connectPart
	if !sleep(ctx.Done(), pause-last) {
		return
	}
	if c, ok := f.conn.(interface{ ResetConnectBackoff() }); ok {
		c.ResetConnectBackoff()
	}
	sleep(ctx.Done(), last)
}

// watch opens one stream, applies the messages of the stream until its end, and returns the
// reason for the end. caughtUp is true if the stream has brought the whole bundle.
//
// watch applies a message before it calls RecvMsg for the next message. A Watchword server has
// a verifier in its own process and relies on this order: the next call of RecvMsg shows that
// the verifier uses the message, and the server answers a Logout only after the next call.
func (f *feed) watch(ctx context.Context) (caughtUp bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	quiet := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer quiet.Stop()

	ask := make(chan struct{}, 1)
	var asking sync.WaitGroup
	defer asking.Wait()
	asking.Go(func() { f.askTime(ctx, ask) })
	asking.Go(func() { f.reporter.run(ctx, f.conn) })
	defer cancel(nil) // ends the two goroutines for which asking.Wait waits

	var server peer.Peer
	f.bundle.streams.Add(1)
	f.bundle.fresh.clock.opened()
	req := &watchwordv1.WatchBundleRequest{Resume: f.bundle.fresh.position.Load().resume, Watcher: f.reporter.said.GetWatcher()}
	stream, err := watchwordv1.NewTrustServiceClient(f.conn).WatchBundle(ctx, req, grpc.Peer(&server))
	if err != nil {
		return false, streamError(ctx, err)
	}
	for at := streamOpened; ; {
		msg, err := stream.Recv()
		if err != nil {
			return at == upToDate, streamError(ctx, err)
		}
		quiet.Reset(silence)
		if at == streamOpened {
			if err := f.checkServer(stream.Context(), &server); err != nil {
				return false, err
			}
		}
		before := at
		if at, err = f.bundle.apply(msg, at); err != nil {
			return false, status.Errorf(codes.Internal, "the server's trust bundle is malformed: %v", err)
		}
		if at == upToDate && before != upToDate {
			f.bundle.log.Info("the trust bundle is up to date")
			f.report(true, nil)
		}
		if msg.GetHeartbeat() == nil {
			continue
		}
		f.reporter.heartbeat()
		switch due, reopen := f.bundle.fresh.clock.due(); {
		case reopen:
			return true, errUnanswered
		case due:
			select {
			case ask <- struct{}{}:
			default: // askTime is still busy with a GetTime
			}
		}
	}
}

// askTime calls GetTime at the server whenever a value comes from ask, until ctx ends. After a
// call that fails, askTime is told to call GetTime again at the next heartbeat.
func (f *feed) askTime(ctx context.Context, ask <-chan struct{}) {
	client := watchwordv1.NewTrustServiceClient(f.conn)
	for {
		select {
		case <-ask:
		case <-ctx.Done():
			return
		}
		nonce := make([]byte, 8)
		rand.Read(nonce)
		bounded, cancel := context.WithTimeout(ctx, 2*longTrip)
		sent := f.bundle.fresh.clock.elapsed.Now()
		answer, err := client.GetTime(bounded, &watchwordv1.GetTimeRequest{Nonce: nonce})
		cancel()
		if err == nil && !bytes.Equal(answer.GetNonce(), nonce) {
			err = errors.New("the answer is to another question")
		}
		if err == nil {
			err = f.bundle.answered(answer.GetTimes(), sent)
		}
		if err != nil && ctx.Err() == nil {
			f.bundle.log.Debug("cannot ask the server for its time; asking again after the next heartbeat", "error", err)
		}
	}
}

var (
	errSilent     = status.Errorf(codes.Unavailable, "no message came for %v", silence)
	errUnanswered = status.Errorf(codes.Unavailable, "the stream's server process answered no question for the time for %v", unanswered)
)

// streamError returns the reason for the end of a stream, from the error of the stream. If the
// server has ended the stream without an error, the reason is UNAVAILABLE: the server is
// stopping. If a server closes a connection without TLS before its first byte, the reason names
// TLS as the probable cause.
func streamError(ctx context.Context, err error) error {
	switch {
	case errors.Is(context.Cause(ctx), errSilent):
		return errSilent
	case errors.Is(err, io.EOF):
		return status.Error(codes.Unavailable, "the server ended the stream")
	case status.Code(err) == codes.Unavailable && strings.Contains(err.Error(), "error reading server preface"):
		return status.Error(codes.Unavailable, status.Convert(err).Message()+"; if the server has TLS, dial with TLS credentials")
	}
	return err
}

// report wakes the waiting calls of Ready. complete is true if the first trust bundle has come;
// last is the error of the last stream, nil without an error.
func (f *feed) report(complete bool, last error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.complete = f.complete || complete
	f.last = last
	close(f.changed)
	f.changed = make(chan struct{})
}

// acceptSnapshot ends every wait in Ready: the verifier uses the snapshot file until the server
// answers.
func (f *feed) acceptSnapshot() { f.report(true, nil) }

// wait returns when the first trust bundle has come or the snapshot file is accepted.
//
// Errors: those of [Verifier.Ready].
func (f *feed) wait(ctx context.Context) error {
	for {
		f.mu.Lock()
		complete, last, changed := f.complete, f.last, f.changed
		f.mu.Unlock()
		if complete {
			return nil
		}
		if last != nil && f.endsWait(last) {
			// The error wraps last, so that Reason finds the server's reason.
			return fmt.Errorf("authn: watching the trust bundle: %w", last)
		}
		select {
		case <-changed:
		case <-f.done:
			return refuse(bundleStale, "")
		case <-ctx.Done():
			if f.fallback != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				f.acceptSnapshot()
				return nil
			}
			return gaveUp(ctx, last)
		}
	}
}

// endsWait reports whether an error of the last stream ends the wait in Ready. UNAVAILABLE and
// RESOURCE_EXHAUSTED leave the wait: a server that is away will come back, a full server will have
// room, and an ingress will have its route. Other errors seldom end by waiting. With a snapshot
// file, an error ends the wait only if an operator has to correct the cause, because the use of
// the file would hide the cause: a missing client certificate, or keys over a connection
// without TLS.
func (f *feed) endsWait(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted:
		return false
	case codes.Unimplemented, codes.Unknown:
		// Before an ingress has a route to the server, the ingress answers with an HTTP page,
		// status 404 or 500. grpc-go turns such a page into an error with one of these codes,
		// and with this text.
		if strings.Contains(err.Error(), "unexpected HTTP status code") {
			return false
		}
	case codes.PermissionDenied, codes.FailedPrecondition:
		return true
	}
	return f.fallback == nil
}

// checkServer returns an error for a connection on which an attacker could replace the keys.
// watch calls checkServer before it applies the first message of a stream: by then grpc-go has
// put the peer into the stream's context. A conn of another type may fill in the call option
// grpc.Peer instead, before NewStream returns. checkServer uses the option only if the context
// has no peer, because grpc-go fills in the option at the end of the stream, and perhaps from
// another goroutine.
//
// Errors: FAILED_PRECONDITION for a connection without TLS to another machine, even through a
// proxy on this machine, unless the Verifier has WithPlaintextFromOtherHosts.
func (f *feed) checkServer(ctx context.Context, option *peer.Peer) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		p = option
	}
	target := transport.Target(f.conn)
	if f.plaintext || transport.Protects(p, target, credentials.IntegrityOnly) { // integrity is enough, since public keys are no secret
		return nil
	}
	return status.Errorf(codes.FailedPrecondition,
		"refusing keys over plaintext from %s, because anyone on the path could replace the keys: "+
			"dial with TLS credentials, or allow plaintext by WithPlaintextFromOtherHosts", transport.Name(p, target))
}
