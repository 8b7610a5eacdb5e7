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
	// firstDelay before a stream is opened again: no person notices it, and a
	// server that restarts meets its watchers spread out.
	firstDelay = 50 * time.Millisecond
	// longestDelay bounds how long a server that is back goes unnoticed.
	longestDelay = 10 * time.Second
	// knockAhead is the part of a pause, its last, in which the connection is
	// made that the stream then finds.
	knockAhead = 8
	// silence on a stream for this long means that nothing will come of it any
	// more: servers send a heartbeat every few seconds. Another stream may be
	// routed better. A connection that is dead below it, conn must replace.
	silence = time.Minute
	// patience is how long a server is given to answer before a snapshot will do.
	// One that is there takes some milliseconds, and one that is replaced comes
	// back within a second or so: a start from fresh news is worth the wait.
	patience = 2 * time.Second
)

// A feed keeps a bundle up to date from a server's stream, in one goroutine.
type feed struct {
	conn      grpc.ClientConnInterface
	client    watchwordv1.TrustServiceClient
	bundle    *bundle
	plaintext bool // also from another machine
	cancel    context.CancelFunc
	done      chan struct{} // closed when the goroutine has ended
	fallback  *time.Timer   // makes a snapshot do; nil without one

	mu       sync.Mutex
	complete bool          // the first bundle is here, or a snapshot will do
	last     error         // why the last stream ended, before that
	changed  chan struct{} // closed and replaced when one of these changes
}

// startFeed begins to watch. The stream is no part of the call that began it, so
// it has a context of its own, without that call's deadline, peer and values.
func startFeed(conn grpc.ClientConnInterface, b *bundle, plaintext bool) *feed {
	ctx, cancel := context.WithCancel(context.Background())
	f := &feed{
		conn:      conn,
		client:    watchwordv1.NewTrustServiceClient(conn),
		bundle:    b,
		plaintext: plaintext,
		cancel:    cancel,
		done:      make(chan struct{}),
		changed:   make(chan struct{}),
	}
	if b.complete {
		f.fallback = time.AfterFunc(patience, f.makeDo)
	}
	go f.run(ctx)
	return f
}

// stop ends the goroutine and waits for it.
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

// pause waits before the next stream, and tells the connection a little earlier to
// try again. By itself grpc-go would in the end wait for two minutes from one try
// to the next, and fail every stream meanwhile.
func (f *feed) pause(ctx context.Context, pause time.Duration) {
	knock := time.NewTimer(pause - pause/knockAhead)
	defer knock.Stop()
	over := time.NewTimer(pause)
	defer over.Stop()
	for {
		select {
		case <-knock.C:
			if c, ok := f.conn.(interface{ ResetConnectBackoff() }); ok {
				c.ResetConnectBackoff()
			}
		case <-over.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// watch opens one stream and applies its messages. It returns why it ended.
//
// A message is applied before the next one is asked for: when RecvMsg is called
// again, Verify judges by the message before. A server that feeds its own
// verifier in process learns from that call how far the verifier has come, and
// answers a Logout only then.
func (f *feed) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer quiet.Stop()

	var who peer.Peer
	stream, err := f.client.WatchBundle(ctx, &watchwordv1.WatchBundleRequest{Resume: f.bundle.resume}, grpc.Peer(&who))
	if err != nil {
		return ended(ctx, err)
	}
	at := opened
	for first := true; ; first = false {
		msg, err := stream.Recv()
		if err != nil {
			return ended(ctx, err)
		}
		quiet.Reset(silence)
		if first {
			if err := f.admit(stream.Context(), &who); err != nil {
				return err
			}
		}
		was := at
		if at, err = f.bundle.apply(msg, at); err != nil {
			return status.Errorf(codes.Internal, "the server's trust bundle is malformed: %v", err)
		}
		if at == current && was != current {
			f.bundle.log.Info("the trust bundle is up to date")
			f.report(true, nil)
		}
	}
}

var errSilent = status.Errorf(codes.Unavailable, "nothing was heard for %v", silence)

// ended explains the end of a stream. A server that ends one without an error
// stops, as one that says UNAVAILABLE does.
func ended(ctx context.Context, err error) error {
	switch {
	case errors.Is(context.Cause(ctx), errSilent):
		return errSilent
	case errors.Is(err, io.EOF):
		return status.Error(codes.Unavailable, "the server ended the stream")
	}
	return err
}

// report tells those who wait for the first bundle how it stands.
func (f *feed) report(complete bool, last error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.complete = f.complete || complete
	f.last = last
	close(f.changed)
	f.changed = make(chan struct{})
}

// makeDo tells them that the snapshot will do.
func (f *feed) makeDo() {
	f.mu.Lock()
	last := f.last
	f.mu.Unlock()
	f.report(true, last)
}

// wait returns once the first bundle is here, or a snapshot will do.
func (f *feed) wait(ctx context.Context) error {
	for {
		f.mu.Lock()
		complete, last, changed := f.complete, f.last, f.changed
		f.mu.Unlock()
		if complete {
			return nil
		}
		if last != nil && f.final(last) {
			// Wrapped as it is, so that Reason can read the server's.
			return fmt.Errorf("authn: watching the trust bundle: %w", last)
		}
		select {
		case <-changed:
		case <-f.done:
			return refuse(bundleStale, "")
		case <-ctx.Done():
			if f.fallback != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				f.makeDo()
				return nil
			}
			return gaveUp(ctx, last)
		}
	}
}

// final says whether an answer ends the wait. A server that is away or full will be
// there, or have room, later; any other answer will hardly change by waiting. Where a
// snapshot will do, only what an operator has to set right must not be covered up by
// it: a certificate that is missing, and keys that would come over plaintext.
func (f *feed) final(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted:
		return false
	case codes.PermissionDenied, codes.FailedPrecondition:
		return true
	}
	return f.fallback == nil
}

// admit refuses to take keys from whoever may sit between us and the server.
// It is asked before the first message of a stream is applied; grpc-go knows the
// peer from then on. A stream's own context has it. A connection that is no
// grpc.ClientConn may fill in the call option instead, before NewStream returns:
// grpc-go itself writes there only as the stream ends, perhaps from a goroutine
// of its own, which is why that is not read where the context knows.
func (f *feed) admit(ctx context.Context, option *peer.Peer) error {
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
