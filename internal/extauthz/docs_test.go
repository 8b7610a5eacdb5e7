package extauthz

import (
	"os"
	"regexp"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/goccy/go-yaml"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Envoy's own types read the configuration in the document, without an unknown field, and the
// program can use the rule of the route in the document.
func TestConfigurationInTheDocument(t *testing.T) {
	page, err := os.ReadFile("../../docs/ext-authz.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindAllSubmatch(page, -1)
	if len(blocks) != 2 {
		t.Fatalf("the document has %d blocks of YAML", len(blocks))
	}
	read := func(block []byte, into proto.Message) {
		t.Helper()
		text, err := yaml.YAMLToJSON(block)
		if err != nil {
			t.Fatal(err)
		}
		if err := protojson.Unmarshal(text, into); err != nil {
			t.Fatalf("%v in\n%s", err, block)
		}
	}
	filters := new(hcmv3.HttpConnectionManager)
	read(blocks[0][1], filters)
	if filters.GetHttpFilters()[0].GetTypedConfig().MessageIs(new(extauthzv3.ExtAuthz)) != true {
		t.Errorf("the first filter is %v", filters.GetHttpFilters()[0])
	}
	host, route := new(routev3.VirtualHost), new(extauthzv3.ExtAuthzPerRoute)
	read(blocks[1][1], host)
	if err := host.GetRoutes()[0].GetTypedPerFilterConfig()["envoy.filters.http.ext_authz"].UnmarshalTo(route); err != nil {
		t.Fatal(err)
	}
	access, err := accessOf(route.GetCheckSettings().GetContextExtensions())
	if err != nil || strings.Join(access.GetRoles(), " ") != "writer admin" {
		t.Errorf("the rule is %v, %v", access, err)
	}
}
