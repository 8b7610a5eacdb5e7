package cli_test

import (
	"encoding/json"
	"os/user"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/server"
)

// world is a server with an admin's kept login, and a user bob with two sessions.
type world struct {
	server   []string // the flags that call the server
	way      []string // the flags of the commands under test
	password string
	bob      []*watchwordv1.TokenPair
}

// bobs is the password of bob.
const bobs = "a password of bob"

func newWorld(t *testing.T, onServer bool) *world {
	t.Helper()
	flags, password, db, _ := serveWith(t, func(*server.Config) {})
	w := &world{server: flags, way: flags, password: password}
	if !onServer {
		w.way = []string{db}
	}
	done(t, password, slices.Concat([]string{"login", "admin", "--audience=watchword", "--password-stdin"}, flags)...)
	done(t, bobs, "user", "create", "bob", "--role=reader", db)
	for range 2 {
		w.bob = append(w.bob, w.login(t, "bob", bobs))
	}
	return w
}

// login logs a user in, for another program.
func (w *world) login(t *testing.T, name, password string) *watchwordv1.TokenPair {
	t.Helper()
	pair := &watchwordv1.TokenPair{}
	if err := protojson.Unmarshal([]byte(done(t, password, append([]string{"login", name, "--print"}, w.server...)...)), pair); err != nil {
		t.Fatal(err)
	}
	return pair
}

// ofReplica matches what a replica has fetched of an issuer: a running server alone has that.
var ofReplica = regexp.MustCompile(`(?m),"fetched":\{[^}]*\}|^(kids|fetched|error)\b.*\n`)

// varying matches what differs from run to run: ids and times, and the spaces of tables.
var spaces, varying = regexp.MustCompile(` +`), regexp.MustCompile(`"?\d{4}-\d\d-\d\dT[0-9:.]+Z"?|[A-Za-z0-9_-]{16}| +`)

// bothWays are the commands, in their order. $BOB1, $BOB2, $BOB and $KEY stand for ids: of
// two sessions, the user and the key that signs at first. $KEYS and $CA stand for files: a key
// set, and a certificate.
var bothWays = []struct {
	args, stdin string
	status      int
	says        string // a part of the output, or of the error
}{
	{"user create alice --role=writer --role=admin", "a password of alice", 0, ""},
	{"user create alice", "another password", 1, "USER_EXISTS: the username is taken"},
	{"user create carol", "short", 1, "PASSWORD_TOO_WEAK: password: "},
	{"user create carol", "a password\x00of carol", 1, "password: malformed password"},
	{"user create раypal", "a password of carol", 2, "INVALID_REQUEST: username: "}, // a username with letters of two scripts
	{"user list", "", 0, " alice "},
	{"user list --json", "", 0, `"username":"bob","roles":["reader"],"disabled":false`},
	{"user show bob", "", 0, "roles reader"},
	{"user show bob --json", "", 0, `"username":"bob"`},
	{"user show eve", "", 1, "USER_NOT_FOUND: no such user: eve"},
	{"user set-roles bob --role=reader --role=writer", "", 0, ""},
	{"user show bob", "", 0, "roles reader,writer"},
	{"user rename bob robert", "", 0, ""},
	{"user rename robert alice", "", 1, "USER_EXISTS: the username is taken"},
	{"user rename robert bob", "", 0, ""},
	{"session list bob", "", 0, " bob/"},
	{"session list bob", "", 0, "REFRESHED IN HOUR"},
	{"session list bob --json", "", 0, `"audience":["internal"]`},
	{"session revoke $BOB1", "", 0, ""},
	{"session revoke no-such-session", "", 1, "SESSION_NOT_FOUND: no such session"},
	{"session list bob", "", 0, "$BOB2"},
	{"session revoke-all bob", "", 0, ""},
	{"session revoke-all eve", "", 1, "USER_NOT_FOUND: no such user: eve"},
	{"user set-password bob", "another password of bob", 0, ""},
	{"user set-password bob", "short", 1, "PASSWORD_TOO_WEAK: password: "},
	{"user disable bob", "", 0, ""},
	{"user list", "", 0, " disabled "},
	{"user enable bob", "", 0, ""},
	{"user set-roles alice --no-roles", "", 0, ""},
	{"user disable admin", "", 1, "LAST_ADMIN: the user is the last enabled admin; make another user an admin first"},
	{"user delete admin", "", 1, "LAST_ADMIN: "},
	{"service create search --role=reader --audience=search --delegates-to=index,billing", "", 0, ""},
	{"service create other --audience=watchword", "", 2, "--audience: malformed: tokens for watchword are for the server itself alone"},
	{"service create other --delegates-to=\"", "", 2, "--delegates-to: malformed: an audience is "},
	{"service list", "", 0, " search reader search billing,index enabled "},
	{"service list --json", "", 0, `"kind":"USER_KIND_SERVICE","audiences":["search"],"delegates_to":["billing","index"]`},
	{"service show bob", "", 1, "bob is a user, and no service account: use the commands of watchword user"},
	{"user show search", "", 1, "search is a service account, which has no password and no session: use the commands of watchword service"},
	{"user set-password search", "a password of search", 1, "search is a service account, which has no password"},
	{"service set search --delegates-to=index", "", 0, ""},
	{"service set search", "", 2, "give a new list by --role, --audience or --delegates-to"},
	{"service set search --role=a --no-roles", "", 2, "roles: give a new list, or remove the list"},
	{"service show search", "", 0, "delegates to index"},
	{"service set search --no-roles --no-delegates-to --audience=search,find", "", 0, ""},
	{"service rename search finder", "", 0, ""},
	{"service disable finder", "", 0, ""},
	{"service list", "", 0, " finder find,search disabled "},
	{"service enable finder", "", 0, ""},
	{"service delete finder", "", 0, ""},
	{"service show finder", "", 1, "USER_NOT_FOUND: no such user: finder"},
	{"audit --user=search --type=user.created --json", "", 0, "kind: SERVICE, audiences: search, delegates_to: billing index"},
	{"key list", "", 0, " signing "},
	{"key list --json", "", 0, `"state":"KEY_STATE_SIGNING"`},
	{"key rotate", "", 0, " EdDSA signs from "},
	{"key rotate --alg=ES256 --json", "", 0, `"algorithm":"ES256"`},
	{"key revoke no-such-key", "", 1, "KEY_NOT_FOUND: no such signing key"},
	{"key revoke $KEY", "", 0, " signs from "},
	{"issuer add cluster --issuer=https://cluster.example --jwks-file=$KEYS --max-lifetime=1h", "", 0, ""},
	{"issuer add cluster --issuer=https://other.example --discovery", "", 1, "ISSUER_EXISTS: "},
	{"issuer add plain --issuer=https://other.example --jwks-uri=http://other.example", "", 2, "INVALID_REQUEST: issuer.jwks_uri: must be an https URL"},
	{"issuer add inner --issuer=https://10.0.0.1 --discovery", "", 2, "INVALID_REQUEST: issuer.issuer: of an issuer with discovery: has the address 10.0.0.1, which is private, loopback, link-local or reserved: set allow_private (--allow-private"},
	{"issuer add ci --issuer=https://ci.example --discovery --issuer-ca-file=$CA --allow-private", "", 0, ""},
	{"issuer list", "", 0, "cluster https://cluster.example document 1h0m0s"},
	{"issuer list --json", "", 0, `"name":"ci","issuer":"https://ci.example","discovery":true,`},
	{"issuer show ci", "", 0, " 1 of its own"},
	{"issuer show eve", "", 1, "ISSUER_NOT_FOUND: no such trusted issuer: eve"},
	{"issuer set ci --jwks-uri=https://ci.example/keys --no-private", "", 0, ""},
	{"issuer show ci", "", 0, "keys https://ci.example/keys"},
	{"issuer show ci --json", "", 0, `"allow_private":false`},
	{"issuer set ci --jwks-uri=https://[::1]/keys", "", 2, "INVALID_REQUEST: issuer.jwks_uri: has the address ::1, "},
	{"issuer set ci --jwks-uri=https://[::1]/keys --allow-private", "", 0, ""},
	{"issuer set ci --no-private", "", 2, "INVALID_REQUEST: issuer.jwks_uri: has the address ::1, "},
	{"issuer set ci --max-lifetime=721h", "", 2, "INVALID_REQUEST: issuer.max_lifetime: "},
	{"service create orders", "", 0, ""},
	{"service bind orders --issuer=cluster --subject=system:serviceaccount:shop:orders --claim=/kubernetes.io/namespace=a,b --claim=n:=7", "", 0, ""},
	{"service bind orders --issuer=cluster --subject=system:serviceaccount:shop:orders --claim=n:=7.0 --claim=/kubernetes.io/namespace=a,b", "", 2, "INVALID_REQUEST: binding.subject: has the binding "},
	{"service bind orders --issuer=eve --subject=s", "", 1, "ISSUER_NOT_FOUND: no such trusted issuer: eve"},
	{"service bind alice --issuer=cluster --subject=s", "", 1, "alice is a user, and no service account"},
	{"service bind eve --issuer=cluster --subject=s", "", 1, "USER_NOT_FOUND: no such user: eve"},
	{"service bind orders --issuer=ci --subject=s", "", 0, ""},
	{"service show orders", "", 0, " cluster system:serviceaccount:shop:orders /kubernetes.io/namespace=a,b n:=7"},
	{"service bindings orders", "", 0, " ci s "},
	{"service bindings", "", 0, " orders/"},
	{"service bindings --issuer=ci --json", "", 0, `"issuer":"ci","subject":"s","claims":[]`},
	{"service unbind orders no-such-binding", "", 1, "orders has no binding with this id"},
	{"issuer remove ci", "", 0, ""},
	{"issuer remove ci", "", 1, "ISSUER_NOT_FOUND: no such trusted issuer: ci"},
	{"service bindings --issuer=ci", "", 0, "ID ISSUER"},
	{"audit --type=binding.deleted --json", "", 0, `"detail":"issuer: ci, subject: s"`},
	{"user delete bob", "", 0, ""},
	{"user delete bob", "", 1, "USER_NOT_FOUND: no such user: bob"},
	{"audit --user=eve", "", 1, "USER_NOT_FOUND: no such user: eve"},
	{"audit --user=bob --user-id=$BOB", "", 2, "--user and --user-id"},
	{"audit --session=$BOB1 --type=session.revoked --json", "", 0, `"user_name":"bob"`},
	{"audit --user=robert --type=user.updated --limit=1 --json", "", 0, `"detail":"username: bob`},
}

// Each command of administration does the same on a running server and on its database, and
// prints the same.
func TestBothWays(t *testing.T) {
	t.Parallel()
	on, in := newWorld(t, true), newWorld(t, false)
	keys, ca, _ := issuerFiles(t)
	ids := func(w *world) *strings.Replacer {
		list := table(t, done(t, "", append([]string{"key", "list"}, w.way...)...))
		key := list[slices.IndexFunc(list, func(row []string) bool { return row[2] == "signing" })][0]
		bob := table(t, done(t, "", append([]string{"user", "show", "bob"}, w.way...)...))[0][1]
		return strings.NewReplacer("$BOB1", w.bob[0].GetSessionId(), "$BOB2", w.bob[1].GetSessionId(), "$BOB", bob, "$KEYS", keys, "$KEY", key, "$CA", ca)
	}
	names := []*strings.Replacer{ids(on), ids(in)}
	for _, c := range bothWays {
		var got [2]result
		for i, w := range []*world{on, in} {
			args := append(strings.Fields(names[i].Replace(c.args)), w.way...)
			r := run(t, c.stdin, args...)
			if text := r.out + r.err; r.status != c.status || !strings.Contains(spaces.ReplaceAllString(text, " "), names[i].Replace(c.says)) {
				t.Errorf("watchword %q: status %d, want %d and %q:\n%s%s", args, r.status, c.status, c.says, r.out, r.err)
			}
			lines := strings.Split(varying.ReplaceAllString(ofReplica.ReplaceAllString(r.out, ""), " "), "\n")
			slices.Sort(lines) // lists are in the order of ids
			r.out, r.err = strings.Join(lines, "\n"), varying.ReplaceAllString(r.err, " ")
			got[i] = r
		}
		if strings.HasPrefix(c.args, "audit ") { // the actor and the source differ
			got[0].out, got[1].out = "", ""
		}
		if got[0] != got[1] {
			t.Errorf("watchword %s prints\n%+v on a server, and\n%+v on a database", c.args, got[0], got[1])
		}
	}
}

// A running server knows within a second what a command does on its database, and the record
// names the operating system's user as the actor.
func TestAChangeInTheDatabaseIsKnown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, false)
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	verify := append([]string{"verify"}, w.server...)
	for i, args := range [][]string{{"session", "revoke", w.bob[0].GetSessionId()}, {"session", "revoke-all", "bob"}} {
		done(t, w.bob[i].GetAccessToken(), verify...)
		done(t, "", append(args, w.way...)...)
		for deadline := time.Now().Add(20 * time.Second); ; {
			r := run(t, w.bob[i].GetAccessToken(), verify...)
			if strings.HasPrefix(r.err, "watchword: TOKEN_REVOKED: ") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%q is not known: %+v", args, r)
			}
		}
	}
	var record struct {
		ActorID   string `json:"actor_id"`
		ActorName string `json:"actor_name"`
		Source    string `json:"source"`
	}
	out := done(t, "", append([]string{"audit", "--limit=1", "--json"}, w.way...)...)
	if err := json.Unmarshal([]byte(out), &record); err != nil || record.ActorName != me.Username || record.ActorID != "" || record.Source != "cli" {
		t.Errorf("%v, %s want the actor %s", err, out, me.Username)
	}
}

// A command with the flags of the server and the flags of the database changes nothing, and
// returns an error.
func TestServerOrDatabase(t *testing.T) {
	flags, password, db, _ := serveWith(t, func(*server.Config) {})
	done(t, password, append([]string{"login", "admin", "--audience=watchword"}, flags...)...)
	addr := strings.TrimPrefix(flags[1], "--addr=")
	fails(t, 2, "--datastore-uri is for a database, and --addr names a running server", "", append([]string{"user", "list", db}, flags...)...)
	fails(t, 2, "--master-key-file is for a database", "", append([]string{"key", "list", "--master-key-file=file"}, flags...)...)
	fails(t, 2, "--plaintext is for a running server: name the server by --addr", "", "user", "list", db, "--plaintext")
	fails(t, 2, "--token-stdin is for a running server", "", "user", "list", db, "--token-stdin")
	fails(t, 2, "name a user: on a database the operator has no sessions", "", "session", "list", db)
	fails(t, 2, "the password must come from a terminal", "a token", append([]string{"user", "create", "eve", "--token-stdin"}, flags...)...)

	t.Setenv("WATCHWORD_ADDR", addr)
	done(t, "", "user", "list", "--plaintext")
	done(t, "", "user", "list", db) // a flag counts more than a variable
	t.Setenv("WATCHWORD_DATASTORE_URI", strings.TrimPrefix(db, "--datastore-uri="))
	fails(t, 2, "WATCHWORD_ADDR and WATCHWORD_DATASTORE_URI are both set", "", "user", "list", "--plaintext")
	done(t, "", append([]string{"user", "list"}, flags...)...)
	done(t, "", "user", "list", db)
}
