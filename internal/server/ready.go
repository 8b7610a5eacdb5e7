package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
)

// serveReady returns the handler of /readyz. The handler answers 200 if the server can serve
// calls, and 503 while the server stops, while the database does not answer within a second,
// or while mint says why the server can make no access token. A load balancer should send
// calls to other replicas on 503.
func (s *Server) serveReady(mint func() error) http.HandlerFunc {
	database := shared{read: s.readHead}
	return func(w http.ResponseWriter, r *http.Request) {
		if s.drain.draining() {
			http.Error(w, "stopping", http.StatusServiceUnavailable)
			return
		}
		if err := database.ask(r.Context()); err != nil {
			http.Error(w, "database unavailable", http.StatusServiceUnavailable)
			return
		}
		if err := mint(); err != nil {
			reason := "no signing key is usable" // anybody may ask; the log has the key and the file
			if errors.Is(err, seal.ErrWrongKey) {
				reason = "the master key of the signing key is missing"
			}
			http.Error(w, "no access token can be made: "+reason, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	}
}

// canMint returns nil if the server can make an access token that the server's own verifier
// accepts. Errors: an error that says why not.
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

// watchMinting turns the health service to NOT_SERVING while the server can make no access
// token, and logs why, until ctx ends.
func (s *Server) watchMinting(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for serving := true; ; {
		switch err := s.canMint(); {
		case err != nil && serving:
			s.logger.ErrorContext(ctx, "no access token can be made, and the server is not ready", "error", err,
				"remedy", "`watchword datastore restored` replaces all keys and ends every session")
			s.health.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
			serving = false
		case err == nil && !serving:
			s.logger.InfoContext(ctx, "access tokens can be made again")
			s.health.SetServingStatus("", healthv1.HealthCheckResponse_SERVING)
			serving = true
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// readHead reads a row of the database. Errors: those of [store.Store.Read];
// context.DeadlineExceeded after a second.
func (s *Server) readHead(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return s.store.Read(ctx, func(tx *store.Tx) error {
		_, err := tx.Head()
		return err
	})
}

// shared makes one read at a time, for all requests that come while the read runs and for
// half a second after. So any number of requests hold one connection to the database at
// most. shared is safe for concurrent use.
type shared struct {
	read func(context.Context) error

	mu     sync.Mutex
	latest *reading // guarded by mu; nil before the first request
}

// reading holds the result of a read.
type reading struct {
	done  chan struct{} // closed at the end of the read
	err   error         // after done
	until time.Time     // after done: a later request makes another read
}

// ask returns the error of a read, or the error of ctx if ctx ends before. The read runs in
// the request that finds none to share, and continues after the end of that request's ctx.
func (s *shared) ask(ctx context.Context) error {
	r, mine := s.join()
	if mine {
		defer close(r.done)
		r.err = s.read(context.WithoutCancel(ctx))
		r.until = time.Now().Add(time.Second / 2)
		return r.err
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// join returns the reading with the result that a request gets. mine tells that the request
// must make the read.
func (s *shared) join() (r *reading, mine bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.latest != nil {
		select {
		case <-s.latest.done:
			if time.Now().Before(s.latest.until) {
				return s.latest, false
			}
		default:
			return s.latest, false
		}
	}
	s.latest = &reading{done: make(chan struct{})}
	return s.latest, true
}
