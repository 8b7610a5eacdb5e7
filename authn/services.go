package authn

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/watchword-auth/watchword/internal/refusal"
)

// CheckServices finds methods that are not guarded as the author of the program believes. Call
// CheckServices at the program's start, after the services are registered, with the result of
// grpc.Server.GetServiceInfo. CheckServices checks the following:
//
//   - Both interceptors of this Verifier must have been taken, by [Verifier.ServerOptions] or
//     one by one: the calls of a server without the interceptors are not guarded. CheckServices
//     cannot see which server has the interceptors; authntest.CheckGuarded calls a running server.
//   - Every method of services must have an access rule, by the method option of
//     watchword/v1/access.proto (an empty option counts), by [WithMethodRule] or by
//     [WithPublicMethods]. If the program has no descriptor of a method,
//     every call of the method is refused, unless WithMethodRule or WithPublicMethods names
//     the method.
//   - Every name given to WithMethodRule and WithPublicMethods must belong to a method of
//     services.
//   - Only Watchword itself may ask for the audience "watchword", in [WithAudience] or in a
//     rule: a token for this audience administers Watchword, and every service that receives
//     the token could use the token to administer Watchword.
//
// Errors: FAILED_PRECONDITION, with a text that lists the interceptors not taken, the methods
// without a usable rule, the names without a method, and the uses of the audience "watchword".
func (v *Verifier) CheckServices(services map[string]grpc.ServiceInfo) error {
	var wrong []string
	unused := map[string]bool{}
	for pattern := range v.access.named {
		unused[pattern] = true
	}
	for service, info := range services {
		delete(unused, "/"+service+"/*")
		for _, m := range info.Methods {
			full := "/" + service + "/" + m.Name
			delete(unused, full)
			if fault := v.access.fault(full); fault != "" {
				wrong = append(wrong, fault)
			}
		}
	}
	for pattern := range unused {
		wrong = append(wrong, fmt.Sprintf("%s: named in %s, but no service has such a method", pattern, v.access.named[pattern].option))
	}
	wrong = append(wrong, v.asksForAdmins(services)...)
	slices.Sort(wrong)
	for _, kind := range []struct {
		taken bool
		calls string
	}{{v.takenUnary.Load(), "unary"}, {v.takenStream.Load(), "streaming"}} {
		if !kind.taken {
			wrong = append(wrong, fmt.Sprintf("no server has this verifier's interceptor for %s calls: give grpc.NewServer the options of ServerOptions", kind.calls))
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	return &refusal.Setup{
		Code:    codes.FailedPrecondition,
		Message: "authn: the services are not guarded as they must be:\n\t" + strings.Join(wrong, "\n\t"),
	}
}

// adminAudience is the audience of the tokens that administer Watchword.
const adminAudience = "watchword"

// asksForAdmins returns the places at which a program demands tokens for adminAudience. In a
// program that serves a service of Watchword, asksForAdmins finds none.
func (v *Verifier) asksForAdmins(services map[string]grpc.ServiceInfo) (wrong []string) {
	const text = "asks for the audience " + adminAudience + ", which is for Watchword alone: an admin's token for it administers users and keys, " +
		"and this program could use the token: name the program's own audience"
	if slices.Contains(v.audience.names, adminAudience) {
		wrong = append(wrong, "WithAudience: "+text)
	}
	for service, info := range services {
		if strings.HasPrefix(service, "watchword.v1.") {
			return nil
		}
		for _, m := range info.Methods {
			full := "/" + service + "/" + m.Name
			if r, err := v.access.of(full); err == nil && r.audience != nil && slices.Contains(r.audience.names, adminAudience) {
				wrong = append(wrong, full+": "+text)
			}
		}
	}
	return wrong
}

// fault returns a text that says what is wrong with a method's access rule; empty if the rule
// can be used.
func (a *accessRules) fault(full string) string {
	r, err := a.of(full)
	switch {
	case err != nil:
		return err.Error()
	case r.unknown:
		return full + ": no call is admitted, because this program has no descriptor of the method, and the method's option cannot be read " +
			"(the code was generated for another protobuf runtime, such as gogo/protobuf): state the rule by WithMethodRule or WithPublicMethods"
	case !r.declared:
		return full + ": no rule: set the method's option (watchword.v1.access), or state the rule by WithMethodRule or WithPublicMethods"
	}
	return ""
}
