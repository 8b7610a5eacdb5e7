package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
)

// lookEvery is the time between two checks of the database and the requirements. Requests to
// /readyz and to the health service read the result of the latest check, so requests never
// reach the database.
const lookEvery = time.Second

// requirement is a condition of readiness. If a requirement fails, the replica is not ready,
// and a load balancer should send calls to other replicas.
//
// A replica stays ready while the database is away (does not answer): no other replica could do
// better, and each replica continues to serve Verify and WatchBundle.
type requirement struct {
	fails string // a text for every client that tells what is wrong; the log has the error
	err   func() error
}

// condition is the result of a check of the database and the requirements.
type condition struct {
	unready string // the text fails of the first requirement that fails; empty: the server is ready
	away    bool   // the database did not answer the check
}

// readiness checks the database and the requirements, and sets the statuses of the health
// service.
type readiness struct {
	s      *Server
	needs  []requirement
	schema error // the error of the schema at the latest check in which the database answered
	latest atomic.Pointer[condition]
}

func newReadiness(s *Server) *readiness {
	r := &readiness{s: s}
	r.needs = []requirement{
		{"this server cannot work with the database", func() error { return r.schema }},
		{"no access token can be made: the master key of the signing key is missing", s.hasMasterKey},
		{"no access token can be made: no signing key is usable", s.canMint},
	}
	r.latest.Store(&condition{unready: "starting"})
	return r
}

// canMint returns nil if the server can make an access token that the server's own verifier
// accepts. Errors: an error that says why the server can make no such token.
func (s *Server) canMint() error {
	now := time.Now()
	kid, err := s.keys.Signs(now)
	if err != nil {
		return err
	}
	for _, key := range s.feed.Hub().TrustState().GetKeys() {
		if until := key.GetVerifiesUntil(); key.GetKey().GetKid() == kid && (until == nil || until.AsTime().After(now)) {
			return nil
		}
	}
	return fmt.Errorf("signing key %s is not in the key set", kid)
}

// hasMasterKey returns an error if the master key file lacks the master key of the key that
// signs now. Errors: seal.ErrWrongKey.
func (s *Server) hasMasterKey() error {
	if err := s.canMint(); errors.Is(err, seal.ErrWrongKey) {
		return err
	}
	return nil
}

// run calls look every second until ctx ends.
func (r *readiness) run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.look(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// look checks the database and the requirements, stores the result, sets the statuses of the
// health service, and logs a change. The store itself logs that the database is away.
func (r *readiness) look(ctx context.Context) {
	reading, cancel := context.WithTimeout(ctx, lookEvery)
	defer cancel()
	err := r.s.store.CheckSchema(reading)
	now := &condition{away: errors.Is(err, store.ErrAway)}
	if !errors.Is(err, store.ErrUnavailable) { // a busy database does not tell whether the schema fits
		r.schema = err
	}
	var why error
	for _, c := range r.needs {
		if why = c.err(); why != nil {
			now.unready = c.fails
			break
		}
	}
	switch before := r.latest.Swap(now); {
	case before.unready == now.unready || ctx.Err() != nil:
	case why != nil:
		r.s.logger.ErrorContext(ctx, "the server is not ready: "+now.unready, "error", why)
	case before.unready != "starting":
		r.s.logger.InfoContext(ctx, "the server is ready again")
	}
	r.tell(now)
}

// needsDatabase reports whether most methods of a gRPC service need the database, as those of
// every service of Watchword except TrustService do.
func needsDatabase(service string) bool {
	return strings.HasPrefix(service, "watchword.") && service != watchwordv1.TrustService_ServiceDesc.ServiceName
}

// tell sets the health status of each gRPC service, and of the empty name, which stands for the
// whole server. The status of TrustService is SERVING in every condition.
func (r *readiness) tell(now *condition) {
	status := func(serving bool) healthv1.HealthCheckResponse_ServingStatus {
		if serving {
			return healthv1.HealthCheckResponse_SERVING
		}
		return healthv1.HealthCheckResponse_NOT_SERVING
	}
	ready := now.unready == ""
	r.s.health.SetServingStatus("", status(ready))
	for name := range r.s.grpc.GetServiceInfo() {
		r.s.health.SetServingStatus(name, status(!needsDatabase(name) || ready && !now.away))
	}
}

// serveReady handles /readyz: 200 if the server is ready, and 503 otherwise.
func (r *readiness) serveReady(w http.ResponseWriter, _ *http.Request) {
	now := r.latest.Load()
	switch {
	case r.s.drain.draining():
		http.Error(w, "stopping", http.StatusServiceUnavailable)
	case now.unready != "":
		http.Error(w, now.unready, http.StatusServiceUnavailable)
	case now.away:
		fmt.Fprintln(w, "ok: the database is away; Verify and WatchBundle continue")
	default:
		fmt.Fprintln(w, "ok")
	}
}
