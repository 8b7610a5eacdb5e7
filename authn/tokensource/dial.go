package tokensource

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

// alive lets grpc-go notice a dead connection (a pulled cable, a lost entry of a NAT) within
// 15 s. Pings also go out without a stream: a Source has no stream between two renewals,
// and the pings keep the Source's connection in the tables of middleboxes. The server allows a
// ping every 5 s.
var alive = keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}

// retries is the part of a gRPC service config (gRFC A6) that sends a call again after
// UNAVAILABLE: at another replica, or at the same replica after its restart. Five attempts
// take 2.3 s of pauses. A method is in the list if two calls have the effect of one call:
//
//   - Login: a login without an answer leaves a session without a client, which expires.
//   - Refresh: the server answers the refresh token that was used last once more
//     (docs/security.md, "How a copied refresh token is detected").
//   - ExchangeToken and DelegateToken: a token without a client expires.
//   - Logout: the server answers the logout of an ended session like the first logout.
//   - Verify, GetKeySet, ListWatchers, GetUser, ListUsers, ListSessions, ListKeys, ListEvents,
//     GetIssuer, ListIssuers and ListBindings change nothing.
//
// The list leaves out the other methods. A second call of a method that changes users, sessions or
// keys could undo what another client has changed after the first call, or fail because of
// the first call. GetTime measures one round trip, which a retry would make longer. A verifier
// opens its streams again by itself.
//
// retryThrottling bounds the load by retries while every replica is away: after 250 more
// failures than successes a client sends each call once. The bound of 250 is above the number of
// calls that one connection carries at a time.
const retries = `"retryThrottling": {"maxTokens": 500, "tokenRatio": 1},
	"methodConfig": [{
		"name": [
			{"service": "watchword.v1.AuthService", "method": "Login"},
			{"service": "watchword.v1.AuthService", "method": "Refresh"},
			{"service": "watchword.v1.AuthService", "method": "Verify"},
			{"service": "watchword.v1.AuthService", "method": "ExchangeToken"},
			{"service": "watchword.v1.AuthService", "method": "DelegateToken"},
			{"service": "watchword.v1.AuthService", "method": "Logout"},
			{"service": "watchword.v1.TrustService", "method": "GetKeySet"},
			{"service": "watchword.v1.TrustService", "method": "ListWatchers"},
			{"service": "watchword.v1.UserService", "method": "GetUser"},
			{"service": "watchword.v1.UserService", "method": "ListUsers"},
			{"service": "watchword.v1.SessionService", "method": "ListSessions"},
			{"service": "watchword.v1.KeyService", "method": "ListKeys"},
			{"service": "watchword.v1.AuditService", "method": "ListEvents"},
			{"service": "watchword.v1.FederationService", "method": "GetIssuer"},
			{"service": "watchword.v1.FederationService", "method": "ListIssuers"},
			{"service": "watchword.v1.FederationService", "method": "ListBindings"}
		],
		"retryPolicy": {
			"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "1s", "backoffMultiplier": 3,
			"retryableStatusCodes": ["UNAVAILABLE"]
		}
	}]`

// Dial returns a connection to Watchword, for a [Source] and for authn.NewVerifier. Dial does what
// grpc.NewClient does, with two additions:
//
//   - A keepalive: a verifier, which receives the revocations over the connection, notices a
//     dead connection within 15 seconds.
//   - A default service config, by which grpc-go sends a call again after UNAVAILABLE, up to
//     five times, if a second call does no harm: Login, Refresh, Verify, ExchangeToken,
//     DelegateToken, Logout and the methods that only read. So replicas can be replaced without a
//     failed call (docs/migrations.md).
//
// opts come after Dial's own options and override Dial's options; opts must contain transport
// credentials. target is as for grpc.NewClient: a host and port, or the URL of a resolver.
// [RoundRobin] is the option for several replicas. The first call makes the connection. The
// caller closes the connection, after the sources and verifiers that use the connection.
//
// Use Dial for Watchword alone: a server with grpc-go's default settings ends connections
// with pings so frequent.
//
// Errors: those of grpc.NewClient, for an unusable target or option.
func Dial(target string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient(target, append([]grpc.DialOption{
		grpc.WithKeepaliveParams(alive), grpc.WithDefaultServiceConfig("{" + retries + "}"),
	}, opts...)...)
}

// RoundRobin is an option for [Dial], with a target that has the addresses of several
// replicas: calls go to the replicas in turn, over a connection to each. Without RoundRobin
// all calls go to the first replica that answers. RoundRobin keeps the retries of Dial; the option
// grpc.WithDefaultServiceConfig replaces RoundRobin and the retries.
func RoundRobin() grpc.DialOption {
	return grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}], ` + retries + "}")
}
