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

// rule says who may call a method.
type rule struct {
	public   bool
	roles    []string // any one suffices; none: a valid token does
	declared bool     // somebody wrote it down, in an option or by WithPublicMethods
}

// allows says whether a principal has a role that the rule asks for.
func (r rule) allows(p *Principal) bool {
	return len(r.roles) == 0 || slices.ContainsFunc(r.roles, p.HasRole)
}

// accessRules knows the rule of every method. A method that nobody knows needs a
// valid token.
type accessRules struct {
	public map[string]bool // patterns of WithPublicMethods
	linked map[string]rule // of the methods that were linked in at the start, by full name

	// later holds rules of methods that were registered since. Only methods that
	// have a descriptor come in, so no caller can make it grow.
	later sync.Map // full name → rule
}

// newAccessRules decides about every method that is linked into the program, so
// that contradictions show at its start and not at a call.
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
				if err != nil {
					found = append(found, err)
				}
				a.linked["/"+string(service.FullName())+"/"+string(method.Name())] = r
			}
		}
		return true
	})
	return a, errors.Join(found...)
}

// errMalformedMethod says that a name is not of the form /service/method.
var errMalformedMethod = errors.New("malformed method name")

// of returns the rule of a method that is called. Its error is
// errMalformedMethod, or a contradiction in a descriptor that was registered
// after newAccessRules looked at all of them.
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

// decide puts together what the options of NewVerifier and the descriptor say.
// descriptor may be nil.
func (a *accessRules) decide(service, method string, descriptor protoreflect.MethodDescriptor) (rule, error) {
	name := "/" + service + "/" + method
	listed := a.public[name] || a.public["/"+service+"/*"]
	access, declared, err := accessOption(descriptor)
	switch {
	case err != nil:
		return rule{}, fmt.Errorf("%s: its options cannot be read: %w", name, err)
	case access.GetPublic() && len(access.GetRoles()) > 0:
		return rule{}, fmt.Errorf("%s: its option (watchword.v1.access) sets both public and roles", name)
	case listed && len(access.GetRoles()) > 0:
		return rule{}, fmt.Errorf("%s: WithPublicMethods names it, but its option (watchword.v1.access) asks for roles", name)
	}
	return rule{
		public:   listed || access.GetPublic(),
		roles:    access.GetRoles(),
		declared: listed || declared,
	}, nil
}

// findMethod returns the descriptor of a method, nil if the program has none. It
// goes by the service, since "/a.B/c.D" must not be taken for "/a.B.c/D".
func findMethod(service, method string) protoreflect.MethodDescriptor {
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return nil
	}
	descriptor, ok := found.(protoreflect.ServiceDescriptor)
	if !ok {
		return nil
	}
	// A typed nil would be a descriptor that is there.
	if m := descriptor.Methods().ByName(protoreflect.Name(method)); m != nil {
		return m
	}
	return nil
}

// accessOption reads the method option. A descriptor that was built while the
// program runs may hold it undecoded or in a type of its own, and must not be
// taken for one without a rule, so the options are always decoded anew.
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
	if !proto.HasExtension(options, watchwordv1.E_Access) {
		return nil, false, nil
	}
	access, _ = proto.GetExtension(options, watchwordv1.E_Access).(*watchwordv1.Access)
	return access, true, nil
}

// CheckServices holds the registered services against the rules, strictly: every
// method must have one, by its option (an empty one counts) or by
// WithPublicMethods, and every name of WithPublicMethods must be one that a
// service has. Call it after registration, with the server's GetServiceInfo; a
// method that was forgotten is then found at start. The one error names
// everything that is wrong, and is a FAILED_PRECONDITION.
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
				wrong = append(wrong, full+": no rule: give it the option (watchword.v1.access), or name it in WithPublicMethods")
			}
		}
	}
	for pattern := range unused {
		wrong = append(wrong, pattern+": WithPublicMethods names it, but no service has it")
	}
	if len(wrong) == 0 {
		return nil
	}
	slices.Sort(wrong)
	return &refusal.Setup{
		Code:    codes.FailedPrecondition,
		Message: "authn: the services and their rules do not fit:\n\t" + strings.Join(wrong, "\n\t"),
	}
}
