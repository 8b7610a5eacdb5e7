package authn

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

// rule says which callers are allowed to call a method. The zero rule admits every caller with a
// valid token.
type rule struct {
	public      bool      // every caller is admitted, even without a token
	roles       []string  // the caller needs at least one of these roles; none: a valid token is enough
	audience    *audience // the token must be for this audience; nil: for the audience of WithAudience
	undelegated bool      // a delegated token is refused
	declared    bool      // true if the method's option, WithPublicMethods or WithMethodRule has set the rule
	unknown     bool      // no caller is admitted: the program has no descriptor of the method, and no option of the Verifier names it
}

// methodRule is an access rule that an option of NewVerifier, such as WithMethodRule, has set.
type methodRule struct {
	option  string // the name of the option of NewVerifier, for errors
	pattern string // /package.Service/Method or /package.Service/*
	access  *watchwordv1.Access
}

// accessRules finds the access rule of every method. Any number of goroutines can call
// [accessRules.of] at once.
//
// The first rule that exists applies: the method's own option in its proto file, then a
// methodRule with the method's name, then a methodRule for the whole service. A method with a
// descriptor and without any of these rules needs a valid token. A method without a descriptor
// may have an option that the program cannot read. So without a methodRule, a method without a
// descriptor admits no caller.
type accessRules struct {
	named  map[string]methodRule // the rules, by pattern
	linked map[string]*rule      // the rules of the methods that were linked into the program at the start, by full name
	later  sync.Map              // the rules of the methods that were registered later, by full name; only methods with a descriptor, so that callers cannot make the map grow
}

// newAccessRules computes the access rule of every method linked into the program, so that a
// contradiction between rules is an error at the program's start and not at a call. named holds
// the rules set by options of NewVerifier, one for each pattern.
//
// Errors: an error for each method with an option that cannot be used, or that contradicts
// named.
func newAccessRules(named map[string]methodRule) (*accessRules, error) {
	a := &accessRules{named: named, linked: map[string]*rule{}}
	var found []error
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				method := service.Methods().Get(j)
				r, err := a.decide(string(service.FullName()), string(method.Name()), method)
				found = append(found, err) // nil is no error, and errors.Join leaves nil out
				a.linked["/"+string(service.FullName())+"/"+string(method.Name())] = r
			}
		}
		return true
	})
	return a, errors.Join(found...)
}

// errMalformedMethod means that the method name of a call has another form than
// /service/method.
var errMalformedMethod = errors.New("malformed method name")

// of returns the access rule of a method. full is the name of the method in a call, of the form
// /service/method.
//
// Errors: errMalformedMethod; the fault of a descriptor registered after newAccessRules.
func (a *accessRules) of(full string) (*rule, error) {
	if r, ok := a.linked[full]; ok {
		return r, nil
	}
	if r, ok := a.later.Load(full); ok {
		return r.(*rule), nil
	}
	service, method, ok := splitMethod(full)
	if !ok || !utf8.ValidString(full) {
		return nil, errMalformedMethod
	}
	descriptor := findMethod(service, method)
	r, err := a.decide(service, method, descriptor)
	if err == nil && descriptor != nil {
		a.later.Store(full, r)
	}
	return r, err
}

// decide computes the access rule of a method. descriptor is nil for a method without a
// descriptor.
//
// Errors: an error if the method's option cannot be used, or if a methodRule with the method's
// name differs from the option.
func (a *accessRules) decide(service, method string, descriptor protoreflect.MethodDescriptor) (*rule, error) {
	name := "/" + service + "/" + method
	access, declared, err := accessOption(descriptor)
	if err == nil {
		err = checkAccess(access)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: the option (watchword.v1.access): %w", name, err)
	}
	exact, named := a.named[name]
	whole, covered := a.named["/"+service+"/*"]
	switch {
	case declared && named && !proto.Equal(access, exact.access):
		return nil, fmt.Errorf("%s: named in %s, but the method has an option (watchword.v1.access) of its own with another rule", name, exact.option)
	case declared:
	case named:
		access, declared = exact.access, true
	case covered:
		access, declared = whole.access, true
	case descriptor == nil:
		return &rule{unknown: true}, nil
	}
	r := ruleOf(access)
	r.declared = declared
	return r, nil
}

// ruleOf returns the rule that access states. access has passed [checkAccess].
func ruleOf(access *watchwordv1.Access) *rule {
	r := &rule{public: access.GetPublic(), roles: access.GetRoles(), undelegated: access.GetDelegated() == watchwordv1.Access_REFUSE}
	if names := access.GetAudience(); len(names) > 0 {
		r.audience = &audience{names: names}
	}
	return r
}

// checkAccess returns an error for an access rule that cannot be used. A nil rule sets nothing,
// and gives no error.
//
// Errors: an error if the rule has a field or a value that this version does not know, since
// the rule may demand more than a valid token; if the rule is public and sets another field; if
// no user can have one of the roles; if an audience is empty.
func checkAccess(access *watchwordv1.Access) error {
	if len(access.ProtoReflect().GetUnknown()) > 0 {
		return errors.New("has a field that this version of authn does not know: update Watchword's module")
	}
	if _, known := watchwordv1.Access_Delegated_name[int32(access.GetDelegated())]; !known {
		return errors.New("has a value of the field delegated that this version of authn does not know: update Watchword's module")
	}
	if access.GetPublic() && !proto.Equal(access, &watchwordv1.Access{Public: true}) {
		return errors.New("is public, and sets another field too")
	}
	if slices.Contains(access.GetAudience(), "") {
		return errors.New("names an empty audience, which no token has")
	}
	for _, role := range access.GetRoles() {
		if !token.IsRole(role) {
			return fmt.Errorf("no user can have the role %q: a role is %s", role, token.RoleForm)
		}
	}
	return nil
}

// findMethod returns the descriptor of a method, and nil if the program has none. Two names of
// calls, "/a.B/c.D" and "/a.B.c/D", give the one descriptor name "a.B.c.D". So findMethod also
// compares the descriptor's parent with the service.
func findMethod(service, method string) protoreflect.MethodDescriptor {
	found, _ := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service + "." + method))
	if m, ok := found.(protoreflect.MethodDescriptor); ok && m.Parent().FullName() == protoreflect.FullName(service) {
		return m
	}
	return nil
}

// ownTypes is a registry of protobuf types with the option (watchword.v1.access) and no other
// extension.
var ownTypes = func() *protoregistry.Types {
	types := new(protoregistry.Types)
	if err := types.RegisterExtension(watchwordv1.E_Access); err != nil {
		panic(err) // a new registry has no other extension
	}
	return types
}()

// accessOption returns the method option (watchword.v1.access), and whether the descriptor
// has the option.
//
// A descriptor may hold the option undecoded, or decoded as a Go type of another package: if
// the descriptor was built while the program runs, or if the program has a second copy of
// access.proto. So accessOption encodes all options, and decodes them again with ownTypes, so that
// the result does not depend on the types that the program has registered.
func accessOption(descriptor protoreflect.MethodDescriptor) (access *watchwordv1.Access, declared bool, err error) {
	if descriptor == nil {
		return nil, false, nil
	}
	raw, err := proto.MarshalOptions{AllowPartial: true}.Marshal(descriptor.Options())
	if err != nil {
		return nil, false, fmt.Errorf("cannot be read: %w", err)
	}
	options := new(descriptorpb.MethodOptions)
	if err := (proto.UnmarshalOptions{AllowPartial: true, Resolver: ownTypes}).Unmarshal(raw, options); err != nil {
		return nil, false, fmt.Errorf("cannot be read: %w", err)
	}
	access, _ = proto.GetExtension(options, watchwordv1.E_Access).(*watchwordv1.Access)
	return access, proto.HasExtension(options, watchwordv1.E_Access), nil
}

// validPattern reports whether a pattern can match a method. Names must be valid proto
// names: a pattern that matches nothing would go unnoticed until a client calls the method.
func validPattern(pattern string) bool {
	service, method, ok := splitMethod(pattern)
	return ok && protoreflect.FullName(service).IsValid() &&
		(method == "*" || protoreflect.Name(method).IsValid())
}

// splitMethod splits "/package.Service/Method". For every other form, ok is false: grpc-go's
// router may read another form differently, so the rule of a public method must not admit a
// call with another form.
func splitMethod(full string) (service, method string, ok bool) {
	rest, slash := strings.CutPrefix(full, "/")
	service, method, ok = strings.Cut(rest, "/")
	return service, method, slash && ok && service != "" && method != "" && !strings.Contains(method, "/")
}
