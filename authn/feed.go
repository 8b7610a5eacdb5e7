package authn

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	// firstDelay is short enough to go unnoticed, and long enough for the watchers of a
	// restarted server to come back spread out.
	firstDelay = 50 * time.Millisecond
	// longestDelay bounds how long the return of a server goes unnoticed.
	longestDelay = 10 * time.Second
	// knockAhead is the part of a pause, at its end, for making the connection that the
	// next stream uses.
	knockAhead = 8
	// silence without a message ends a stream: servers send a heartbeat every few seconds,
	// and another stream may be routed better. A connection dead below the stream, only
	// conn can replace.
	silence = time.Minute
	// patience is the time for the server to answer before the snapshot file is used. A
	// running server answers within milliseconds, a replaced one within a second or so.
	patience = 2 * time.Second
)

// A feed keeps a bundle up to date from a server's stream, in one goroutine.
//
// mu guards the state of the wait in [Verifier.Ready], and nothing else.
type feed struct {
	conn      grpc.ClientConnInterface
	bundle    *bundle
	plaintext bool // also from another machine
	cancel    context.CancelFunc
	done      chan struct{} // closed when the goroutine has ended
	fallback  *time.Timer   // calls acceptSnapshot; nil without a snapshot

	mu       sync.Mutex
	complete bool          // the first bundle has come, or the snapshot is accepted
	last     error         // of the last stream; without meaning once complete
	changed  chan struct{} // closed and replaced when complete or last changes
}

// startFeed starts to watch. The stream outlives the call that made the Verifier, so the
// stream has a context without the call's deadline, peer and values.
func startFeed(conn grpc.ClientConnInterface, b *bundle, plaintext bool) *feed {
	ctx, cancel := context.WithCancel(context.Background())
	f := &feed{
		conn: conn, bundle: b, plaintext: plaintext, cancel: cancel,
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
	for ctx.Err() == nil {
		began := time.Now()
		err := f.watch(ctx)
		if ctx.Err() != nil {
			return
		}
		// A bundle that came whole proves little: a server may fall over just
		// after. A stream that lasted proves that the server is well.
		if time.Since(began) > longestDelay {
			backoff.Reset()
		}
		pause := backoff.Next(firstDelay, longestDelay, retry.Asked(err, longestDelay))
		f.bundle.log.Warn("the trust bundle's stream ended; opening it again", "error", err, "in", pause)
		f.report(false, err)
		f.pause(ctx, pause)
	}
}

// pause waits before the next stream, and tells the connection a little earlier to try
// again. By itself grpc-go would wait for up to two minutes between two tries, and fail
// every stream in between.
func (f *feed) pause(ctx context.Context, pause time.Duration) {
	knock := pause / knockAhead
	if !sleep(ctx, pause-knock) {
		return
	}
	if c, ok := f.conn.(interface{ ResetConnectBackoff() }); ok {
		c.ResetConnectBackoff()
	}
	sleep(ctx, knock)
}

// watch opens one stream and applies its messages. watch returns the reason of its end.
//
// A message is applied before the next is asked for: when watch calls RecvMsg again,
// Verify judges by the message before. A server that feeds its own verifier in process
// learns from the call of RecvMsg how far the verifier has come, and only then answers a
// Logout.
func (f *feed) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer quiet.Stop()

	var server peer.Peer
	req := &watchwordv1.WatchBundleRequest{Resume: f.bundle.fresh.position.Load().resume}
	stream, err := watchwordv1.NewTrustServiceClient(f.conn).WatchBundle(ctx, req, grpc.Peer(&server))
	if err != nil {
		return streamError(ctx, err)
	}
	for at := streamOpened; ; {
		msg, err := stream.Recv()
		if err != nil {
			return streamError(ctx, err)
		}
		quiet.Reset(silence)
		if at == streamOpened {
			if err := f.checkServer(stream.Context(), &server); err != nil {
				return err
			}
		}
		before := at
		if at, err = f.bundle.apply(msg, at); err != nil {
			return status.Errorf(codes.Internal, "the server's trust bundle is malformed: %v", err)
		}
		if at == upToDate && before != upToDate {
			f.bundle.log.Info("the trust bundle is up to date")
			f.report(true, nil)
		}
	}
}

var errSilent = status.Errorf(codes.Unavailable, "nothing was heard for %v", silence)

// streamError explains the end of a stream. A server that ends a stream without an error
// is about to stop, as a server is that answers UNAVAILABLE.
func streamError(ctx context.Context, err error) error {
	switch {
	case errors.Is(context.Cause(ctx), errSilent):
		return errSilent
	case errors.Is(err, io.EOF):
		return status.Error(codes.Unavailable, "the server ended the stream")
	}
	return err
}

// report wakes the waiting calls of Ready. last is the error of the last stream.
func (f *feed) report(complete bool, last error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.complete = f.complete || complete
	f.last = last
	close(f.changed)
	f.changed = make(chan struct{})
}

// acceptSnapshot ends every wait in Ready: the snapshot file is used until the server
// answers.
func (f *feed) acceptSnapshot() { f.report(true, nil) }

// wait returns when the first bundle has come or the snapshot is accepted.
//
// Errors: as [Verifier.Ready].
func (f *feed) wait(ctx context.Context) error {
	for {
		f.mu.Lock()
		complete, last, changed := f.complete, f.last, f.changed
		f.mu.Unlock()
		if complete {
			return nil
		}
		if last != nil && f.endsWait(last) {
			// Wrapped, so that Reason finds the server's reason.
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

// endsWait returns whether an answer of the server ends the wait in Ready. A server that
// is away or full will be there, or have room, later; waiting hardly changes any other
// answer. With a snapshot, only the faults end the wait that an operator has to set right
// and the snapshot would hide: a missing client certificate, and keys over plaintext.
func (f *feed) endsWait(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted:
		return false
	case codes.PermissionDenied, codes.FailedPrecondition:
		return true
	}
	return f.fallback == nil
}

// checkServer refuses keys that an attacker on the path could replace. watch calls
// checkServer before the first message of a stream is applied; grpc-go knows the peer
// from then on, in the stream's context. A connection of another kind may fill in the
// call option instead, before NewStream returns. grpc-go itself fills in the option only
// as the stream ends, perhaps in a goroutine of its own, so the option counts only where
// the context has no peer.
//
// Errors: FAILED_PRECONDITION for plaintext from another machine, unless the Verifier has
// WithPlaintextFromOtherHosts.
func (f *feed) checkServer(ctx context.Context, option *peer.Peer) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		p = option
	}
	if f.plaintext || transport.Protects(p, credentials.IntegrityOnly) { // keys are no secret
		return nil
	}
	return status.Errorf(codes.FailedPrecondition,
		"refusing keys over plaintext from %s, since anyone on the path could replace them: "+
			"dial with TLS credentials, or say WithPlaintextFromOtherHosts", transport.Name(p))
}
