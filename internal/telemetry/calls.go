package telemetry

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/watchword-auth/watchword/internal/count"
	"github.com/watchword-auth/watchword/internal/refusal"
)

const (
	// ours is the beginning of the names of those gRPC services for which calls are counted.
	// Calls of the health service and of reflection come from machines, and say nothing about
	// the server's work.
	ours = "watchword.v1."
	// timed is the gRPC service for which telemetry measures the duration of calls: people and
	// programs wait for the answers of AuthService.
	timed = "AuthService"
	// fault is the outcome of a call that has failed by a fault of the server. The series with
	// this outcome has the value 0 from the start: Prometheus does not see an increase in a
	// series that begins with 1.
	fault = "INTERNAL"
)

// Calls counts the gRPC calls of a server by method and outcome. Calls ignores a method that is
// not registered at the server, and the number of outcomes is bounded: so no client can add a
// series to /metrics. Calls is safe for concurrent use.
//
// The counters are plain atomic numbers for each method and outcome. Two cores would slow each
// other down at a counter only if they answered calls of the same method within the same
// hundred nanoseconds, and a call takes tens of microseconds in gRPC.
type Calls struct{ methods map[string]*method }

type method struct {
	service, name string
	ok            atomic.Uint64
	failed        sync.Map         // the counter (*atomic.Uint64) of each outcome
	took          *count.Durations // nil: the duration of the method's calls is not measured
}

// Register makes the counters for the methods of services. Call Register before the server
// serves, with the services of the server.
func (c *Calls) Register(services map[string]grpc.ServiceInfo) {
	c.methods = map[string]*method{}
	for full, info := range services {
		service, counted := strings.CutPrefix(full, ours)
		for _, m := range info.Methods {
			of := &method{service: service, name: m.Name}
			of.failed.Store(fault, new(atomic.Uint64))
			if service == timed {
				of.took = new(count.Durations)
			}
			if counted {
				c.methods["/"+full+"/"+m.Name] = of
			}
		}
	}
}

// Unary is the interceptor that counts unary calls. Unary must be the outermost interceptor,
// so that an error has the status that the client gets.
func (c *Calls) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	m := c.methods[info.FullMethod]
	if m == nil {
		return handler(ctx, req)
	}
	began := time.Now()
	resp, err := handler(ctx, req)
	m.ended(err)
	if m.took != nil {
		m.took.Add(time.Since(began))
	}
	return resp, err
}

// Stream is the interceptor that counts streams, as [Calls.Unary] counts unary calls. A stream
// is counted when the stream ends.
func (c *Calls) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	m := c.methods[info.FullMethod]
	if m == nil {
		return handler(srv, ss)
	}
	err := handler(srv, ss)
	m.ended(err)
	return err
}

// ended counts the end of a call.
func (m *method) ended(err error) {
	if err == nil {
		m.ok.Add(1)
		return
	}
	n, found := m.failed.Load(refusal.Outcome(err))
	if !found {
		n, _ = m.failed.LoadOrStore(refusal.Outcome(err), new(atomic.Uint64))
	}
	n.(*atomic.Uint64).Add(1)
}
