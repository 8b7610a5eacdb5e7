package authn

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// calledStream is a stream that a client has opened with a token.
type calledStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *calledStream) Context() context.Context { return s.ctx }

// The tokens of open streams are judged without the cache: the signature is checked once for each
// stream, and once more after a new trust state has replaced the object of the key. What refuses
// the token ends the stream within a second, and ended streams leave nothing behind.
func TestOpenStreamsAreJudged(t *testing.T) {
	const method = "/chat.v1.Chat/Talk"
	for name, c := range map[string]struct {
		end  func(*judge)
		want watchwordv1.ErrorReason
	}{
		"the verifier is closed": {func(j *judge) { j.bundle.fresh.close() }, bundleStale},
		"the bundle gets stale":  {func(*judge) { time.Sleep(9 * time.Minute) }, bundleStale},
		"the key is withdrawn":   {func(j *judge) { j.trust(t) }, tokenInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j := newJudge(t, staleness{10 * time.Minute, RefuseWhenStale}, 0)
				j.open.bundle = j.bundle
				var err error
				if j.access, err = newAccessRules(map[string]methodRule{method: {}}); err != nil {
					t.Fatal(err)
				}
				const streams = 5
				ended := make(chan error, streams)
				for n := range streams {
					ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+j.mint(t, n)))
					go func() {
						ended <- j.StreamServerInterceptor()(nil, &calledStream{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: method},
							func(_ any, s grpc.ServerStream) error { <-s.Context().Done(); return nil })
					}()
				}
				time.Sleep(time.Minute + judgeEvery/2) // between two checks of the streams, so that no stream ends
				j.trust(t)
				j.trust(t, j.named())
				time.Sleep(time.Minute)
				if n := j.checked(); n != 2*streams || len(ended) > 0 {
					t.Fatalf("%d signatures were checked, and %d streams have ended", n, len(ended))
				}
				c.end(j)
				time.Sleep(time.Second)
				for range streams {
					select {
					case err := <-ended:
						if Reason(err) != c.want {
							t.Errorf("%v, want %v", err, c.want)
						}
					default:
						t.Fatal("a stream goes on")
					}
				}
				j.open.mu.Lock()
				defer j.open.mu.Unlock()
				if j.open.running || j.open.streams != nil {
					t.Errorf("left behind: %v", j.open.streams)
				}
			})
		})
	}
}
