package serving

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/watchword-auth/watchword/authn"
)

// checkEvery is the time between two checks of the last token.
const checkEvery = 20 * time.Millisecond

// revocations prints a line when the verifier begins to refuse the token of the last call. The
// example in the README shows by these lines that a logout takes back the tokens at every service;
// a real service does not need revocations.
type revocations struct {
	name     string
	verifier *authn.Verifier

	mu      sync.Mutex // guards the fields below
	last    string     // the token of the last call
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// intercept comes after the verifier's interceptor, and so sees admitted calls alone.
func (r *revocations) intercept(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if p, ok := authn.FromContext(ctx); ok {
		_, token, _ := strings.Cut(metadata.ValueFromIncomingContext(ctx, "authorization")[0], " ")
		r.watch(strings.TrimSpace(token), p)
	}
	return handler(ctx, req)
}

// watch watches a token in place of the token of the earlier call.
func (r *revocations) watch(token string, p *authn.Principal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == token {
		return
	}
	if r.cancel != nil {
		r.cancel()
	}
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	r.last = token
	r.running.Go(func() { r.until(ctx, token, p) })
}

// until prints a line as soon as the verifier refuses the token.
func (r *revocations) until(ctx context.Context, token string, p *authn.Principal) {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := r.verifier.Verify(ctx, token); err != nil {
			of := fmt.Sprintf("%q", p.Username())
			if actor, ok := p.Actor(); ok {
				of += fmt.Sprintf(", shown by %q,", actor.Username())
			}
			fmt.Fprintf(os.Stderr, "%s: the token of %s is refused from now on: %s\n", r.name, of, strings.TrimPrefix(authn.Reason(err).String(), "ERROR_REASON_"))
			return
		}
	}
}

// close ends the watching.
func (r *revocations) close() {
	r.mu.Lock()
	if r.cancel != nil {
		r.cancel()
	}
	r.mu.Unlock()
	r.running.Wait()
}
