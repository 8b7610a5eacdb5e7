package server_test

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// wrong is a call that must be refused.
type wrong struct {
	name   string
	req    any      // a message, or raw bytes
	by     *account // nil: the admin where a token is needed, and otherwise no token
	header string   // the value of a further header of the call; empty: no further header
	want   string   // the reason, or the code where there is none
	field  string   // the field that INVALID_REQUEST or PASSWORD_TOO_WEAK names
}

// population holds the users and sessions that the rows name.
type population struct {
	admin, alice, bob, disabled *account
	expired, elsewhere          string // access tokens
	ended                       string // a refresh token
	forgotten, idle, old        string // refresh tokens of sessions without a row, unused for too long, and too old
	narrow                      string // a refresh token of a session for "internal" alone
	service                     string // the id of a service account
	users, alices               string // page tokens, of ListUsers and of ListSessions for Alice
	federated                   *federated
	own, document, ca           string // the server's own issuer; a key set and a certificate that are fine
}

func newPopulation(t *testing.T, h *harness) *population {
	t.Helper()
	w := &population{admin: h.admin, alice: h.make(t), bob: h.make(t, "reader"), disabled: h.make(t)}
	w.federated, w.own, w.document, w.ca = h.federate(t), h.claims(t, h.admin).Issuer, keySet(t), newCA(t)
	bad := badTokens(t, h)
	w.expired, w.elsewhere = bad[0].raw, bad[2].raw
	w.ended = w.disabled.GetRefreshToken()
	w.forgotten, w.idle, w.old = oldSessions(t, h)
	_, err := h.users.UpdateUser(h.admin.as(t.Context()), &watchwordv1.UpdateUserRequest{User: &watchwordv1.User{Id: w.disabled.id, Disabled: true}})
	if err != nil {
		t.Fatal(err)
	}
	search, err := h.users.CreateUser(h.admin.as(t.Context()), &watchwordv1.CreateUserRequest{Username: "search", Kind: service})
	if err != nil {
		t.Fatal(err)
	}
	w.service = search.GetUser().GetId()
	narrow := *w.bob
	if err := h.login(&narrow, "internal"); err != nil {
		t.Fatal(err)
	}
	w.narrow = narrow.GetRefreshToken()
	h.insertSessions(t, w.alice.id, 2)
	sessions, err := h.sessions.ListSessions(w.alice.as(t.Context()), &watchwordv1.ListSessionsRequest{PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	users, err := h.users.ListUsers(h.admin.as(t.Context()), &watchwordv1.ListUsersRequest{PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	w.alices, w.users = sessions.GetNextPageToken(), users.GetNextPageToken()
	if w.alices == "" || w.users == "" {
		t.Fatal("no next page")
	}
	return w
}

// oldSessions makes refresh tokens of sessions that time has ended.
func oldSessions(t *testing.T, h *harness) (forgotten, idle, old string) {
	t.Helper()
	ids, mac := make([]string, 2), keyMaterial(t, h)[macKey]
	h.behind(t, func(tx *feed.Tx) error {
		u, err := tx.User(h.admin.id)
		for i, refreshed := range []time.Duration{720 * time.Hour, 0} {
			ids[i] = user.NewID()
			if err == nil {
				err = tx.InsertSession(&store.Session{
					ID: ids[i], UserID: u.ID, BornVersion: u.Version, Audience: audiences, CreatedAt: tx.Now().Add(-2160 * time.Hour),
					RefreshedAt: tx.Now().Add(-refreshed), Generations: store.Generations{Current: 1},
				})
			}
		}
		return err
	})
	return refreshToken(t, mac, "AAAAAAAAAAAAAAAA", 1), refreshToken(t, mac, ids[0], 1), refreshToken(t, mac, ids[1], 1)
}

const invalid, weak = "INVALID_REQUEST", "PASSWORD_TOO_WEAK"

// long is text of n bytes that is fine but for its length.
func long(n int) string { return strings.Repeat("ab", n)[:n] }

// badNames break a rule of usernames (RFC 8265, UsernameCaseMapped).
var badNames = map[string]string{
	"no name": "", "too long a name": long(257), "a space in the name": "a b", "a name of a space": " ", "a zero byte in the name": "a\x00b",
	"a line break in the name": "alice\n", "a compatibility character": "a²", "a bidirectional mixture": "aא", "a joiner": "a\u200db",
	"an unassigned character": "a\U000e0fff", "a private character": "a\ue000", "too long once folded": strings.Repeat("İ", 128) + "x",
}

// mixedNames cannot be the names of new users (UTS 39), but may be asked for: a user of an
// earlier time may have one.
var mixedNames = map[string]string{
	"a Cyrillic letter in a Latin name": "\u0430dmin", "a Greek letter in a Latin name": "adm\u03b9n", "Latin, Greek and Cyrillic": "a\u03b1\u0430",
}

// badPasswords cannot be passwords at all (RFC 8265, OpaqueString).
var badPasswords = map[string]string{
	"no password": "", "too long a password": long(1025), "far too long a password": long(60_000),
	"a control character in the password": "good but\x07for it", "a zero byte in the password": "good but\x00for it",
}

// weakPasswords returns passwords that break the rules for new passwords.
func weakPasswords(username string) map[string]string {
	return map[string]string{
		"a short password": "gq8z0vxeu4wkb7", "a short password of many bytes": "éèêëáàâäíìîïóò", "the name for a password": username,
		"the name in capitals": strings.ToUpper(username), "one character": strings.Repeat("é", 20), "a common password": "PassWord12345678",
		"the service's name": "watchword watchword", "the name and digits": username + "1234567890123456",
	}
}

var badRoles = map[string][]string{
	"an empty role": {""}, "a role in capitals": {"Admin"}, "a digit first": {"1a"}, "a space in a role": {"a b"}, "a line break in a role": {"a\n"},
	"too long a role": {"r" + long(64)}, "a role beyond ASCII": {"é"}, "one bad role of two": {"reader", "-"}, "too many roles": manyRoles(33),
	"a star": {"*"}, "a comma": {"a,b"},
}

func manyRoles(n int) []string {
	var roles []string
	for i := range n {
		roles = append(roles, fmt.Sprint("role", i))
	}
	return roles
}

var badAudiences = map[string][]string{
	"an empty audience": {""}, "too long an audience": {long(257)}, "too many audiences": strings.Split(strings.Repeat("internal ", 65), " ")[:65],
	"an audience of others": {"elsewhere"}, "one audience of others": {"internal", "elsewhere"}, "an audience in capitals": {"Internal"},
}

var badIDs = map[string]string{"no id": "", "too long an id": long(65), "an id with a zero byte": "a\x00b"}

var unknownIDs = map[string]string{
	"an unknown id": "AAAAAAAAAAAAAAAA", "an id of another form": "' OR 1=1 --", "a short id": "x", "the longest id": long(64),
}

// rows makes a row of each value of a field.
func rows[V any](values map[string]V, want, field string, req func(V) proto.Message) []wrong {
	var all []wrong
	for _, name := range slices.Sorted(maps.Keys(values)) {
		all = append(all, wrong{name: name, req: req(values[name]), want: want, field: field})
	}
	return all
}

func concat(parts ...[]wrong) []wrong {
	var all []wrong
	for _, part := range parts {
		all = append(all, part...)
	}
	return all
}

// badPages returns the page tokens that no list accepts, and others: page tokens of other lists.
func badPages(others map[string]string) map[string]string {
	all := map[string]string{
		"a page token of garbage": "garbage", "a page token of no base64": "!", "a page token of zeros": base64.RawURLEncoding.EncodeToString(make([]byte, 22)),
		"a long page token": long(10_000), "a page token of spaces": "   ",
	}
	maps.Copy(all, others)
	return all
}

// wrongInput is the table: what is wrong for each method. A method that takes
// nothing has no rows of its own.
func wrongInput(w *population) map[string][]wrong {
	table := map[string][]wrong{"TrustService/GetKeySet": nil, "KeyService/ListKeys": nil}
	table["TrustService/WatchBundle"] = []wrong{
		{name: "a long id", req: &watchwordv1.WatchBundleRequest{Watcher: make([]byte, 33)}, want: "INVALID_REQUEST", field: "watcher"},
	}
	table["TrustService/ListWatchers"] = []wrong{
		{name: "a negative page", req: &watchwordv1.ListWatchersRequest{PageSize: -1}, want: invalid, field: "page_size"},
	}
	for name, token := range badPages(nil) {
		table["TrustService/ListWatchers"] = append(table["TrustService/ListWatchers"],
			wrong{name: name, req: &watchwordv1.ListWatchersRequest{PageToken: token}, want: invalid, field: "page_token"})
	}
	table["TrustService/ReportWatcher"] = []wrong{
		{name: "neither identity nor report", req: &watchwordv1.ReportWatcherRequest{}, want: invalid, field: "identity"},
		{name: "a report first", req: &watchwordv1.ReportWatcherRequest{Message: &watchwordv1.ReportWatcherRequest_Report{}}, want: invalid, field: "identity"},
		{name: "no id", req: &watchwordv1.ReportWatcherRequest{Message: &watchwordv1.ReportWatcherRequest_Identity{Identity: &watchwordv1.WatcherIdentity{}}}, want: invalid, field: "identity"},
		{name: "a long name", req: identify(long(129)), want: invalid, field: "identity.service"},
	}
	table["TrustService/GetTime"] = []wrong{
		{name: "a long nonce", req: &watchwordv1.GetTimeRequest{Nonce: make([]byte, 65)}, want: "INVALID_REQUEST", field: "nonce"},
	}
	maps.Copy(table, wrongForAuth(w))
	maps.Copy(table, wrongForUsers(w))
	maps.Copy(table, wrongForFederation(w))
	maps.Copy(table, wrongForOthers(w))
	return table
}

func wrongForAuth(w *population) map[string][]wrong {
	type login = watchwordv1.LoginRequest
	type refresh = watchwordv1.RefreshRequest
	type verify = watchwordv1.VerifyRequest
	type change = watchwordv1.ChangePasswordRequest
	type delegate = watchwordv1.DelegateTokenRequest
	const fine = "some fine password"
	good, token := w.alice.password, w.alice.GetRefreshToken()
	noRefresh := map[string]string{
		"garbage": "garbage", "an access token": w.alice.GetAccessToken(), "the prefix alone": "wwrt_", "no prefix": token[5:],
		"another prefix": "wwrT_" + token[5:], "zeros": "wwrt_" + strings.Repeat("A", len(token)-5), "too long": token + long(8192),
		"white space": " ", "two": token + token, "a bearer": "Bearer " + token,
	}
	return map[string][]wrong{
		"AuthService/Login": concat(
			rows(badNames, invalid, "username", func(v string) proto.Message { return &login{Username: v, Password: fine} }),
			rows(mixedNames, "INVALID_CREDENTIALS", "", func(v string) proto.Message { return &login{Username: v, Password: fine} }),
			rows(badPasswords, invalid, "password", func(v string) proto.Message { return &login{Username: w.alice.name, Password: v} }),
			rows(badAudiences, invalid, "audience", func(v []string) proto.Message {
				return &login{Username: w.alice.name, Password: good, Audience: v}
			}),
			[]wrong{
				{name: "nothing", req: &login{}, want: invalid, field: "username"},
				{name: "unknown user", req: &login{Username: "nobody", Password: good}, want: "INVALID_CREDENTIALS"},
				{name: "wrong password", req: &login{Username: w.alice.name, Password: fine}, want: "INVALID_CREDENTIALS"},
				{name: "password in capitals", req: &login{Username: w.alice.name, Password: strings.ToUpper(good)}, want: "INVALID_CREDENTIALS"},
				{name: "short password", req: &login{Username: w.alice.name, Password: "x"}, want: "INVALID_CREDENTIALS"},
				{name: "id for a name", req: &login{Username: w.alice.id, Password: good}, want: "INVALID_CREDENTIALS"},
				{name: "disabled", req: &login{Username: w.disabled.name, Password: w.disabled.password}, want: "USER_DISABLED"},
				{name: "disabled, wrong password", req: &login{Username: w.disabled.name, Password: fine}, want: "INVALID_CREDENTIALS"},
			}),
		"AuthService/DelegateToken": concat(
			rows(badAudienceNames, invalid, "audience", func(v string) proto.Message { return &delegate{SubjectToken: "x", Audience: v} }),
			rows(badRoles, invalid, "roles", func(v []string) proto.Message {
				return &delegate{SubjectToken: "x", Audience: "internal", Roles: v}
			}),
			[]wrong{
				{name: "nothing", req: &delegate{}, want: invalid, field: "subject_token"},
				{name: "a user", req: &delegate{SubjectToken: w.alice.GetAccessToken(), Audience: "internal"}, want: "DELEGATION_DENIED"},
				{name: "the audience of administration", req: &delegate{SubjectToken: w.alice.GetAccessToken(), Audience: "watchword"}, want: "DELEGATION_DENIED"},
			}),
		"AuthService/ExchangeToken": concat(
			rows(noRefresh, "ASSERTION_INVALID", "", func(v string) proto.Message { return &watchwordv1.ExchangeTokenRequest{SubjectToken: v} }),
			rows(badAudiences, invalid, "audience", func(v []string) proto.Message {
				return &watchwordv1.ExchangeTokenRequest{SubjectToken: "x", Audience: v}
			}),
			[]wrong{
				{name: "nothing", req: &watchwordv1.ExchangeTokenRequest{}, want: invalid, field: "subject_token"},
				{name: "an expired token of the server", req: &watchwordv1.ExchangeTokenRequest{SubjectToken: w.expired}, want: "ASSERTION_INVALID"},
			}),
		"AuthService/Refresh": concat(
			rows(noRefresh, "REFRESH_TOKEN_INVALID", "", func(v string) proto.Message { return &refresh{RefreshToken: v} }),
			rows(badAudiences, invalid, "audience", func(v []string) proto.Message { return &refresh{RefreshToken: token, Audience: v} }),
			[]wrong{
				{name: "no token", req: &refresh{}, want: invalid, field: "refresh_token"},
				{name: "wider than the login's", req: &refresh{RefreshToken: w.narrow, Audience: audiences}, want: invalid, field: "audience"},
				{name: "another than the login's", req: &refresh{RefreshToken: w.narrow, Audience: []string{"billing"}}, want: invalid, field: "audience"},
				{name: "ended", req: &refresh{RefreshToken: w.ended}, want: "SESSION_REVOKED"},
				{name: "forgotten", req: &refresh{RefreshToken: w.forgotten}, want: "REFRESH_TOKEN_EXPIRED"},
				{name: "unused for too long", req: &refresh{RefreshToken: w.idle}, want: "REFRESH_TOKEN_EXPIRED"},
				{name: "too old", req: &refresh{RefreshToken: w.old}, want: "REFRESH_TOKEN_EXPIRED"},
			}),
		"AuthService/Logout": concat(
			rows(noRefresh, "REFRESH_TOKEN_INVALID", "", func(v string) proto.Message { return &watchwordv1.LogoutRequest{RefreshToken: v} }),
			[]wrong{
				{name: "no token", req: &watchwordv1.LogoutRequest{}, want: invalid, field: "refresh_token"},
				{name: "forgotten", req: &watchwordv1.LogoutRequest{RefreshToken: w.forgotten}, want: "REFRESH_TOKEN_EXPIRED"},
			}),
		"AuthService/Verify": {
			{name: "no token", req: &verify{}, want: invalid, field: "access_token"},
			{name: "no token, an audience", req: &verify{Audience: "internal"}, want: invalid, field: "access_token"},
			{name: "garbage", req: &verify{AccessToken: "garbage"}, want: "TOKEN_INVALID"},
			{name: "looks like a JWT", req: &verify{AccessToken: "eyJhbGciOiJub25lIn0.e30."}, want: "TOKEN_INVALID"},
			{name: "with its scheme", req: &verify{AccessToken: "Bearer " + w.alice.GetAccessToken()}, want: "TOKEN_INVALID"},
			{name: "a refresh token", req: &verify{AccessToken: token}, want: "TOKEN_INVALID"},
			{name: "too long", req: &verify{AccessToken: long(8193)}, want: "TOKEN_INVALID"},
			{name: "expired", req: &verify{AccessToken: w.expired}, want: "TOKEN_EXPIRED"},
			{name: "for others", req: &verify{AccessToken: w.elsewhere}, want: "AUDIENCE_MISMATCH"},
			{name: "for others, and asked for them", req: &verify{AccessToken: w.elsewhere, Audience: "elsewhere"}, want: "AUDIENCE_MISMATCH"},
			{name: "revoked", req: &verify{AccessToken: w.disabled.GetAccessToken()}, want: "TOKEN_REVOKED"},
			{name: "unknown audience", req: &verify{AccessToken: w.alice.GetAccessToken(), Audience: "elsewhere"}, want: "AUDIENCE_MISMATCH"},
			{name: "unknown audience of garbage", req: &verify{AccessToken: "garbage", Audience: "elsewhere"}, want: "TOKEN_INVALID"},
			{name: "too long an audience", req: &verify{AccessToken: w.alice.GetAccessToken(), Audience: long(257)}, want: invalid, field: "audience"},
		},
		"AuthService/ChangePassword": concat(
			rows(badPasswords, invalid, "current_password", func(v string) proto.Message { return &change{CurrentPassword: v, NewPassword: fine} }),
			rows(badPasswords, invalid, "new_password", func(v string) proto.Message { return &change{CurrentPassword: w.admin.password, NewPassword: v} }),
			rows(weakPasswords("admin"), weak, "new_password", func(v string) proto.Message {
				return &change{CurrentPassword: w.admin.password, NewPassword: v}
			}),
			[]wrong{
				{name: "wrong password", req: &change{CurrentPassword: fine, NewPassword: fine}, want: "INVALID_CREDENTIALS"},
				{name: "another's password", req: &change{CurrentPassword: good, NewPassword: fine}, by: w.bob, want: "INVALID_CREDENTIALS"},
			}),
	}
}

// badAudienceNames are audiences that no token is issued for.
var badAudienceNames = map[string]string{"none": "", "unknown": "elsewhere", "in capitals": "INTERNAL", "two": "internal,billing", "257 bytes": long(257), "a zero byte": "a\x00"}

const service = watchwordv1.UserKind_USER_KIND_SERVICE

// badListsOfAudiences are lists of audiences that no service account can have.
var badListsOfAudiences = map[string][]string{
	"administration": {"search", "watchword"}, "empty audience": {""}, "audience with a space": {"a b"}, "audience of 257 bytes": {long(257)},
	"33 audiences": slices.Collect(func(yield func(string) bool) {
		for i := range 33 {
			if !yield(fmt.Sprint("audience", i)) {
				return
			}
		}
	}),
}

func wrongForUsers(w *population) map[string][]wrong {
	type create = watchwordv1.CreateUserRequest
	type update = watchwordv1.UpdateUserRequest
	type set = watchwordv1.SetPasswordRequest
	type person = watchwordv1.User
	const fine = "some fine password"
	byID := func(id string) proto.Message {
		return &watchwordv1.GetUserRequest{Key: &watchwordv1.GetUserRequest_Id{Id: id}}
	}
	byName := func(name string) proto.Message {
		return &watchwordv1.GetUserRequest{Key: &watchwordv1.GetUserRequest_Username{Username: name}}
	}
	mask := func(paths ...string) proto.Message {
		return &update{User: &person{Id: w.alice.id, Username: "fine", Disabled: true}, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}}
	}
	id := w.alice.id
	return map[string][]wrong{
		"UserService/CreateUser": concat(
			rows(badNames, invalid, "username", func(v string) proto.Message { return &create{Username: v, Password: fine} }),
			rows(mixedNames, invalid, "username", func(v string) proto.Message { return &create{Username: v, Password: fine} }),
			rows(badPasswords, invalid, "password", func(v string) proto.Message { return &create{Username: "new", Password: v} }),
			rows(weakPasswords("newcomer"), weak, "password", func(v string) proto.Message { return &create{Username: "Newcomer", Password: v} }),
			rows(badRoles, invalid, "roles", func(v []string) proto.Message { return &create{Username: "new", Password: fine, Roles: v} }),
			rows(badListsOfAudiences, invalid, "audiences", func(v []string) proto.Message { return &create{Username: "new", Kind: service, Audiences: v} }),
			rows(badListsOfAudiences, invalid, "delegates_to", func(v []string) proto.Message { return &create{Username: "new", Kind: service, DelegatesTo: v} }),
			[]wrong{
				{name: "taken", req: &create{Username: w.alice.name, Password: fine}, want: "USER_EXISTS"},
				{name: "unknown kind", req: &create{Username: "new", Password: fine, Kind: 3}, want: invalid, field: "kind"},
				{name: "a password of a service", req: &create{Username: "new", Password: fine, Kind: service}, want: invalid, field: "password"},
				{name: "audiences of a user", req: &create{Username: "new", Password: fine, Audiences: []string{"a"}}, want: invalid, field: "audiences"},
				{name: "delegates_to of a user", req: &create{Username: "new", Password: fine, DelegatesTo: []string{"a"}}, want: invalid, field: "delegates_to"},
				{name: "taken by a user", req: &create{Username: w.alice.name, Kind: service}, want: "USER_EXISTS"},
				{name: "taken by a service", req: &create{Username: "search", Password: fine}, want: "USER_EXISTS"},
				{name: "taken, in capitals", req: &create{Username: strings.ToUpper(w.alice.name), Password: fine}, want: "USER_EXISTS"},
				{name: "taken, full width", req: &create{Username: "ａｄｍｉｎ", Password: fine}, want: "USER_EXISTS"},
			}),
		"UserService/GetUser": concat(
			rows(badIDs, invalid, "id", byID), rows(unknownIDs, "USER_NOT_FOUND", "", byID), rows(badNames, invalid, "username", byName),
			rows(mixedNames, "USER_NOT_FOUND", "", byName),
			[]wrong{
				{name: "neither", req: &watchwordv1.GetUserRequest{}, want: invalid, field: "id"},
				{name: "unknown name", req: byName("nobody"), want: "USER_NOT_FOUND"},
				{name: "id for a name", req: byName(id), want: "USER_NOT_FOUND"},
			}),
		"UserService/ListUsers": concat(
			rows(badPages(map[string]string{"a page token of ListSessions": w.alices}), invalid, "page_token",
				func(v string) proto.Message { return &watchwordv1.ListUsersRequest{PageToken: v} }),
			[]wrong{
				{name: "negative size", req: &watchwordv1.ListUsersRequest{PageSize: -1}, want: invalid, field: "page_size"},
				{name: "unknown kind", req: &watchwordv1.ListUsersRequest{Kind: 3}, want: invalid, field: "kind"},
				{name: "a page token of every kind", req: &watchwordv1.ListUsersRequest{Kind: service, PageToken: w.users}, want: invalid, field: "page_token"},
			}),
		"UserService/UpdateUser": concat(
			rows(badIDs, invalid, "user.id", func(v string) proto.Message { return &update{User: &person{Id: v, Disabled: true}} }),
			rows(unknownIDs, "USER_NOT_FOUND", "", func(v string) proto.Message { return &update{User: &person{Id: v, Disabled: true}} }),
			rows(badRoles, invalid, "user.roles", func(v []string) proto.Message { return &update{User: &person{Id: id, Roles: v}} }),
			rows(badNames, invalid, "user.username", func(v string) proto.Message {
				return &update{User: &person{Id: id, Username: v}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"username"}}}
			}),
			rows(mixedNames, invalid, "user.username", func(v string) proto.Message { return &update{User: &person{Id: id, Username: v}} }),
			rows(badListsOfAudiences, invalid, "user.audiences", func(v []string) proto.Message { return &update{User: &person{Id: w.service, Audiences: v}} }),
			rows(badListsOfAudiences, invalid, "user.delegates_to", func(v []string) proto.Message { return &update{User: &person{Id: w.service, DelegatesTo: v}} }),
			rows(map[string]string{"unknown path": "nonsense", "path of id": "id", "path with the message": "user.username", "empty path": "",
				"created_at": "created_at", "in capitals": "Username", "two in one": "username,roles", "star with dot": "user.*"},
				invalid, "update_mask", func(v string) proto.Message { return mask("disabled", v) }),
			[]wrong{
				{name: "nothing", req: &update{}, want: invalid, field: "user.id"},
				{name: "no field", req: &update{User: &person{Id: id}}, want: invalid, field: "update_mask"},
				{name: "no field, with an empty mask", req: &update{User: &person{Id: id}, UpdateMask: &fieldmaskpb.FieldMask{}}, want: invalid, field: "update_mask"},
				{name: "star with others", req: mask("*", "roles"), want: invalid, field: "update_mask"},
				{name: "star twice", req: mask("*", "*"), want: invalid, field: "update_mask"},
				{name: "star without a name", req: &update{User: &person{Id: id}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"*"}}},
					want: invalid, field: "user.username"},
				{name: "taken", req: &update{User: &person{Id: id, Username: "ADMIN"}}, want: "USER_EXISTS"},
				{name: "audiences of a user", req: &update{User: &person{Id: id, Audiences: []string{"a"}}}, want: invalid, field: "user.audiences"},
				{name: "delegates_to of a user", req: &update{User: &person{Id: id, DelegatesTo: []string{"a"}}}, want: invalid, field: "user.delegates_to"},
				{name: "another kind", req: &update{User: &person{Id: id, Kind: service, Disabled: true}}, want: invalid, field: "user.kind"},
				{name: "another kind by name", want: invalid, field: "user.kind",
					req: &update{User: &person{Id: w.service}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"kind"}}}},
				{name: "another kind with all fields", want: invalid, field: "user.kind",
					req: &update{User: &person{Id: id, Username: "fine", Kind: service}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"*"}}}},
				{name: "unknown kind", req: &update{User: &person{Id: id, Kind: 3, Disabled: true}}, want: invalid, field: "user.kind"},
			}),
		"UserService/DeleteUser": concat(
			rows(badIDs, invalid, "id", func(v string) proto.Message { return &watchwordv1.DeleteUserRequest{Id: v} }),
			rows(unknownIDs, "USER_NOT_FOUND", "", func(v string) proto.Message { return &watchwordv1.DeleteUserRequest{Id: v} })),
		"UserService/SetPassword": concat(
			rows(badIDs, invalid, "id", func(v string) proto.Message { return &set{Id: v, Password: fine} }),
			rows(unknownIDs, "USER_NOT_FOUND", "", func(v string) proto.Message { return &set{Id: v, Password: fine} }),
			rows(badPasswords, invalid, "password", func(v string) proto.Message { return &set{Id: id, Password: v} }),
			rows(weakPasswords(w.alice.name), weak, "password", func(v string) proto.Message { return &set{Id: id, Password: v} }),
			[]wrong{{name: "of a service", req: &set{Id: w.service, Password: fine}, want: invalid, field: "id"}}),
	}
}

func wrongForOthers(w *population) map[string][]wrong {
	type list = watchwordv1.ListSessionsRequest
	type all = watchwordv1.RevokeUserSessionsRequest
	type events = watchwordv1.ListEventsRequest
	type watch = watchwordv1.WatchEventsRequest
	one := func(v string) proto.Message { return &watchwordv1.RevokeSessionRequest{SessionId: v} }
	return map[string][]wrong{
		"SessionService/ListSessions": concat(
			rows(badPages(map[string]string{"a page token of ListUsers": w.users, "a page token for another user": w.alices}), invalid, "page_token",
				func(v string) proto.Message { return &list{PageToken: v} }),
			rows(unknownIDs, "USER_NOT_FOUND", "", func(v string) proto.Message { return &list{UserId: v} }),
			[]wrong{
				{name: "negative size", req: &list{PageSize: -1}, want: invalid, field: "page_size"},
				{name: "most negative size", req: &list{PageSize: -1 << 31}, want: invalid, field: "page_size"},
				{name: "too long an id", req: &list{UserId: long(65)}, want: invalid, field: "user_id"},
				{name: "another's", req: &list{UserId: w.alice.id}, by: w.bob, want: "SESSION_NOT_FOUND"},
				{name: "another's, by their page token", req: &list{UserId: w.alice.id, PageToken: w.alices}, by: w.bob, want: "SESSION_NOT_FOUND"},
				{name: "another's page token", req: &list{PageToken: w.alices}, by: w.bob, want: invalid, field: "page_token"},
				{name: "nobody's", req: &list{UserId: "AAAAAAAAAAAAAAAA"}, by: w.bob, want: "SESSION_NOT_FOUND"},
			}),
		"SessionService/RevokeSession": concat(
			rows(badIDs, invalid, "session_id", one), rows(unknownIDs, "SESSION_NOT_FOUND", "", one),
			[]wrong{
				{name: "another's", req: one(w.alice.GetSessionId()), by: w.bob, want: "SESSION_NOT_FOUND"},
				{name: "another's that has ended", req: one(w.disabled.GetSessionId()), by: w.bob, want: "SESSION_NOT_FOUND"},
				{name: "a user's id", req: one(w.bob.id), by: w.bob, want: "SESSION_NOT_FOUND"},
				{name: "nobody's", req: one("AAAAAAAAAAAAAAAA"), by: w.bob, want: "SESSION_NOT_FOUND"},
			}),
		"SessionService/RevokeUserSessions": concat(
			rows(unknownIDs, "USER_NOT_FOUND", "", func(v string) proto.Message { return &all{UserId: v} }),
			[]wrong{
				{name: "too long an id", req: &all{UserId: long(65)}, want: invalid, field: "user_id"},
				{name: "another's", req: &all{UserId: w.alice.id}, by: w.bob, want: "SESSION_NOT_FOUND"},
				{name: "nobody's", req: &all{UserId: "AAAAAAAAAAAAAAAA"}, by: w.bob, want: "SESSION_NOT_FOUND"},
			}),
		"KeyService/RotateKey": rows(map[string]string{"none": "none", "HMAC": "HS256", "another case": "eddsa"}, invalid, "algorithm",
			func(v string) proto.Message { return &watchwordv1.RotateKeyRequest{Algorithm: v} }),
		"KeyService/RevokeKey": {
			{name: "no kid", req: &watchwordv1.RevokeKeyRequest{}, want: invalid, field: "kid"},
			{name: "unknown kid", req: &watchwordv1.RevokeKeyRequest{Kid: "AAAAAAAAAAAAAAAA"}, want: "KEY_NOT_FOUND"},
		},
		"AuditService/WatchEvents": {
			{name: "no resume text", req: &watch{Resume: "AAAA"}, want: invalid, field: "resume"},
			{name: "a page token", req: &watch{Resume: w.users}, want: invalid, field: "resume"},
			{name: "too long a resume text", req: &watch{Resume: long(2000)}, want: invalid, field: "resume"},
			{name: "unknown type", req: &watch{Type: "user.create"}, want: invalid, field: "type"},
			{name: "too long a user", req: &watch{UserId: long(65)}, want: invalid, field: "user_id"},
			{name: "malformed name", req: &watch{UserName: "a b"}, want: invalid, field: "user_name"},
			{name: "a name and a user", req: &watch{UserName: "alice", UserId: w.alice.id}, want: invalid, field: "user_name"},
			{name: "unknown name", req: &watch{UserName: "nobody-had-it"}, want: "USER_NOT_FOUND"},
			{name: "too long a session", req: &watch{SessionId: long(65)}, want: invalid, field: "session_id"},
			{name: "no start", req: &watch{StartTime: &timestamppb.Timestamp{Nanos: -1}}, want: invalid, field: "start_time"},
		},
		"AuditService/ListEvents": concat(
			rows(badPages(map[string]string{"a page token of ListUsers": w.users}), invalid, "page_token",
				func(v string) proto.Message { return &events{PageToken: v} }),
			[]wrong{
				{name: "negative size", req: &events{PageSize: -1}, want: invalid, field: "page_size"},
				{name: "too long a type", req: &events{Type: long(65)}, want: invalid, field: "type"},
				{name: "unknown type", req: &events{Type: "user.create"}, want: invalid, field: "type"},
				{name: "type in capitals", req: &events{Type: "Login"}, want: invalid, field: "type"},
				{name: "too long a user", req: &events{UserId: long(65)}, want: invalid, field: "user_id"},
				{name: "malformed name", req: &events{UserName: "a b"}, want: invalid, field: "user_name"},
				{name: "a name and a user", req: &events{UserName: "alice", UserId: w.alice.id}, want: invalid, field: "user_name"},
				{name: "unknown name", req: &events{UserName: "nobody-had-it"}, want: "USER_NOT_FOUND"},
				{name: "too long a session", req: &events{SessionId: long(65)}, want: invalid, field: "session_id"},
				{name: "no start", req: &events{StartTime: &timestamppb.Timestamp{Nanos: -1}}, want: invalid, field: "start_time"},
				{name: "no end", req: &events{EndTime: &timestamppb.Timestamp{Seconds: 1 << 60}}, want: invalid, field: "end_time"},
			}),
	}
}
