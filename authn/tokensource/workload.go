package tokensource

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/durable"
	"github.com/watchword-auth/watchword/internal/refusal"
)

// An Assertion returns a JWT by which the platform says which process this is, such as a
// projected token of Kubernetes or a JWT-SVID of SPIRE. A [Source] calls an Assertion for each
// exchange, so an Assertion returns the newest JWT. ctx ends after ten seconds. Two goroutines
// can call an Assertion at once.
//
// An error of an Assertion is the error of the calls that wait for a token, and must hold no
// secret.
type Assertion func(ctx context.Context) (string, error)

// Workload returns a Source for a service account. The Source exchanges an assertion of the
// platform for an access token (RFC 8693, RFC 7523), and needs no secret of its own. There is no
// session and no refresh token: Workload exchanges a new assertion before the access token
// expires.
//
// Watchword must trust the issuer of the assertion, and a binding must name the service account
// (docs/services.md). A refused assertion is the error of the calls that need a token, and
// Workload exchanges the next assertion after some seconds, and later once a minute.
//
// The Source has two tokens: the token for the services in [WithAudience], for its DialOptions,
// its Token and its token file; and, once [OnBehalfOf] needs it, a token for Watchword itself,
// by which the service delegates. The token for Watchword goes to Watchword alone, so no service
// that the Source calls can delegate in the name of this service.
//
// conn is as in [Password]. Errors: INVALID_ARGUMENT if conn or assertion is nil or an option
// cannot be used; Workload takes no [WithStore].
func Workload(conn grpc.ClientConnInterface, assertion Assertion, opts ...Option) (*Source, error) {
	if assertion == nil {
		return nil, misused("Workload needs an assertion, such as File(path)")
	}
	return newSource(conn, &session{name: "a workload", assertion: assertion}, opts)
}

// exchange asks Watchword for the access token of a service account.
//
// Errors: Watchword's status, with what to check; UNAVAILABLE if the assertion fails; INTERNAL if
// the answer is incomplete.
func (s *session) exchange(ctx context.Context) (*tokens, error) {
	assertion, err := s.assertion(ctx)
	if err == nil && assertion == "" {
		err = errors.New("the assertion is empty")
	}
	if err != nil {
		return nil, &refusal.Setup{Code: codes.Unavailable, Message: "tokensource: no assertion of the platform: " + err.Error(), Cause: err}
	}
	req := &watchwordv1.ExchangeTokenRequest{Audience: s.audience}
	answer, err := s.auth.ExchangeToken(ctx, req, s.fillIn(func() { req.SubjectToken = assertion }))
	if err != nil {
		return nil, withHint(err)
	}
	return accessToken(answer, "")
}

// hints says what to check after a refused assertion.
var hints = map[watchwordv1.ErrorReason]string{
	watchwordv1.ErrorReason_ERROR_REASON_ASSERTION_INVALID: "check that the assertion has not expired, that its claim aud holds Watchword's issuer and " +
		"nothing else, and that Watchword trusts its claim iss (watchword issuer list)",
	watchwordv1.ErrorReason_ERROR_REASON_ASSERTION_UNBOUND: "check that one binding names a service account for the subject and the claims of the assertion " +
		"(watchword service show, watchword service bind)",
	watchwordv1.ErrorReason_ERROR_REASON_USER_DISABLED: "an admin has disabled the service account (watchword service enable)",
}

// withHint adds to the message of a status what to check; the code and the details stay.
func withHint(err error) error {
	hint, ok := hints[refusal.Reason(err)]
	if !ok {
		return err
	}
	p := status.Convert(err).Proto()
	p.Message += ": " + hint
	return status.FromProto(p).Err()
}

// maxAssertion is the longest assertion that Watchword accepts, in bytes.
const maxAssertion = 16 << 10

// compactJWS is the form of a JWT (RFC 7515 section 7.1).
var compactJWS = regexp.MustCompile(`^[\w-]+\.[\w-]+\.[\w-]+$`)

// File returns an Assertion that reads the file at path at each call: the platform replaces the
// file before the token in the file expires. File ignores white space around the token.
//
// A file without a token is an error that names the file. So a wrong path sends no other file,
// such as a private key, to Watchword.
func File(path string) Assertion {
	return func(context.Context) (string, error) {
		raw, err := readAssertion(path)
		if err != nil {
			return "", fmt.Errorf("%w: check that the platform writes its token for this process there", err)
		}
		return raw, nil
	}
}

// readAssertion reads a token from a file. No error of readAssertion repeats a part of the file.
func readAssertion(path string) (string, error) {
	content, err := durable.Read(path, maxAssertion)
	token := strings.TrimSpace(string(content))
	switch {
	case err != nil:
		return "", err
	case token == "":
		return "", fmt.Errorf("%s is empty", path)
	case !compactJWS.MatchString(token):
		return "", fmt.Errorf("%s holds no JWT", path)
	}
	return token, nil
}
