package extauthz

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// prefix begins the name of each header that tells the service about the caller. A client cannot
// send a header with the prefix to the service.
const prefix = "x-watchword-"

// checker implements Envoy's service Authorization.
type checker struct {
	authv3.UnimplementedAuthorizationServer
	verifier *authn.Verifier
	log      *slog.Logger
	lines    *rate.Limiter // bounds the log lines about requests that cannot be decided

	allowed, denied, undecided atomic.Uint64
}

// newChecker returns a checker that logs one line a minute at most about requests that cannot be
// decided, since clients choose how often they call.
func newChecker(verifier *authn.Verifier, log *slog.Logger) *checker {
	return &checker{verifier: verifier, log: log, lines: rate.NewLimiter(rate.Every(time.Minute), 1)}
}

// Check decides a request. Check always answers: with an error in place of an answer, Envoy could
// admit the request (failure_mode_allow). Check denies a request that cannot be decided.
func (c *checker) Check(ctx context.Context, req *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	client := request{req.GetAttributes().GetRequest().GetHttp()}
	caller, err := c.decide(ctx, client, req.GetAttributes().GetContextExtensions())
	if err != nil {
		c.denied.Add(1)
		return deny(client, status.Convert(err)), nil
	}
	c.allowed.Add(1)
	return allow(client, caller), nil
}

// decide returns the caller of an allowed request; nil if the route is public.
//
// Errors: those of [authn.Verifier.AuthorizeByRule]; INTERNAL if the rule of the route cannot be
// used.
func (c *checker) decide(ctx context.Context, client request, extensions map[string]string) (*authn.Principal, error) {
	if client.http == nil {
		return nil, c.cannotDecide(fmt.Errorf("the question has no HTTP request: ext_authz must be a filter of HTTP"))
	}
	access, err := accessOf(extensions)
	if err != nil {
		return nil, c.cannotDecide(err)
	}
	ctx, err = c.verifier.AuthorizeByRule(ctx, access, client.method(), client.values("authorization"))
	if status.Code(err) == codes.InvalidArgument {
		return nil, c.cannotDecide(err)
	}
	if err != nil {
		return nil, err
	}
	caller, _ := authn.FromContext(ctx)
	return caller, nil
}

// cannotDecide counts a request that cannot be decided, and returns the error for the client, which
// tells nothing about the configuration.
func (c *checker) cannotDecide(why error) error {
	c.undecided.Add(1)
	if c.lines.Allow() {
		c.log.Error("requests are denied, because the rule of a route in Envoy's configuration cannot be used", "error", why)
	}
	return status.Error(codes.Internal, "internal error")
}

// allow returns the answer that admits a request. The answer replaces the headers about the caller,
// and removes every other header by which a client could pass for another caller.
func allow(client request, caller *authn.Principal) *authv3.CheckResponse {
	ok := new(authv3.OkHttpResponse)
	var ours []string
	for _, h := range about(caller) {
		name, value := h[0], h[1]
		ours = append(ours, name)
		if value == "" {
			ok.HeadersToRemove = append(ok.HeadersToRemove, name)
		} else {
			ok.Headers = append(ok.Headers, header(name, value))
		}
	}
	for _, name := range client.names() {
		// CGI and some frameworks read x_watchword_subject as x-watchword-subject.
		likeOurs := strings.HasPrefix(strings.ReplaceAll(name, "_", "-"), prefix)
		if likeOurs && !slices.Contains(ours, name) { // names gives each name once
			ok.HeadersToRemove = append(ok.HeadersToRemove, name)
		}
	}
	return &authv3.CheckResponse{
		Status:       status.New(codes.OK, "").Proto(),
		HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: ok},
	}
}

// about returns the headers about a caller, as pairs of name and value. For a public route every
// value is empty; for a caller that calls by itself, the values about the actor are empty.
func about(p *authn.Principal) [][2]string {
	var subject, username, roles, kind, actor, actorSubject string
	if p != nil {
		subject, username, roles, kind = p.Subject(), p.Username(), strings.Join(p.Roles(), ","), "user" // a role has no comma
		if p.Kind() == watchwordv1.UserKind_USER_KIND_SERVICE {
			kind = "service"
		}
		if last, ok := p.Actor(); ok {
			actor, actorSubject = last.Username(), last.Subject()
		}
	}
	return [][2]string{
		{prefix + "subject", subject}, {prefix + "username", escape(username)}, {prefix + "roles", roles}, {prefix + "kind", kind},
		{prefix + "actor", escape(actor)}, {prefix + "actor-subject", actorSubject},
	}
}

// escape writes a text in the form of a URL (RFC 3986 section 2.1), if the text has other bytes
// than printable ASCII: a username can have any letters, and a value of gRPC metadata has ASCII
// alone.
func escape(text string) string {
	var b strings.Builder
	for _, c := range []byte(text) {
		if c <= ' ' || c > '~' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// header returns a header that replaces all values that the client has sent.
func header(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// deny returns the answer that refuses a request. For a request of gRPC, Envoy turns the answer
// into a gRPC status: the body becomes the message, and the header grpc-status gives the code,
// which would otherwise follow from the HTTP status. The header grpc-status-details-bin has the
// ErrorInfo. A client that does not use gRPC gets the status as JSON.
func deny(client request, st *status.Status) *authv3.CheckResponse {
	denied := &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: httpStatus(st.Code())}}
	if client.isGRPC() {
		denied.Body = st.Message()
		denied.Headers = append(denied.Headers, header("grpc-status", strconv.Itoa(int(st.Code()))))
		if details, err := proto.Marshal(st.Proto()); err == nil && len(st.Details()) > 0 {
			denied.Headers = append(denied.Headers, header("grpc-status-details-bin", base64.RawStdEncoding.EncodeToString(details)))
		}
	} else {
		body, err := protojson.Marshal(st.Proto())
		if err != nil {
			body = nil // the HTTP status says enough
		}
		denied.Body = string(body)
		denied.Headers = append(denied.Headers, header("content-type", "application/json"))
		if scheme := challenge(st); scheme != "" {
			denied.Headers = append(denied.Headers, header("www-authenticate", scheme))
		}
	}
	return &authv3.CheckResponse{Status: st.Proto(), HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: denied}}
}

func httpStatus(code codes.Code) typev3.StatusCode {
	switch code {
	case codes.Unauthenticated:
		return http.StatusUnauthorized
	case codes.PermissionDenied:
		return http.StatusForbidden
	case codes.Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// challenge returns the header WWW-Authenticate of a refusal (RFC 6750 section 3). The header names
// no error if the request had no token.
func challenge(st *status.Status) string {
	switch {
	case authn.Reason(st.Err()) == watchwordv1.ErrorReason_ERROR_REASON_TOKEN_MISSING:
		return "Bearer"
	case st.Code() == codes.Unauthenticated:
		return `Bearer error="invalid_token"`
	case st.Code() == codes.PermissionDenied:
		return `Bearer error="insufficient_scope"`
	}
	return ""
}
