package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// curl calls a server by grpcurl.
type curl struct {
	program string
	addr    string
	flags   []string
}

func newCurl(t *testing.T, addr string, flags ...string) curl {
	t.Helper()
	path, err := findGrpcurl()
	if err != nil {
		t.Fatal(err)
	}
	return curl{path, addr, append([]string{"-plaintext", "-format-error"}, flags...)}
}

// refusal holds a gRPC status, in grpcurl's JSON form.
type refusal struct {
	Code    codes.Code `json:"code"`
	Message string     `json:"message"`
	Details []struct {
		Type   string `json:"@type"`
		Raw    []byte `json:"@value"` // the encoded detail, if grpcurl does not know the type
		Domain string `json:"domain"`
		Reason string `json:"reason"`
	} `json:"details"`
}

func (r refusal) reason() string {
	for _, d := range r.Details {
		if d.Type != "type.googleapis.com/google.rpc.ErrorInfo" {
			continue
		}
		info := &errdetails.ErrorInfo{Domain: d.Domain, Reason: d.Reason}
		if d.Raw != nil && proto.Unmarshal(d.Raw, info) != nil {
			return "unreadable"
		}
		if info.GetDomain() == "watchword" {
			return info.GetReason()
		}
	}
	return ""
}

// call calls a method, and returns grpcurl's output and the status.
func (c curl) call(t *testing.T, token, method, request string) (string, refusal) {
	t.Helper()
	args := slices.Concat(c.flags, []string{"-max-time", "10", "-d", request})
	if token != "" {
		args = append(args, "-H", "authorization: Bearer "+token)
	}
	return c.run(t, append(args, c.addr, method)...)
}

func (c curl) run(t *testing.T, args ...string) (string, refusal) {
	t.Helper()
	r := run(t, exec.Command(c.program, args...))
	if r.code == 0 {
		return r.stdout, refusal{}
	}
	var status refusal
	if err := json.Unmarshal([]byte(r.stderr), &status); err != nil || r.code != 64+int(status.Code) {
		t.Fatalf("grpcurl %v: %v", args, r)
	}
	return r.stdout, status
}

// ok calls a method that must succeed, and reads the response.
func (c curl) ok(t *testing.T, token, method, request string, response proto.Message) {
	t.Helper()
	out, status := c.call(t, token, method, request)
	if status.Code != codes.OK {
		t.Fatalf("%s: %+v", method, status)
	}
	if err := protojson.Unmarshal([]byte(out), response); err != nil {
		t.Fatalf("%s: %v in %s", method, err, out)
	}
}

// refused calls a method that must refuse the call for a reason.
func (c curl) refused(t *testing.T, token, method, request, reason string) {
	t.Helper()
	if _, status := c.call(t, token, method, request); status.Code != codeOf[reason] || status.reason() != reason {
		t.Errorf("%s: got %+v, want %v %s", method, status, codeOf[reason], reason)
	}
}

func (c curl) login(t *testing.T, username, password string, audience ...string) *watchwordv1.TokenPair {
	t.Helper()
	request, err := protojson.Marshal(&watchwordv1.LoginRequest{Username: username, Password: password, Audience: audience})
	if err != nil {
		t.Fatal(err)
	}
	var resp watchwordv1.LoginResponse
	c.ok(t, "", "watchword.v1.AuthService/Login", string(request), &resp)
	return noteTokens(resp.GetTokens())
}

func (c curl) create(t *testing.T, token, username, password, roles string) {
	t.Helper()
	request := fmt.Sprintf(`{"username": %q, "password": %q, "roles": %s}`, username, password, roles)
	var resp watchwordv1.CreateUserResponse
	c.ok(t, token, "watchword.v1.UserService/CreateUser", request, &resp)
	if resp.GetUser().GetUsername() != username || resp.GetUser().GetId() == "" {
		t.Errorf("CreateUser returned %v, want %s with an id", resp.GetUser(), username)
	}
}

// object returns a JSON object with strings as values.
func object(pairs ...string) string {
	m := map[string]string{}
	for pair := range slices.Chunk(pairs, 2) {
		m[pair[0]] = pair[1]
	}
	data, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(data)
}

// notesCurl returns a curl for the downstream example. The example has no reflection, so
// grpcurl gets the proto files.
func notesCurl(t *testing.T, addr string) curl {
	t.Helper()
	return newCurl(t, addr, "-import-path", filepath.Join(root, "examples", "notes", "proto"),
		"-import-path", filepath.Join(root, "proto"), "-proto", "notes/v1/notes.proto")
}

const (
	verifyMethod  = "watchword.v1.AuthService/Verify"
	refreshMethod = "watchword.v1.AuthService/Refresh"
	logoutMethod  = "watchword.v1.AuthService/Logout"
	listMethod    = "notes.v1.NotesService/ListNotes"
	addMethod     = "notes.v1.NotesService/AddNote"
)

func TestStoryWithGrpcurl(t *testing.T) {
	s := serve(t, t.TempDir())
	notes := notesCurl(t, serveNotes(t, s))
	auth := newCurl(t, s.grpcAddr)

	admin := auth.login(t, "admin", s.admin, "watchword")
	alicePassword, bobPassword := newPassword(), newPassword()
	auth.create(t, admin.GetAccessToken(), "alice", alicePassword, `["writer"]`)
	auth.create(t, admin.GetAccessToken(), "bob", bobPassword, `[]`)
	alice, bob := auth.login(t, "alice", alicePassword), auth.login(t, "bob", bobPassword)

	var verified watchwordv1.VerifyResponse
	auth.ok(t, "", verifyMethod, object("access_token", alice.GetAccessToken()), &verified)
	if p := verified.GetPrincipal(); p.GetUsername() != "alice" || !slices.Equal(p.GetRoles(), []string{"writer"}) || p.GetSessionId() != alice.GetSessionId() {
		t.Errorf("Verify returned the principal %v, want alice with the role writer", p)
	}
	auth.refused(t, bob.GetAccessToken(), "watchword.v1.UserService/ListUsers", "{}", "AUDIENCE_MISMATCH")
	forAdministration := auth.login(t, "bob", bobPassword, "watchword")
	auth.refused(t, forAdministration.GetAccessToken(), "watchword.v1.UserService/ListUsers", "{}", "ROLE_REQUIRED")
	t.Run("keys", func(t *testing.T) { curlKeys(t, auth, s.httpAddr, verified.GetPrincipal().GetIssuer()) })
	t.Run("downstream", func(t *testing.T) { curlNotes(t, notes, alice, bob) })
	t.Run("refresh and logout", func(t *testing.T) { curlRefreshAndLogout(t, auth, notes, alice) })
	t.Run("all methods", func(t *testing.T) { curlAllMethods(t, auth, s.admin) })
}

// curlKeys compares the keys from GetKeySet, WatchBundle and the JWKS.
func curlKeys(t *testing.T, auth curl, httpAddr, issuer string) {
	var keySet watchwordv1.GetKeySetResponse
	auth.ok(t, "", "watchword.v1.TrustService/GetKeySet", "{}", &keySet)
	kids := map[string]bool{}
	for _, key := range keySet.GetKeys() {
		kids[key.GetKid()] = true
	}
	if len(kids) == 0 || keySet.GetIssuer() != issuer {
		t.Errorf("GetKeySet returned keys %v and issuer %s, want keys and issuer %s", kids, keySet.GetIssuer(), issuer)
	}

	out, _ := auth.run(t, append(auth.flags, "-max-time", "0.5", auth.addr, "watchword.v1.TrustService/WatchBundle")...)
	var raw json.RawMessage
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&raw); err != nil {
		t.Fatalf("first message of WatchBundle: %v in %q", err, out)
	}
	var first watchwordv1.WatchBundleResponse
	if err := protojson.Unmarshal(raw, &first); err != nil {
		t.Fatal(err)
	}
	watched := map[string]bool{}
	for _, key := range first.GetSnapshotChunk().GetTrustState().GetKeys() {
		watched[key.GetKey().GetKid()] = true
	}
	if !maps.Equal(watched, kids) {
		t.Errorf("WatchBundle sent keys %v, GetKeySet returned %v", watched, kids)
	}

	var jwks struct{ Keys []struct{ Kid string } }
	if err := json.Unmarshal([]byte(get(t, "http://"+httpAddr+"/.well-known/jwks.json")), &jwks); err != nil {
		t.Fatal(err)
	}
	served := map[string]bool{}
	for _, key := range jwks.Keys {
		served[key.Kid] = true
	}
	if !maps.Equal(served, kids) {
		t.Errorf("the JWKS has keys %v, GetKeySet returned %v", served, kids)
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: got status %s, error %v", url, resp.Status, err)
	}
	return string(body)
}

func curlNotes(t *testing.T, notes curl, alice, bob *watchwordv1.TokenPair) {
	text := `{"text": "the kettle is on"}`
	notes.refused(t, "", listMethod, "{}", "TOKEN_MISSING")
	notes.refused(t, "rubbish", listMethod, "{}", "TOKEN_INVALID")
	notes.refused(t, alice.GetRefreshToken(), listMethod, "{}", "TOKEN_INVALID")
	notes.refused(t, bob.GetAccessToken(), addMethod, text, "ROLE_REQUIRED")
	if out, status := notes.call(t, alice.GetAccessToken(), addMethod, text); status.Code != codes.OK || !strings.Contains(out, `"alice"`) {
		t.Errorf("alice adds a note: got status %+v, output %s", status, out)
	}
	out, status := notes.call(t, bob.GetAccessToken(), listMethod, "{}")
	if status.Code != codes.OK || strings.Count(out, "the kettle is on") != 1 {
		t.Errorf("bob lists notes: got status %+v, output %s; want the note once", status, out)
	}
}

func curlRefreshAndLogout(t *testing.T, auth, notes curl, alice *watchwordv1.TokenPair) {
	var first, again watchwordv1.RefreshResponse
	auth.ok(t, "", refreshMethod, object("refresh_token", alice.GetRefreshToken()), &first)
	auth.ok(t, "", refreshMethod, object("refresh_token", alice.GetRefreshToken()), &again)
	newest := noteTokens(first.GetTokens())
	if noteTokens(again.GetTokens()).GetRefreshToken() != newest.GetRefreshToken() || newest.GetRefreshToken() == alice.GetRefreshToken() {
		t.Error("a second refresh with the same token within the grace returned another refresh token")
	}
	for _, token := range []string{alice.GetAccessToken(), newest.GetAccessToken()} {
		if _, status := notes.call(t, token, listMethod, "{}"); status.Code != codes.OK {
			t.Errorf("notes with an access token after a refresh: got status %+v, want OK", status)
		}
	}

	if _, status := auth.call(t, "", logoutMethod, object("refresh_token", newest.GetRefreshToken())); status.Code != codes.OK {
		t.Fatalf("logout: %+v", status)
	}
	auth.refused(t, "", verifyMethod, object("access_token", newest.GetAccessToken()), "TOKEN_REVOKED")
	auth.refused(t, "", verifyMethod, object("access_token", alice.GetAccessToken()), "TOKEN_REVOKED")
	eventually(t, propagation, "notes refusing after the logout", func() error {
		if _, status := notes.call(t, newest.GetAccessToken(), listMethod, "{}"); status.reason() != "TOKEN_REVOKED" {
			return fmt.Errorf("%+v", status)
		}
		return nil
	})
	auth.refused(t, "", refreshMethod, object("refresh_token", newest.GetRefreshToken()), "SESSION_REVOKED")
}

// curlAllMethods calls every method in the server's reflection, as an admin and with an
// empty request. No method may answer UNIMPLEMENTED.
func curlAllMethods(t *testing.T, auth curl, password string) {
	var reflected []string
	out, _ := auth.run(t, append(auth.flags, auth.addr, "list")...)
	for _, service := range strings.Fields(out) {
		if strings.HasPrefix(service, "watchword.") {
			methods, _ := auth.run(t, append(auth.flags, auth.addr, "list", service)...)
			reflected = append(reflected, strings.Fields(methods)...)
		}
	}
	slices.Sort(reflected)
	if want := declaredMethods(); !slices.Equal(reflected, want) {
		t.Fatalf("reflection lists the methods\n%v\nthe proto files have\n%v", reflected, want)
	}

	auth.flags = append(auth.flags, "-max-time", "1") // ends the stream of WatchBundle after a second
	var token string
	for _, method := range reflected {
		if token == "" {
			token = auth.login(t, "admin", password, "watchword").GetAccessToken()
		}
		args := append(slices.Clone(auth.flags), "-H", "authorization: Bearer "+token, auth.addr, method)
		_, status := auth.run(t, args...)
		if status.Code == codes.Unimplemented {
			t.Errorf("%s: got status %+v", method, status)
		}
		if strings.HasPrefix(status.reason(), "TOKEN_") || status.reason() == "ROLE_REQUIRED" || status.reason() == "AUDIENCE_MISMATCH" {
			t.Errorf("%s: the server refused the admin's token, so the method did not run: %+v", method, status)
		}
		if method == "watchword.v1.SessionService.RevokeUserSessions" {
			token = "" // the call has ended the admin's session
		}
	}
}

func declaredMethods() (methods []string) {
	protoregistry.GlobalFiles.RangeFilesByPackage("watchword.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				methods = append(methods, string(service.Methods().Get(j).FullName()))
			}
		}
		return true
	})
	slices.Sort(methods)
	return methods
}
