package tokensource

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// delegates is a connection to Watchword that answers each DelegateToken, once released.
type delegates struct {
	grpc.ClientConnInterface
	release chan struct{}
}

func (d *delegates) Invoke(ctx context.Context, _ string, _, reply any, _ ...grpc.CallOption) error {
	select {
	case <-d.release:
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
	answer := reply.(*watchwordv1.DelegateTokenResponse)
	answer.AccessToken, answer.ExpiresIn = "delegated", durationpb.New(5*time.Minute)
	return nil
}

// A Source remembers or asks for at most maxDelegations delegated tokens. A new caller takes the
// place of another one. If all places are taken by calls that wait, a further caller gets an
// error at once.
func TestDelegationsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := &delegates{release: make(chan struct{})}
		source, err := Workload(conn, func(context.Context) (string, error) { return "a.b.c", nil })
		if err != nil {
			t.Fatal(err)
		}
		defer source.Close()
		o := &onBehalf{source: source, conn: conn, auth: watchwordv1.NewAuthServiceClient(conn), audience: "search", delegations: map[subjectKey]*delegation{}}
		find := func(n int) (*delegation, error) { return o.find(t.Context(), fmt.Sprint("token ", n)) }
		size := func() int {
			synctest.Wait()
			o.mu.Lock()
			defer o.mu.Unlock()
			return len(o.delegations)
		}
		for n := range maxDelegations {
			if _, err := find(n); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := find(maxDelegations); status.Code(err) != codes.ResourceExhausted || size() != maxDelegations {
			t.Fatalf("%v, with %d delegations", err, size())
		}
		close(conn.release)
		synctest.Wait()
		var finding sync.WaitGroup
		for n := range 100 {
			finding.Go(func() {
				if d, err := find(maxDelegations + n); err != nil {
					t.Error(err)
				} else if <-d.done; d.token != "delegated" {
					t.Error(d.err)
				}
			})
		}
		finding.Wait()
		if size() != maxDelegations {
			t.Fatalf("%d delegations", size())
		}
		time.Sleep(6 * time.Minute)
		if _, err := find(0); err != nil || size() != 1 {
			t.Fatalf("%v, with %d delegations after the expiry", err, size())
		}
	})
}
