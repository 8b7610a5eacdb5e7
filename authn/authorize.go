package authn

import (
	"context"
	"slices"

	"google.golang.org/grpc/metadata"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// Authorize checks a call as the interceptors do, for a server of another kind than grpc-go's,
// such as a server of Connect: by the access rule of the method, with the same errors, metrics
// and attributes of spans. Call Authorize before the handler, and call the handler with the
// context that Authorize returns: [FromContext] finds the caller's principal in the context, and
// tokensource.Forward and tokensource.OnBehalfOf find the caller's token. If Authorize returns an
// error, do not call the handler.
//
// fullMethod is the name of the called method, of the form /package.Service/Method: the path of a
// call of gRPC or Connect, without a prefix of the server, without a query. Take fullMethod from
// the place by which the server chooses the handler, so that the rule of one method never admits
// a call of another method. fullMethod is case-sensitive. authorization has the value of each
// header "authorization" of the call, in upper or lower case: with a part of the values alone,
// a call with two tokens would not be refused. A nil authorization stands for a call without the
// header.
//
// Authorize checks the token once. For a stream, call Authorize again twice a second with the
// stream's own context and the same values, and end the stream after an error, as
// [Verifier.StreamServerInterceptor] does: otherwise a stream outlives the logout of its caller.
//
// ctx is the context of the call. Authorize needs no network and does not wait, also if ctx has
// ended. Any number of goroutines can call Authorize at once; Authorize keeps no reference to
// authorization.
//
// Errors are gRPC statuses with an ErrorInfo: those of [Verifier.UnaryServerInterceptor].
func (v *Verifier) Authorize(ctx context.Context, fullMethod string, authorization []string) (context.Context, error) {
	admitted, err := v.guard(withIncoming(ctx, authorization), fullMethod)
	if err != nil { // else the caller would get an interface with a nil pointer, and not nil
		return nil, err
	}
	return admitted, nil
}

// AuthorizeByRule checks a call as [Verifier.Authorize] does, by the access rule that the program
// gives, for a server with rules in another place than in proto files and options. The rule of the
// proto file, [WithMethodRule] and [WithPublicMethods] have no effect. fullMethod is for the errors
// alone, and can be empty: a client renews its token and calls again only if the error names the
// called method.
//
// Errors: INVALID_ARGUMENT without a reason for a rule that NewVerifier would refuse; otherwise
// those of Authorize for the token and the rule.
func (v *Verifier) AuthorizeByRule(ctx context.Context, access *watchwordv1.Access, fullMethod string, authorization []string) (context.Context, error) {
	if err := checkAccess(access); err != nil {
		return nil, misused(err)
	}
	admitted, err := v.guardBy(withIncoming(ctx, authorization), fullMethod, ruleOf(access))
	if err != nil {
		return nil, err
	}
	return admitted, nil
}

// withIncoming returns ctx with authorization in place of the values of the metadata
// "authorization". In a guarded method, the handler's context must have the token that was checked,
// since the package tokensource sends on the token of the context: ctx may come from a handler that
// grpc-go has called with another token.
func withIncoming(ctx context.Context, authorization []string) context.Context {
	md, _ := metadata.FromIncomingContext(ctx) // returns a copy, which withIncoming can change
	if md == nil {
		md = metadata.MD{}
	}
	md["authorization"] = slices.Clone(authorization)
	return metadata.NewIncomingContext(ctx, md)
}
