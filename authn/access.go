package authn

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/refusal"
)

// rule says which callers may call a method.
type rule struct {
	public   bool      // every caller is admitted, also without a token
	roles    []string  // otherwise the caller needs at least one of these roles; none: a valid token is enough
	audience *audience // the token must be for this audience; nil: for the verifier's own
	declared bool      // set by the method's option or by WithPublicMethods
}

// accessRules finds the access rule of every method. A method without an access rule of its
// own needs a valid token. Any number of goroutines may call [accessRules.of].
type accessRules struct {
	public map[string]bool // patterns of WithPublicMethods
	linked map[string]rule // full name → rule, for methods linked into the program at the start
	later  sync.Map        // full name → rule, for methods registered later; only methods with a descriptor, so callers cannot make the map grow
}

// newAccessRules computes the access rule of every method linked into the program, so that
// a contradiction is an error at the program's start and not at a call.
//
// Errors: one for each method with an option that contradicts itself or WithPublicMethods.
func newAccessRules(public []string) (*accessRules, error) {
	a := &accessRules{public: make(map[string]bool, len(public)), linked: map[string]rule{}}
	for _, pattern := range public {
		a.public[pattern] = true
	}
	var found []error
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				method := service.Methods().Get(j)
				r, err := a.decide(string(service.FullName()), string(method.Name()), method)
				found = append(found, err) // Join leaves out nil
				a.linked["/"+string(service.FullName())+"/"+string(method.Name())] = r
			}
		}
		return true
	})
	return a, errors.Join(found...)
}

// errMalformedMethod reports a method name of another form than /service/method.
var errMalformedMethod = errors.New("malformed method name")

// of returns the access rule of a method. full is the method's name in a call,
// /service/method.
//
// Errors: errMalformedMethod; the contradiction in a descriptor registered after
// newAccessRules.
func (a *accessRules) of(full string) (rule, error) {
	if r, ok := a.linked[full]; ok {
		return r, nil
	}
	if r, ok := a.later.Load(full); ok {
		return r.(rule), nil
	}
	service, method, ok := splitMethod(full)
	if !ok || !utf8.ValidString(full) {
		return rule{}, errMalformedMethod
	}
	descriptor := findMethod(service, method)
	r, err := a.decide(service, method, descriptor)
	if err == nil && descriptor != nil {
		a.later.Store(full, r)
	}
	return r, err
}

// decide computes the access rule of a method from the method's option and from
// WithPublicMethods. descriptor is nil for a method without a descriptor.
//
// Errors: if the method's option cannot be read, contradicts itself or contradicts
// WithPublicMethods.
func (a *accessRules) decide(service, method string, descriptor protoreflect.MethodDescriptor) (rule, error) {
	name := "/" + service + "/" + method
	listed := a.public[name] || a.public["/"+service+"/*"]
	access, declared, err := accessOption(descriptor)
	switch {
	case err != nil:
		return rule{}, fmt.Errorf("%s: cannot read the method's options: %w", name, err)
	case access.GetPublic() && len(access.GetRoles()) > 0:
		return rule{}, fmt.Errorf("%s: the option (watchword.v1.access) sets both public and roles", name)
	case access.GetPublic() && len(access.GetAudience()) > 0:
		return rule{}, fmt.Errorf("%s: the option (watchword.v1.access) sets both public and audience", name)
	case slices.Contains(access.GetAudience(), ""): // no token has it
		return rule{}, fmt.Errorf("%s: the option (watchword.v1.access) names an empty audience", name)
	case listed && len(access.GetRoles()) > 0:
		return rule{}, fmt.Errorf("%s: named in WithPublicMethods, but the option (watchword.v1.access) asks for roles", name)
	case listed && len(access.GetAudience()) > 0:
		return rule{}, fmt.Errorf("%s: named in WithPublicMethods, but the option (watchword.v1.access) asks for an audience", name)
	}
	r := rule{
		public:   listed || access.GetPublic(),
		roles:    access.GetRoles(),
		declared: listed || declared,
	}
	if names := access.GetAudience(); len(names) > 0 {
		r.audience = &audience{names: names}
	}
	return r, nil
}

// findMethod returns the descriptor of a method; nil if the program has none. The names
// "/a.B/c.D" and "/a.B.c/D" both give the descriptor name "a.B.c.D", so findMethod also
// compares the parent with the service.
func findMethod(service, method string) protoreflect.MethodDescriptor {
	found, _ := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service + "." + method))
	if m, ok := found.(protoreflect.MethodDescriptor); ok && m.Parent().FullName() == protoreflect.FullName(service) {
		return m
	}
	return nil
}

// accessOption returns the method option (watchword.v1.access), and whether the descriptor
// has the option. A descriptor built while the program runs may hold the option undecoded
// or in a foreign type, and the method would seem to have no access rule. So accessOption
// encodes all options and decodes them again.
func accessOption(descriptor protoreflect.MethodDescriptor) (access *watchwordv1.Access, declared bool, err error) {
	if descriptor == nil {
		return nil, false, nil
	}
	raw, err := proto.Marshal(descriptor.Options())
	if err != nil {
		return nil, false, err
	}
	options := new(descriptorpb.MethodOptions)
	if err := proto.Unmarshal(raw, options); err != nil {
		return nil, false, err
	}
	access, _ = proto.GetExtension(options, watchwordv1.E_Access).(*watchwordv1.Access)
	return access, proto.HasExtension(options, watchwordv1.E_Access), nil
}

// CheckServices finds methods without an access rule. Call CheckServices at the program's
// start, after the services are registered, with grpc.Server.GetServiceInfo.
//
// Every method of services must have an access rule, by the method option of
// watchword/v1/access.proto (an empty option counts) or by WithPublicMethods. Every name
// given to WithPublicMethods must belong to a method of services.
//
// Errors: FAILED_PRECONDITION, with a text that lists the methods without a rule, and the
// names without a method.
func (v *Verifier) CheckServices(services map[string]grpc.ServiceInfo) error {
	var wrong []string
	unused := maps.Clone(v.access.public)
	for service, info := range services {
		delete(unused, "/"+service+"/*")
		for _, m := range info.Methods {
			full := "/" + service + "/" + m.Name
			delete(unused, full)
			r, err := v.access.of(full)
			switch {
			case err != nil:
				wrong = append(wrong, err.Error())
			case !r.declared:
				wrong = append(wrong, full+": no rule: set the method's option (watchword.v1.access), or name the method in WithPublicMethods")
			}
		}
	}
	for pattern := range unused {
		wrong = append(wrong, pattern+": named in WithPublicMethods, but no service has such a method")
	}
	if len(wrong) == 0 {
		return nil
	}
	slices.Sort(wrong)
	return &refusal.Setup{
		Code:    codes.FailedPrecondition,
		Message: "authn: the services do not match the access rules:\n\t" + strings.Join(wrong, "\n\t"),
	}
}
