package extauthz

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	statuspb "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	"github.com/watchword-auth/watchword/internal/refusal"
)

// An envoy asks a checker about requests, as Envoy's filter does, and carries out the answer.
type envoy struct {
	t       *testing.T
	checker *checker
	raw     bool              // encode_raw_headers: each value of a header by itself
	blind   bool              // allowed_headers: the question has the header authorization alone
	route   map[string]string // context_extensions of the route
}

// A seen request is a request as the service behind Envoy sees it, or the refusal as the client
// sees it.
type seen struct {
	headers  map[string][]string // the headers of the request that goes on; nil after a refusal
	http     int                 // the HTTP status of a refusal
	err      error               // the status of a refusal: of gRPC, or in the body as JSON
	response map[string]string   // the headers of a refusal
}

// ask sends a request through the filter. headers are pairs of a name and a value; Envoy knows
// names in lower case alone.
func (e envoy) ask(path string, headers ...string) seen {
	e.t.Helper()
	sent := map[string][]string{}
	for i := 0; i < len(headers); i += 2 {
		name := strings.ToLower(headers[i])
		sent[name] = append(sent[name], headers[i+1])
	}
	http := &authv3.AttributeContext_HttpRequest{Path: path, Method: "POST", Headers: map[string]string{":path": path}}
	for name, values := range sent {
		if !e.raw && (!e.blind || name == "authorization") {
			http.Headers[name] = strings.Join(values, ",")
		}
	}
	if e.raw {
		http.Headers, http.HeaderMap = nil, new(corev3.HeaderMap)
		for name, values := range sent {
			for _, value := range values {
				http.HeaderMap.Headers = append(http.HeaderMap.Headers, &corev3.HeaderValue{Key: name, RawValue: []byte(value)})
			}
		}
	}
	answer, err := e.checker.Check(e.t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Request: &authv3.AttributeContext_Request{Http: http}, ContextExtensions: e.route,
	}})
	if err != nil {
		e.t.Fatal(err)
	}
	if answer.GetStatus().GetCode() != 0 {
		kind := strings.Join(sent["content-type"], ",")
		return e.refused(answer.GetDeniedResponse(), kind == "application/grpc" || strings.HasPrefix(kind, "application/grpc+"))
	}
	ok := answer.GetOkResponse()
	for _, h := range ok.GetHeaders() {
		if h.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			e.t.Errorf("%s would be added to the client's own value", h.GetHeader().GetKey())
		}
		sent[h.GetHeader().GetKey()] = []string{h.GetHeader().GetValue()}
	}
	for _, name := range ok.GetHeadersToRemove() { // the program removes headers after it has set the new values
		delete(sent, name)
	}
	return seen{headers: sent}
}

// refused makes the answer to the client, as Envoy's local reply does.
func (e envoy) refused(denied *authv3.DeniedHttpResponse, isGRPC bool) seen {
	e.t.Helper()
	s := seen{http: int(denied.GetStatus().GetCode()), response: map[string]string{}}
	for _, h := range denied.GetHeaders() {
		s.response[h.GetHeader().GetKey()] = h.GetHeader().GetValue()
	}
	st := new(statuspb.Status)
	if isGRPC {
		code, err := strconv.Atoi(s.response["grpc-status"])
		if err != nil {
			e.t.Fatal(err)
		}
		st.Code, st.Message = int32(code), denied.GetBody()
		if raw := s.response["grpc-status-details-bin"]; raw != "" {
			details, err := base64.RawStdEncoding.DecodeString(raw)
			if err != nil || proto.Unmarshal(details, st) != nil || int(st.GetCode()) != code || st.GetMessage() != denied.GetBody() {
				e.t.Errorf("the details %q differ from the status: %v", raw, err)
			}
		}
		s.err = status.FromProto(st).Err()
		return s
	}
	var body struct {
		Code    int
		Message string
		Details []struct{ Reason string }
	}
	if err := json.Unmarshal([]byte(denied.GetBody()), &body); err != nil || s.response["content-type"] != "application/json" {
		e.t.Errorf("%v in %q", err, denied.GetBody())
	}
	s.err = status.Error(codes.Code(body.Code), body.Message)
	for _, detail := range body.Details {
		s.response["reason"] = detail.Reason
	}
	return s
}

// world is a checker with the tokens of an issuer.
func world(t *testing.T) (envoy, *authntest.Issuer) {
	issuer := authntest.New()
	v := issuer.NewVerifier(t, authn.WithAudience("internal"))
	return envoy{t: t, checker: newChecker(v, slog.New(slog.DiscardHandler))}, issuer
}

func user(name string, roles ...string) authntest.User {
	return authntest.User{Name: name, Roles: roles, Audience: []string{"internal"}}
}

const called = "/notes.v1.NotesService/ListNotes"

// Each rule that a route can have admits its callers alone, for HTTP and for gRPC, in both forms in
// which Envoy sends headers.
func TestRules(t *testing.T) {
	e, issuer := world(t)
	reader, writer := issuer.Token(user("rita", "reader")), issuer.Token(user("will", "writer"))
	billing := issuer.Token(authntest.User{Name: "bill", Audience: []string{"billing"}})
	delegated := issuer.Delegate(reader, authntest.User{Name: "search", Kind: 2}, "internal")
	gone := issuer.Token(user("gone"))
	issuer.EndSession(gone)
	for _, test := range []ruleCase{
		{nil, "", "TOKEN_MISSING"},
		{nil, reader, "rita"},
		{nil, billing, "AUDIENCE_MISMATCH"},
		{nil, gone, "TOKEN_REVOKED"},
		{nil, "x", "TOKEN_INVALID"},
		{nil, delegated, "rita"},
		{map[string]string{"public": "false"}, "", "TOKEN_MISSING"},
		{map[string]string{"public": "true"}, "", "nobody"},
		{map[string]string{"public": "true"}, gone, "nobody"},
		{map[string]string{"public": "true"}, reader, "nobody"},
		{map[string]string{"roles": "writer, admin"}, reader, "ROLE_REQUIRED"},
		{map[string]string{"roles": "writer, admin"}, writer, "will"},
		{map[string]string{"audience": "office,billing"}, billing, "bill"},
		{map[string]string{"audience": "office,billing"}, reader, "AUDIENCE_MISMATCH"},
		{map[string]string{"delegated": "refuse"}, delegated, "DELEGATION_DENIED"},
		{map[string]string{"delegated": "refuse"}, reader, "rita"},
		{map[string]string{"delegated": "allow"}, delegated, "rita"},

		// A rule that cannot be used admits no caller, and tells the client nothing.
		{map[string]string{"Public": "true"}, "", "INTERNAL"},
		{map[string]string{"public": "yes"}, "", "INTERNAL"},
		{map[string]string{"public": ""}, reader, "INTERNAL"},
		{map[string]string{"public": "true", "roles": "writer"}, writer, "INTERNAL"},
		{map[string]string{"role": "reader"}, reader, "INTERNAL"},
		{map[string]string{"roles": ""}, reader, "INTERNAL"},
		{map[string]string{"roles": "reader,"}, reader, "INTERNAL"},
		{map[string]string{"roles": "READER"}, reader, "INTERNAL"},
		{map[string]string{"audience": ""}, reader, "INTERNAL"},
		{map[string]string{"delegated": "no"}, reader, "INTERNAL"},
	} {
		for _, e.raw = range []bool{false, true} {
			e.route = test.route
			for _, kind := range []string{"application/json", "application/grpc", "application/grpc+proto"} {
				e.wantRule(test, kind)
			}
		}
	}
}

// ruleCase is a request with a token through a route: want is the name of the caller that the
// service sees, or else the reason of the refusal.
type ruleCase struct {
	route map[string]string
	token string
	want  string
}

// wantRule checks the answer to a request with a content type.
func (e envoy) wantRule(test ruleCase, kind string) {
	e.t.Helper()
	headers := []string{"content-type", kind}
	if test.token != "" {
		headers = append(headers, "Authorization", "Bearer "+test.token)
	}
	isGRPC := strings.HasPrefix(kind, "application/grpc")
	got := e.ask(called+"?user=root&path=/public", headers...)
	name := "nobody"
	switch {
	case got.err != nil && isGRPC:
		name = refusal.Outcome(got.err)
		// A client renews its token if the error names the method that the client has called.
		if method := refusal.Method(got.err); (method == called) != (name != "INTERNAL") {
			e.t.Errorf("%v: the error names the method %q", test, method)
		}
	case got.err != nil:
		if name = got.response["reason"]; name == "" {
			name = refusal.Outcome(got.err)
		}
	case len(got.headers["x-watchword-username"]) == 1:
		name = got.headers["x-watchword-username"][0]
	}
	if name != test.want {
		e.t.Errorf("%v with %s: %s, %v", test, kind, name, got.err)
	}
	status := map[string]int{"ROLE_REQUIRED": 403, "DELEGATION_DENIED": 403, "INTERNAL": 500}[test.want]
	if status == 0 && got.err != nil {
		status = 401
	}
	challenge, wants := got.response["www-authenticate"], !isGRPC && (status == 401 || status == 403)
	if got.http != status || strings.HasPrefix(challenge, "Bearer") != wants {
		e.t.Errorf("%v with %s: HTTP status %d, want %d, with the challenge %q", test, kind, got.http, status, challenge)
	}
}

// The service behind Envoy sees the caller that the token names, and nothing of what the client
// says about the caller, in any spelling, on guarded and on public routes.
func TestHeadersAboutTheCaller(t *testing.T) {
	e, issuer := world(t)
	alice := issuer.Token(authntest.User{Name: "aliceß ,%", ID: "user-7", Roles: []string{"writer", "admin"}, Audience: []string{"internal"}})
	delegated := issuer.Delegate(alice, authntest.User{Name: "search", ID: "service-3", Kind: 2}, "internal")
	backup := issuer.Token(authntest.User{Name: "backup", ID: "service-4", Kind: 2, Audience: []string{"internal"}})
	forged := []string{
		"X-Watchword-Subject", "root", "X-Watchword-Subject", "root", "x-watchword-username", "root", "X-WATCHWORD-ROLES", "root", "x-watchword-kind", "root",
		"x-watchword-actor", "root", "x-watchword-actor-subject", "root", "x_watchword_subject", "root", "x-watchword_roles", "root", "X_Watchword-Anything", "root",
		"x-watchword-", "root", "x-request-id", "7",
	}
	for _, test := range []struct {
		route string
		token string
		want  string
	}{
		{"false", alice, "subject=user-7 username=alice%C3%9F%20,%25 roles=writer,admin kind=user"},
		{"false", delegated, "subject=user-7 username=alice%C3%9F%20,%25 roles=writer kind=user actor=search actor-subject=service-3"},
		{"false", backup, "subject=service-4 username=backup kind=service"},
		{"true", alice, ""},
		{"true", "", ""},
	} {
		e.route = map[string]string{"public": test.route}
		for _, e.raw = range []bool{false, true} {
			got := e.ask("/v1/notes", append(slices.Clone(forged), "authorization", "Bearer "+test.token)...)
			want := map[string][]string{"authorization": {"Bearer " + test.token}, "x-request-id": {"7"}}
			for _, pair := range strings.Fields(test.want) {
				name, value, _ := strings.Cut(pair, "=")
				want["x-watchword-"+name] = []string{value}
			}
			if got.err != nil || !maps.EqualFunc(got.headers, want, slices.Equal[[]string]) {
				t.Errorf("public: %s: the service sees %v, want %v (%v)", test.route, got.headers, want, got.err)
			}
		}
	}
}

// The headers that the program sets are safe also if Envoy does not show the client's headers to
// the program.
func TestHeadersThatEnvoyDoesNotShow(t *testing.T) {
	e, issuer := world(t)
	e.blind = true
	alice := issuer.Token(user("alice"))
	for _, public := range []string{"true", "false"} {
		e.route = map[string]string{"public": public}
		forged := []string{"authorization", "Bearer " + alice}
		for _, h := range about(nil) {
			forged = append(forged, h[0], "root", h[0], "root")
		}
		for name, values := range e.ask("/v1/notes", forged...).headers {
			if slices.Contains(values, "root") {
				t.Errorf("public: %s: the service sees the client's %s", public, name)
			}
		}
	}
}

// A request with two tokens, or with the token in another form, is refused in both forms in which
// Envoy sends headers.
func TestFormsOfTheHeader(t *testing.T) {
	e, issuer := world(t)
	good := "Bearer " + issuer.Token(user("rita"))
	for _, test := range []struct {
		headers []string
		want    string
	}{
		{[]string{"AUTHORIZATION", good}, "OK"},
		{[]string{"authorization", strings.Replace(good, "Bearer", "bEARER", 1)}, "OK"},
		{[]string{"authorization", good, "Authorization", good}, "TOKEN_INVALID"},
		{[]string{"authorization", "", "authorization", good}, "TOKEN_INVALID"},
		{[]string{"authorization", good, "authorization", "Basic eDp5"}, "TOKEN_INVALID"},
		{[]string{"authorization", good + "," + good}, "TOKEN_INVALID"},
		{[]string{"authorization", ""}, "TOKEN_INVALID"},
		{[]string{"proxy-authorization", good}, "TOKEN_MISSING"},
		{[]string{"x-authorization", good}, "TOKEN_MISSING"},
	} {
		for _, e.raw = range []bool{false, true} {
			got := e.ask(called, append(test.headers, "content-type", "application/grpc")...)
			if name := refusal.Outcome(got.err); name != test.want {
				t.Errorf("raw %t, %q: %s", e.raw, test.headers[:1], name)
			}
		}
	}
	// A header in both forms, and in two spellings, as no Envoy sends it.
	for _, http := range []*authv3.AttributeContext_HttpRequest{
		{Headers: map[string]string{"authorization": good}, HeaderMap: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: "authorization", Value: good}}}},
		{Headers: map[string]string{"authorization": good, "Authorization": good}},
	} {
		answer, err := e.checker.Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: http}}})
		if err != nil || answer.GetStatus().GetCode() != int32(codes.Unauthenticated) {
			t.Errorf("%v, %v", answer, err)
		}
	}
}

// The error of gRPC names the called method without the query, so that a client renews its token.
// Other requests name no method.
func TestMethodInTheError(t *testing.T) {
	e, _ := world(t)
	for path, want := range map[string]string{
		called: called, called + "?": called, called + "?a=/b.C/D": called, called + "#x": called, called + "%3Fa": called + "%3Fa", "": "", "/": "/", "\xff": "",
		"/" + strings.Repeat("x", maxMethod-1): "/" + strings.Repeat("x", maxMethod-1), "/" + strings.Repeat("x", maxMethod): "",
	} {
		if got := refusal.Method(e.ask(path, "content-type", "application/grpc").err); got != want {
			t.Errorf("%q: the error names %q, want %q", path, got, want)
		}
	}
	for _, kind := range []string{"application/json", "application/grpc-web", "application/grpcx", ""} {
		if got := e.ask(called, "content-type", kind); refusal.Method(got.err) != "" || got.http != 401 || got.response["reason"] != "TOKEN_MISSING" {
			t.Errorf("%s: %+v", kind, got)
		}
	}
}

// A question of Envoy that is not about an HTTP request is denied, and counted. Three such
// questions cause one line in the log.
func TestUndecided(t *testing.T) {
	e, _ := world(t)
	var log bytes.Buffer
	e.checker.log = slog.New(slog.NewTextHandler(&log, nil))
	for _, question := range []*authv3.CheckRequest{nil, {}, {Attributes: &authv3.AttributeContext{ContextExtensions: map[string]string{"public": "true"}}}} {
		answer, err := e.checker.Check(t.Context(), question)
		if err != nil || answer.GetStatus().GetCode() != int32(codes.Internal) || answer.GetDeniedResponse().GetStatus().GetCode() != 500 {
			t.Errorf("%v, %v", answer, err)
		}
	}
	if e.checker.undecided.Load() != 3 || e.checker.denied.Load() != 3 || e.checker.allowed.Load() != 0 {
		t.Error("the questions were not counted")
	}
	if lines := strings.Count(log.String(), "\n"); lines != 1 {
		t.Errorf("%d lines in the log:\n%s", lines, log.String())
	}
}
