package server

import (
	"github.com/watchword-auth/watchword/internal/share"
	"github.com/watchword-auth/watchword/internal/telemetry"
)

// parts returns the parts of the server from which /metrics takes its numbers.
func (s *Server) parts() telemetry.Parts {
	return telemetry.Parts{
		Calls: s.calls, Store: s.store, Passwords: s.passwords, Logins: s.logins, Audit: s.audit, Feed: s.feed, Keys: s.keys, Trusted: s.trusted, Verifier: s.verifier,
		KeyTTL:      s.cfg.KeyTTL,
		Ready:       func() bool { return !s.drain.draining() && s.readiness.latest.Load().unready == "" },
		CanSign:     func() bool { return s.canMint() == nil },
		Certificate: s.tls.certificate,
		Unusable: func() map[string]bool {
			unusable := map[string]bool{}
			for _, status := range s.files.Status() {
				unusable[status.Name] = status.Fault != nil
			}
			return unusable
		},
		Bounds: s.bounds,
		Failures: func() map[string]uint64 {
			failures := map[string]uint64{}
			for _, c := range s.chores {
				failures[c.name] = c.failures.Load()
			}
			return failures
		},
	}
}

// bounds returns the numbers of the bounds on connections and requests, by the name of the
// bound. The bounds for connections of proxies have numbers only with --trusted-proxy.
func (s *Server) bounds() map[string]share.Stats {
	bounds := map[string]share.Stats{}
	var grpcOfProxies, httpOfProxies share.Stats
	bounds["requests"], bounds["streams"], bounds["reports"] = s.gate.Stats()
	bounds["event_streams"] = s.events.Streams()
	bounds["grpc_connections"], grpcOfProxies = s.grpcLis.Stats()
	bounds["http_connections"], httpOfProxies = s.httpLis.Stats()
	if len(s.cfg.TrustedProxy) > 0 {
		bounds["grpc_connections_of_proxies"], bounds["http_connections_of_proxies"] = grpcOfProxies, httpOfProxies
	}
	return bounds
}
