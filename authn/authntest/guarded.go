package authntest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/refusal"
)

// patience is the time after which CheckGuarded gives up a call. A verifier refuses a guarded
// call at once.
const patience = 10 * time.Second

// CheckGuarded calls every method of services over conn, without a token and with an empty
// request. CheckGuarded returns an error unless a verifier has refused each call, with the
// reason TOKEN_MISSING and the name of the method.
//
//	srv := grpc.NewServer(verifier.ServerOptions()...)
//	… // register the services, serve srv, dial srv
//	err := authntest.CheckGuarded(t.Context(), conn, srv.GetServiceInfo(), "/grpc.health.v1.Health/*")
//
// CheckGuarded finds what authn.Verifier.CheckServices cannot see: a server without the two
// interceptors or with only one, and every other path to the handlers. conn is the path
// that CheckGuarded checks. To check a second path, such as a gateway in the same process that
// calls the handlers itself, call CheckGuarded again with another conn. A method that is not
// guarded runs, with the empty request.
//
// CheckGuarded does not call public methods: methods with an option that says so in the proto
// file, and methods that a pattern in public names, as in authn.WithPublicMethods.
//
// Errors: an error with one line for each method that was not refused with TOKEN_MISSING; an
// error if services has no method to call, for a malformed pattern, and for a pattern that
// matches no method of services.
func CheckGuarded(ctx context.Context, conn grpc.ClientConnInterface, services map[string]grpc.ServiceInfo, public ...string) error {
	isPublic, stop, err := publicMethods(ctx, services, public)
	if err != nil {
		return err
	}
	defer stop()
	var faults []error
	calls := 0
	for _, service := range slices.Sorted(maps.Keys(services)) {
		for _, m := range services[service].Methods {
			full := "/" + service + "/" + m.Name
			if isPublic(full) {
				continue
			}
			calls++
			if err := callWithoutToken(ctx, conn, full, m); !missesToken(err, full) {
				faults = append(faults, fmt.Errorf("authntest: %s is not guarded: a call without a token must be refused as TOKEN_MISSING, and got: %w", full, answer(err)))
			}
		}
	}
	if calls == 0 {
		faults = append(faults, errors.New("authntest: no method to call: register the services first, and name only methods that are public"))
	}
	return errors.Join(faults...)
}

// publicMethods returns a function that reports whether a method is public, and a function that
// closes the verifier by which the first function decides: a method is public if the verifier
// admits a call without a token.
func publicMethods(ctx context.Context, services map[string]grpc.ServiceInfo, patterns []string) (isPublic func(string) bool, stop func(), err error) {
	verifier, err := authn.NewVerifier(ctx, New().Conn(), authn.WithAnyAudience(), authn.WithoutWaiting(), authn.WithPublicMethods(patterns...))
	if err != nil {
		return nil, nil, err
	}
	for _, pattern := range patterns {
		if !named(services, pattern) {
			verifier.Close()
			return nil, nil, fmt.Errorf("authntest: %s: named as public, but no service has such a method", pattern)
		}
	}
	guard := verifier.UnaryServerInterceptor()
	isPublic = func(full string) bool {
		reached := false
		_, _ = guard(context.Background(), nil, &grpc.UnaryServerInfo{FullMethod: full}, func(context.Context, any) (any, error) {
			reached = true
			return nil, nil
		})
		return reached
	}
	return isPublic, func() { verifier.Close() }, nil
}

// named reports whether a pattern names a method of services.
func named(services map[string]grpc.ServiceInfo, pattern string) bool {
	service, method, _ := strings.Cut(strings.TrimPrefix(pattern, "/"), "/")
	return slices.ContainsFunc(services[service].Methods, func(m grpc.MethodInfo) bool { return method == "*" || method == m.Name })
}

// callWithoutToken calls a method, unary or stream, and returns the error of the call; nil if
// the method answered.
func callWithoutToken(ctx context.Context, conn grpc.ClientConnInterface, full string, m grpc.MethodInfo) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if md, ok := metadata.FromOutgoingContext(ctx); ok {
		delete(md, "authorization") // md is a copy
		ctx = metadata.NewOutgoingContext(ctx, md)
	}
	request, response := new(emptypb.Empty), new(emptypb.Empty)
	if !m.IsClientStream && !m.IsServerStream {
		return conn.Invoke(ctx, full, request, response)
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{StreamName: m.Name, ClientStreams: m.IsClientStream, ServerStreams: m.IsServerStream}, full)
	if err != nil {
		return err
	}
	// The error of a refused SendMsg is io.EOF; RecvMsg returns the status.
	if stream.SendMsg(request) == nil {
		_ = stream.CloseSend()
	}
	return stream.RecvMsg(response)
}

// missesToken reports whether a verifier has refused the call of a method because the token was
// missing. An error that names another method comes from a service that the handler of the
// method has called: so the handler ran.
func missesToken(err error, full string) bool {
	return refusal.Reason(err) == watchwordv1.ErrorReason_ERROR_REASON_TOKEN_MISSING && refusal.Method(err) == full
}

// answer returns the error of a call as a text for CheckGuarded's error.
func answer(err error) error {
	if err == nil {
		return errors.New("the method's own answer")
	}
	if missing := refusal.Method(err); missing != "" {
		return fmt.Errorf("%w (from %s)", err, missing)
	}
	return fmt.Errorf("%w (code %v)", err, status.Code(err))
}
