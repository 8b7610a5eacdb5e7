package check

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
	"google.golang.org/protobuf/reflect/protoreflect"
	securityv1 "istio.io/api/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

const (
	envoyFile = deploy + "/envoy/envoy.yaml"
	istioFile = deploy + "/istio/notes.yaml"
)

// strictly decodes YAML into a message. An unknown field, a repeated field, and a value that the
// message's own rules refuse are errors, also inside of every Any.
func strictly(text string, message proto.Message) error {
	document, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return err
	}
	if err := protojson.Unmarshal(document, message); err != nil {
		return err
	}
	return validate(message)
}

// each calls do for a message, and for each message in the message, also inside of every Any, until
// do returns an error.
func each(message proto.Message, do func(proto.Message) error) error {
	return protorange.Range(message.ProtoReflect(), func(values protopath.Values) error {
		if m, ok := values.Index(-1).Value.Interface().(protoreflect.Message); ok {
			return do(m.Interface())
		}
		return nil
	})
}

// validate checks a message, and each message in the message, by the rules of Envoy's proto files.
func validate(message proto.Message) error {
	return each(message, func(m proto.Message) error {
		if v, ok := m.(interface{ Validate() error }); ok {
			return v.Validate()
		}
		return nil
	})
}

// filterOf returns the filter jwt_authn of Envoy's configuration.
func filterOf(t *testing.T, bootstrap *bootstrapv3.Bootstrap) *jwtv3.JwtAuthentication {
	t.Helper()
	var found *jwtv3.JwtAuthentication
	err := each(bootstrap, func(m proto.Message) error {
		if filter, ok := m.(*jwtv3.JwtAuthentication); ok {
			found = filter
		}
		return nil
	})
	if err != nil || found == nil {
		t.Fatalf("%s: the filter jwt_authn is missing, %v", envoyFile, err)
	}
	return found
}

// TestEnvoy decodes Envoy's configuration by Envoy's own types, and checks what the filter
// jwt_authn leaves open by default.
func TestEnvoy(t *testing.T) {
	text := read(t, envoyFile)
	var bootstrap bootstrapv3.Bootstrap
	if err := strictly(text, &bootstrap); err != nil {
		t.Fatalf("%s: %v", envoyFile, err)
	}
	filter := filterOf(t, &bootstrap)
	provider := filter.Providers["watchword"]
	jwks := provider.GetRemoteJwks()
	issuer := readCluster(t).config["WATCHWORD_ISSUER"]
	switch {
	case provider.Issuer != issuer || jwks.GetHttpUri().GetUri() != issuer+"/.well-known/jwks.json":
		t.Errorf("the issuer %q and the key set %q are not those of deploy/kubernetes, %q", provider.Issuer, jwks.GetHttpUri().GetUri(), issuer)
	case len(provider.Audiences) == 0:
		t.Error("a token for any audience passes")
	case jwks.CacheDuration.AsDuration() >= defaultJWKSMaxAge(t):
		t.Errorf("the key set is kept for %v: a new key of Watchword signs sooner", jwks.CacheDuration.AsDuration())
	case provider.JwtCacheConfig != nil:
		t.Error("a cached token outlives its key")
	case provider.ClockSkewSeconds == 0 || provider.ClockSkewSeconds > 10:
		t.Errorf("a token is accepted for %d seconds after its expiry; 0 stands for 60", provider.ClockSkewSeconds)
	case len(provider.FromHeaders) != 1 || len(provider.FromParams)+len(provider.FromCookies) > 0:
		t.Error("a token is read from another place than the metadata authorization")
	}
	last := filter.Rules[len(filter.Rules)-1]
	if last.Match.GetPrefix() != "/" || last.GetRequires().GetProviderName() != "watchword" {
		t.Errorf("the last rule is %v: a call that no rule matches passes", last)
	}
	clusters := map[string]bool{}
	for _, c := range bootstrap.StaticResources.Clusters {
		clusters[c.Name] = true
	}
	if !clusters[jwks.GetHttpUri().GetCluster()] {
		t.Errorf("there is no cluster %q", jwks.GetHttpUri().GetCluster())
	}
	for _, bad := range [][2]string{
		{"audiences:", "audience:"}, {"cache_duration: 30s", "cache_duration: 30s, cache_duraton: 1s"}, {"cache_duration: 30s", "cache_duration: 30 seconds"},
		{"trusted_ca:", "trusted_cas:"}, {"clusters:", "cluster:"}, {"requires:", "require:"}, {"v3.Router", "v3.Routes"}, {"cluster_name: notes", "cluster_name: \"\""},
	} {
		wantRefused(t, text, bad, func(changed string) error { return strictly(changed, new(bootstrapv3.Bootstrap)) })
	}
}

// wantRefused checks that the decoding of a changed file fails.
func wantRefused(t *testing.T, text string, change [2]string, decode func(string) error) {
	t.Helper()
	changed := strings.Replace(text, change[0], change[1], 1)
	if changed == text {
		t.Errorf("the file has no %q", change[0])
	}
	if err := decode(changed); err == nil {
		t.Errorf("%q in place of %q is not refused", change[1], change[0])
	}
}

// defaultJWKSMaxAge returns the default of --jwks-max-age.
func defaultJWKSMaxAge(t *testing.T) time.Duration {
	t.Helper()
	help := output(t, exec.Command(watchword(t), "serve", "--help"))
	m := regexp.MustCompile(`--jwks-max-age=(\w+)`).FindStringSubmatch(help)
	if m == nil {
		t.Fatal("serve --help has no default of --jwks-max-age")
	}
	return parse(t, m[1])
}

// policyObject is an object of Istio. The types of Istio's Go client read a spec with unknown
// fields, so the test decodes the parts itself.
type policyObject struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              json.RawMessage `json:"spec"`
}

// mesh holds the objects of Istio's file.
type mesh struct {
	authentication securityv1.RequestAuthentication
	authorization  securityv1.AuthorizationPolicy
}

// decodeMesh decodes Istio's file by Istio's own types. An unknown field is an error, and so is a
// field that Kubernetes would drop because its name is not the name of the CRD.
func decodeMesh(text string) (*mesh, error) {
	var m mesh
	for document := range strings.SplitSeq(text, "\n---\n") {
		object, err := yaml.YAMLToJSONStrict([]byte(document))
		if err != nil {
			return nil, err
		}
		var policy policyObject
		decoder := json.NewDecoder(bytes.NewReader(object))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&policy); err != nil {
			return nil, err
		}
		var spec proto.Message
		switch policy.APIVersion + " " + policy.Kind {
		case "security.istio.io/v1 RequestAuthentication":
			spec = &m.authentication
		case "security.istio.io/v1 AuthorizationPolicy":
			spec = &m.authorization
		default:
			return nil, fmt.Errorf("unexpected %s %s", policy.APIVersion, policy.Kind)
		}
		if err := errors.Join(protojson.Unmarshal(policy.Spec, spec), sameNames(policy.Spec, spec)); err != nil {
			return nil, err
		}
	}
	return &m, nil
}

// sameNames checks that the fields of a spec have the names of the CRD, which protojson writes.
// protojson also reads the names of the proto file.
func sameNames(spec json.RawMessage, message proto.Message) error {
	written, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(message)
	if err != nil {
		return err
	}
	var in, out any
	if err := errors.Join(json.Unmarshal(spec, &in), json.Unmarshal(written, &out)); err != nil {
		return err
	}
	if !within(in, out) {
		return fmt.Errorf("the file has %v, and Istio writes %v", in, out)
	}
	return nil
}

// within reports whether every field of the JSON value in is in the JSON value out.
func within(in, out any) bool {
	switch in := in.(type) {
	case map[string]any:
		fields, ok := out.(map[string]any)
		for name, value := range in {
			ok = ok && within(value, fields[name])
		}
		return ok
	case []any:
		values, _ := out.([]any)
		return slices.EqualFunc(in, values, within)
	}
	return in == out
}

// TestIstio decodes Istio's policies by Istio's own types, and checks what Istio leaves open by
// default.
func TestIstio(t *testing.T) {
	text := read(t, istioFile)
	m, err := decodeMesh(text)
	if err != nil {
		t.Fatalf("%s: %v", istioFile, err)
	}
	issuer := readCluster(t).config["WATCHWORD_ISSUER"]
	if len(m.authentication.JwtRules) != 1 {
		t.Fatalf("%d rules", len(m.authentication.JwtRules))
	}
	rule := m.authentication.JwtRules[0]
	switch {
	case rule.Issuer != issuer || rule.JwksUri != issuer+"/.well-known/jwks.json":
		t.Errorf("the issuer %q and the key set %q are not those of deploy/kubernetes, %q", rule.Issuer, rule.JwksUri, issuer)
	case len(rule.Audiences) == 0:
		t.Error("the audiences are missing")
	case len(rule.FromHeaders) != 1 || len(rule.FromParams)+len(rule.FromCookies) > 0:
		t.Error("a token is read from another place than the metadata authorization")
	}
	if !proto.Equal(m.authentication.Selector, m.authorization.Selector) || m.authorization.Action != securityv1.AuthorizationPolicy_ALLOW {
		t.Error("the AuthorizationPolicy does not guard the pods of the RequestAuthentication: a call without a token passes")
	}
	for _, r := range m.authorization.Rules {
		public := slices.Equal(r.To[0].Operation.Paths, []string{"/notes.v1.NotesService/About"})
		if !public && (len(r.From) != 1 || !slices.Equal(r.From[0].Source.RequestPrincipals, []string{issuer + "/*"})) {
			t.Errorf("a call without a token passes: %v", r)
		}
	}
	for _, bad := range [][2]string{
		{"jwksUri:", "jwksURI:"}, {"jwksUri:", "jwks_uri:"}, {"audiences:", "audience:"}, {"requestPrincipals:", "requestPrincipal:"},
		{"kind: AuthorizationPolicy", "kind: AuthorisationPolicy"}, {"namespace:", "namspace:"}, {"action: ALLOW", "action: ALLOWED"},
		{"forwardOriginalToken: true", "forwardOriginalToken: \"yes\""},
	} {
		wantRefused(t, text, bad, func(changed string) error { _, err := decodeMesh(changed); return err })
	}
}

// TestOPAPage checks that the page shows the policy that the tests of the module opa run.
func TestOPAPage(t *testing.T) {
	if page := read(t, deploy+"/../docs/envoy.md"); !strings.Contains(page, "```rego\n"+read(t, deploy+"/opa/watchword.rego")+"```\n") {
		t.Error("docs/envoy.md shows another policy than deploy/opa/watchword.rego")
	}
}
