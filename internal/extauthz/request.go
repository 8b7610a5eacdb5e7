package extauthz

import (
	"maps"
	"slices"
	"strings"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
)

// maxMethod bounds the name of a method of gRPC, in bytes.
const maxMethod = 1024

// request holds the request of a client, as Envoy describes the request.
type request struct {
	http *authv3.AttributeContext_HttpRequest
}

// values returns every value of a header. With encode_raw_headers Envoy sends the values
// separately. Otherwise Envoy joins the values by commas, and a token has no comma. So a request
// with two tokens has no valid token in either form.
func (r request) values(name string) (values []string) {
	for _, h := range r.http.GetHeaderMap().GetHeaders() {
		if !strings.EqualFold(h.GetKey(), name) {
			continue
		}
		value := h.GetValue()
		if len(h.GetRawValue()) > 0 {
			value = string(h.GetRawValue())
		}
		values = append(values, value)
	}
	for key, value := range r.http.GetHeaders() {
		if strings.EqualFold(key, name) {
			values = append(values, value)
		}
	}
	return values
}

// names returns the names of all headers, in lower case.
func (r request) names() []string {
	all := map[string]bool{}
	for _, h := range r.http.GetHeaderMap().GetHeaders() {
		all[strings.ToLower(h.GetKey())] = true
	}
	for key := range r.http.GetHeaders() {
		all[strings.ToLower(key)] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// isGRPC reports whether Envoy answers the request in the form of gRPC, by the same rule as Envoy.
func (r request) isGRPC() bool {
	values := r.values("content-type")
	return len(values) == 1 && (values[0] == "application/grpc" || strings.HasPrefix(values[0], "application/grpc+"))
}

// method returns the full name of the called method of gRPC: the path without a query, which Envoy
// leaves in the path. A client of gRPC looks for the name in the error; see refusal.Status. method
// returns "" for other requests. For a path that is longer than any name, method also returns "",
// since the error with the name goes into a header of the answer.
func (r request) method() string {
	if !r.isGRPC() {
		return ""
	}
	path := r.http.GetPath()
	if end := strings.IndexAny(path, "?#"); end >= 0 {
		path = path[:end]
	}
	if len(path) > maxMethod {
		return ""
	}
	return strings.ToValidUTF8(path, "")
}
