package server_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	josejwt "github.com/go-jose/go-jose/v4/jwt"
	"github.com/golang-jwt/jwt/v5"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/server"
	"github.com/watchword-auth/watchword/internal/store"
)

const thisServer = "https://auth.test"

// platform is a real form of foreign token: what the issuer publishes, and a token.
type platform struct {
	name    string
	issuer  *store.Issuer
	token   string
	subject string
	claims  []string // the claims of the binding
	other   []string // the claims of another account's binding, which must not match
}

// kubernetes returns a projected token of a service account as the API server makes it, with
// the key set of the cluster.
func kubernetes(t *testing.T) platform {
	key := foreignKey(t, "RS256")
	const iss = "https://kubernetes.default.svc.cluster.local"
	set := jsonObject{"keys": []any{jsonObject{
		"use": "sig", "kty": "RSA", "kid": "6wY4m0pZ0S3Yx0uC2bPZ9JXzPqJ0wqgq7N8oWw8rQ5k", "alg": "RS256",
		"n": jwkMember(t, key.Public(), "n"), "e": jwkMember(t, key.Public(), "e"),
	}}}
	now := time.Now().Unix()
	return platform{
		name: "Kubernetes", issuer: &store.Issuer{Name: "cluster", Issuer: iss, Jwks: mustJSON(t, set)},
		token: compact(t, key, "RS256", jsonObject{"alg": "RS256", "kid": "6wY4m0pZ0S3Yx0uC2bPZ9JXzPqJ0wqgq7N8oWw8rQ5k"}, jsonObject{
			"aud": []string{thisServer}, "exp": now + 3607, "iat": now, "iss": iss, "jti": "0e1d6c5f-5e3a-4a30-8c3d-3d0a6f6f5d0e", "nbf": now,
			"kubernetes.io": jsonObject{
				"namespace": "shop", "node": jsonObject{"name": "node-1", "uid": "64b6ba35-27c8-4b4c-9a4d-7f2a3d8b2d0f"},
				"pod":            jsonObject{"name": "notes-6d5f8c7b9-x2x7q", "uid": "5e0bd49b-f040-43b0-99b7-22765a53f7f3"},
				"serviceaccount": jsonObject{"name": "notes", "uid": "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798"},
			},
			"sub": "system:serviceaccount:shop:notes",
		}),
		subject: "system:serviceaccount:shop:notes",
		claims:  []string{"kubernetes.io/namespace=shop", "kubernetes.io/serviceaccount/uid=14ee3fa4-a7e2-420f-9f9a-dbc4507c3798"},
		other:   []string{"kubernetes.io/namespace=shop", "kubernetes.io/serviceaccount/uid=other", "kubernetes.io/pod/name=notes-6d5f8c7b9-x2x7q"},
	}
}

// spiffe returns a JWT-SVID that go-spiffe accepts, with the bundle of the trust domain as
// go-spiffe writes it: keys for X.509 stand beside the key for JWT, which has no alg.
func spiffe(t *testing.T) platform {
	domain := spiffeid.RequireTrustDomainFromString("shop.test")
	key := foreignKey(t, "ES256").(*ecdsa.PrivateKey)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	bundle := spiffebundle.New(domain)
	bundle.AddX509Authority(ca)
	bundle.SetSequenceNumber(7)
	bundle.SetRefreshHint(5 * time.Minute)
	if err := bundle.AddJWTAuthority("LTdSfgTn4XkM3YVYHmIWgvVmlXzWpXLB", &key.PublicKey); err != nil {
		t.Fatal(err)
	}
	document, err := bundle.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "LTdSfgTn4XkM3YVYHmIWgvVmlXzWpXLB"}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	const id, iss = "spiffe://shop.test/notes", "https://oidc.shop.test"
	svid, err := josejwt.Signed(signer).Claims(josejwt.Claims{
		Subject: id, Issuer: iss, Audience: josejwt.Audience{thisServer}, IssuedAt: josejwt.NewNumericDate(time.Now()), Expiry: josejwt.NewNumericDate(time.Now().Add(5 * time.Minute)),
	}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jwtsvid.ParseAndValidate(svid, bundle, []string{thisServer}); err != nil {
		t.Fatalf("go-spiffe refuses the SVID of the test: %v", err)
	}
	return platform{name: "SPIFFE", issuer: &store.Issuer{Name: "spire", Issuer: iss, Jwks: string(document)}, token: svid, subject: id}
}

// github returns the token of a job of GitHub Actions, with the claims of GitHub's
// documentation.
func github(t *testing.T) platform {
	f := newForeign(t, "github", "https://token.actions.githubusercontent.com", "RS256")
	const sub = "repo:octo-org/octo-repo:environment:prod"
	return platform{
		name: "GitHub", issuer: &store.Issuer{Name: f.name, Issuer: f.iss, Jwks: f.jwks(t)}, subject: sub,
		token: f.sign(t, "RS256", f.claims(thisServer, sub).with(jsonObject{
			"jti": "example-id", "environment": "prod", "ref": "refs/heads/main", "sha": "example-sha", "repository": "octo-org/octo-repo",
			"repository_owner": "octo-org", "actor_id": "12", "repository_visibility": "private", "repository_id": "74", "repository_owner_id": "65",
			"run_id": "example-run-id", "run_number": "10", "run_attempt": "2", "runner_environment": "github-hosted", "actor": "octocat",
			"workflow": "example-workflow", "head_ref": "", "base_ref": "", "event_name": "workflow_dispatch", "ref_type": "branch",
			"job_workflow_ref": "octo-org/octo-automation/.github/workflows/oidc.yml@refs/heads/main", "nbf": time.Now().Unix() - 600,
		})),
		claims: []string{"repository_id=74", "job_workflow_ref=octo-org/octo-automation/.github/workflows/oidc.yml@refs/heads/main"},
		other:  []string{"repository_id=75", "environment=prod", "ref=refs/heads/main"},
	}
}

// gitlab returns an ID token of a job of GitLab CI, with the claims of GitLab's
// documentation.
func gitlab(t *testing.T) platform {
	f := newForeign(t, "gitlab", "https://gitlab.example.com", "RS256")
	const sub = "project_path:my-group/my-project:ref_type:branch:ref:feature-branch-1"
	return platform{
		name: "GitLab", issuer: &store.Issuer{Name: f.name, Issuer: f.iss, Jwks: f.jwks(t)}, subject: sub,
		token: f.sign(t, "RS256", f.claims(thisServer, sub).with(jsonObject{
			"nbf": time.Now().Unix() - 5, "jti": "235b3a54-b797-45c7-ae9a-f72d7bc6ef5b", "namespace_id": "72", "namespace_path": "my-group",
			"project_id": "20", "project_path": "my-group/my-project", "user_id": "1", "user_login": "sample-user", "user_identities": []any{
				jsonObject{"provider": "github", "extern_uid": "2435223452345"},
			}, "pipeline_id": "574", "pipeline_source": "push", "job_id": "302", "ref": "feature-branch-1", "ref_type": "branch",
			"ref_path": "refs/heads/feature-branch-1", "ref_protected": "false", "groups_direct": []string{"mygroup/mysubgroup"}, "runner_id": 1,
			"runner_environment": "self-hosted", "sha": "714a629c0b401fdce83e847fc9589983fc6f46bc", "project_visibility": "public",
			"ci_config_ref_uri": "gitlab.example.com/my-group/my-project//.gitlab-ci.yml@refs/heads/main",
		})),
		claims: []string{"project_id=20", "ref_protected=false"}, other: []string{"groups_direct=mygroup/mysubgroup", "project_id=20"},
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func jwkMember(t *testing.T, key any, name string) (member string) {
	t.Helper()
	text, err := jose.JSONWebKey{Key: key}.MarshalJSON()
	var all map[string]string
	if err != nil || json.Unmarshal(text, &all) != nil {
		t.Fatal(err)
	}
	return all[name]
}

// Real forms of foreign tokens get the token of the bound account, once and again, and leave
// a record each.
func TestExchangeOfRealTokens(t *testing.T) {
	eachEngine(t, func(t *testing.T, on func(*server.Config)) {
		h := start(t, on, func(c *server.Config) { c.Issuer = thisServer })
		for _, p := range []platform{kubernetes(t), spiffe(t), github(t), gitlab(t)} {
			p.issuer.MaxLifetime, p.issuer.CreatedAt, p.issuer.UpdatedAt = 2*time.Hour, time.Now(), time.Now()
			h.behind(t, func(tx *feed.Tx) error { return tx.InsertIssuer(p.issuer) })
			id := h.service(t, "service-"+p.issuer.Name, "writer")
			h.bind(t, p.issuer.Name, p.subject, id, p.claims...)
			if p.other != nil { // of the bindings that match, the one with most claims counts, whatever the order
				h.bind(t, p.issuer.Name, p.subject, h.service(t, "wide-"+p.issuer.Name))
				h.bind(t, p.issuer.Name, p.subject, h.service(t, "narrower-"+p.issuer.Name), p.claims[0])
				h.bind(t, p.issuer.Name, p.subject, h.service(t, "other-"+p.issuer.Name), p.other...)
			}
			for range 2 {
				resp, err := h.exchange(t, p.token, "billing", "search")
				if err != nil {
					t.Errorf("%s: %v", p.name, err)
					continue
				}
				if life := resp.GetExpiresIn().AsDuration(); resp.GetTokenType() != "Bearer" || life <= 4*time.Minute || life > 5*time.Minute {
					t.Errorf("%s: %v", p.name, resp.GetExpiresIn())
				}
				verified, err := h.auth.Verify(t.Context(), &watchwordv1.VerifyRequest{AccessToken: resp.GetAccessToken(), Audience: "billing"})
				got := verified.GetPrincipal()
				if err != nil || got.GetSubject() != id || got.GetUsername() != "service-"+p.issuer.Name || got.GetSessionId() != "" ||
					!slices.Equal(got.GetRoles(), []string{"writer"}) || !slices.Equal(got.GetAudience(), []string{"billing", "search"}) {
					t.Errorf("%s: %v, %v", p.name, got, err)
				}
			}
			events := h.events(t, &watchwordv1.ListEventsRequest{UserId: id})
			want := fmt.Sprintf("token.exchanged ok by=service-%[1]s/%[2]s to=service-%[1]s/%[2]s session= kid= from=127.0.0.1 ×1 issuer %[1]s, subject %[3]s", p.issuer.Name, id, p.subject)
			if len(events) != 2 || line(events[0]) != want || line(events[1]) != want {
				t.Errorf("%s: the record has %v, want twice %s", p.name, events, want)
			}
		}
	})
}

// forgery is an assertion that must be refused.
type forgery struct {
	name, raw    string
	want, detail string // the reason, and what the security record says
}

// forgeries lists assertions that look like those of two issuers, each of which would be good
// but for one thing.
func forgeries(t *testing.T, one, two *foreign) []forgery {
	const sub = "job"
	good := one.claims(thisServer, sub)
	now := time.Now().Unix()
	list := []forgery{}
	claims := func(name, detail string, change jsonObject) {
		list = append(list, forgery{name, one.sign(t, "RS256", good.with(change)), "ASSERTION_INVALID", detail})
	}
	header := func(name, detail string, key any, alg string, h jsonObject) {
		list = append(list, forgery{name, compact(t, key, alg, h, good), "ASSERTION_INVALID", detail})
	}
	unbound := func(name string, change jsonObject) {
		list = append(list, forgery{name, one.sign(t, "RS256", good.with(change)), "ASSERTION_UNBOUND", "no binding matches"})
	}
	audience := "aud is not exactly the issuer"
	claims("another audience", audience, jsonObject{"aud": "https://elsewhere.test"})
	claims("two audiences", audience, jsonObject{"aud": []string{thisServer, "https://elsewhere.test"}})
	claims("the audience twice", audience, jsonObject{"aud": []string{thisServer, thisServer}})
	claims("the audience with a slash", audience, jsonObject{"aud": thisServer + "/"})
	claims("an audience that begins the same", audience, jsonObject{"aud": "https://auth.test.evil"})
	claims("no audience", audience, jsonObject{"aud": nil})
	claims("an empty list of audiences", audience, jsonObject{"aud": []string{}})
	claims("expired", "has expired", jsonObject{"iat": now - 100, "exp": now - 1})
	claims("no exp", "iat or exp is missing", jsonObject{"exp": nil})
	claims("no iat", "iat or exp is missing", jsonObject{"iat": nil})
	claims("exp as a text", "iat or exp is missing", jsonObject{"exp": fmt.Sprint(now + 60)})
	claims("exp at the end of time", "iat or exp is missing", jsonObject{"exp": 1e300})
	claims("lives too long", "lives longer than max_lifetime", jsonObject{"exp": now + 3601})
	claims("lives backwards", "exp is not after iat", jsonObject{"iat": now + 550, "exp": now + 500})
	claims("iat in the future", "iat is in the future", jsonObject{"iat": now + 90})
	claims("nbf in the future", "nbf is in the future", jsonObject{"nbf": now + 90})
	claims("nbf of another type", "a time is malformed", jsonObject{"nbf": "now"})
	claims("no sub", "sub is missing", jsonObject{"sub": nil})
	claims("sub with a zero byte", "sub is missing or malformed", jsonObject{"sub": "job\x00"})
	claims("an issuer that is not trusted", "the issuer is not trusted", jsonObject{"iss": "https://elsewhere.test"})
	claims("this server as the issuer", "the issuer is not trusted", jsonObject{"iss": thisServer})
	claims("the issuer two, with the key of one", "wrong signature", jsonObject{"iss": two.iss})

	public := x509.MarshalPKCS1PublicKey(one.keys["RS256"].Public().(*rsa.PublicKey))
	asPEM := pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: public})
	header("HS256 with the public key", "algorithm", public, "HS256", jsonObject{"alg": "HS256", "kid": "RS256"})
	header("HS256 with the public key in PEM", "algorithm", asPEM, "HS256", jsonObject{"alg": "HS256", "kid": "RS256"})
	header("none", "algorithm", jwt.UnsafeAllowNoneSignatureType, "none", jsonObject{"alg": "none", "kid": "RS256"})
	header("PS256 with a key for RS256", "issuer one: the key is for another algorithm", one.keys["RS256"], "PS256", jsonObject{"alg": "PS256", "kid": "RS256"})
	list = append(list, forgery{"RS256 with a key for PS256", compact(t, two.keys["PS256"], "RS256", jsonObject{"alg": "RS256", "kid": "PS256"},
		two.claims(thisServer, sub)), "ASSERTION_INVALID", "issuer two: the key is for another algorithm"})
	header("ES256 with a key for RS256", "issuer one: the key is for another algorithm", one.keys["ES256"], "ES256", jsonObject{"alg": "ES256", "kid": "RS256"})
	header("RS512 with a key for RS256", "issuer one: the key is for another algorithm", one.keys["RS256"], "RS512", jsonObject{"alg": "RS512", "kid": "RS256"})
	header("another key of the issuer", "wrong signature", one.keys["second"], "RS256", jsonObject{"alg": "RS256", "kid": "RS256"})
	header("a key of no issuer", "wrong signature", foreignKey(t, "another RSA key"), "RS256", jsonObject{"alg": "RS256", "kid": "RS256"})
	header("the kid of the other key", "issuer one: the key is for another algorithm", one.keys["RS256"], "RS256", jsonObject{"alg": "RS256", "kid": "ES256"})
	header("a key in the header", "wrong signature", foreignKey(t, "another RSA key"), "RS256", jsonObject{"alg": "RS256", "kid": "RS256",
		"jwk": jose.JSONWebKey{Key: foreignKey(t, "another RSA key").Public()}})
	header("an unknown kid", "the issuer has no such key", one.keys["RS256"], "RS256", jsonObject{"alg": "RS256", "kid": "unknown"})
	header("an access token", "type of another use", one.keys["RS256"], "RS256", jsonObject{"alg": "RS256", "kid": "RS256", "typ": "at+jwt"})
	header("crit", "forbidden header", one.keys["RS256"], "RS256", jsonObject{"alg": "RS256", "kid": "RS256", "crit": []string{"exp"}})
	list = append(list,
		forgery{"a name twice", compact(t, one.keys["RS256"], "RS256", jsonObject{"alg": "RS256", "kid": "RS256"},
			strings.Replace(mustJSON(t, good), "{", `{"sub":"root",`, 1)), "ASSERTION_INVALID", "malformed claims"},
		forgery{"too long", one.sign(t, "RS256", good.with(jsonObject{"x": strings.Repeat("x", 16<<10)})), "ASSERTION_INVALID", "too long"},
		forgery{"a text", "not a token", "ASSERTION_INVALID", "not a JWS"},
		forgery{"an access token of this server", "", "ASSERTION_INVALID", ""})

	unbound("another subject", jsonObject{"sub": "jobs"})
	unbound("the subject in capitals", jsonObject{"sub": "JOB"})
	unbound("an array with the bound claim", jsonObject{"sub": "narrow", "env": []string{"prod"}})
	unbound("without the bound claim", jsonObject{"sub": "narrow"})
	unbound("a removed binding", jsonObject{"sub": "removed"})
	unbound("a deleted account", jsonObject{"sub": "deleted"})
	list = append(list,
		forgery{"a tie", one.sign(t, "RS256", good.with(jsonObject{"sub": "tie", "a": "1", "b": "1"})), "ASSERTION_UNBOUND", "equally well"},
		forgery{"the subject of the other issuer", two.sign(t, "RS256", two.claims(thisServer, "job")), "ASSERTION_UNBOUND", "no binding matches"},
		forgery{"a disabled account", one.sign(t, "RS256", good.with(jsonObject{"sub": "disabled"})), "USER_DISABLED", ""})
	return list
}

// Each forgery is refused with the reason of the contract, is counted in the security record
// with the cause, and leaves nothing else. The good assertion beside them passes all the time, and
// leaves its record alone.
func TestForgedAssertions(t *testing.T) {
	h := start(t, func(c *server.Config) { c.Issuer = thisServer })
	one := newForeign(t, "one", "https://one.test", "RS256", "ES256")
	two := newForeign(t, "two", "https://two.test", "PS256")
	one.keys["second"], one.algs["second"] = foreignKey(t, "the second RSA key of one"), "RS256"
	two.keys["RS256"], two.algs["RS256"] = foreignKey(t, "the RSA key of two"), "RS256"
	h.trustIssuer(t, one)
	h.trustIssuer(t, two)
	id := h.service(t, "job")
	h.bind(t, "one", "job", id)
	h.bind(t, "one", "narrow", id, "env=prod")
	h.bind(t, "one", "tie", id, "a=1")
	h.bind(t, "one", "tie", h.service(t, "tied"), "b=1")
	removed := h.service(t, "removed")
	h.bind(t, "one", "removed", removed)
	h.bind(t, "one", "disabled", h.serviceAs(t, "disabled", func(u *store.User, _ time.Time) { u.Disabled = true }))
	h.bind(t, "one", "deleted", h.serviceAs(t, "deleted", func(u *store.User, now time.Time) { u.DeletedAt = now }))
	h.unbind(t, removed)

	good := func() string { return one.sign(t, "RS256", one.claims(thisServer, "job")) }
	resp, err := h.exchange(t, good())
	if err != nil {
		t.Fatal(err)
	}
	before := h.dump(t)
	wantRecords := map[string]int64{}
	for _, f := range forgeries(t, one, two) {
		if f.raw == "" {
			f.raw = resp.GetAccessToken()
		}
		_, err := h.exchange(t, f.raw)
		wants(t, f.name, outcome(err), f.want)
		if err != nil && (strings.Contains(err.Error(), "one") || f.detail != "" && strings.Contains(err.Error(), f.detail)) {
			t.Errorf("%s: the client learns more than the reason: %v", f.name, err)
		}
		wantRecords[f.want+" "+f.detail]++
	}
	if changes := difference(before, h.dump(t)); changes != "" {
		t.Errorf("forgeries have changed the database:\n%s", changes)
	}
	missing := func() (list []string) {
		found := h.refusedExchanges(t)
		for want, n := range wantRecords {
			reason, detail, _ := strings.Cut(want, " ")
			for record, count := range found {
				if strings.HasPrefix(record, reason) && strings.Contains(record, detail) {
					n -= count
				}
			}
			if n > 0 {
				list = append(list, want)
			}
		}
		return list
	}
	eventually(t, func() bool { return len(missing()) == 0 }, func() string {
		return fmt.Sprintf("not in the record: %q; the record has %v", missing(), slices.Sorted(maps.Keys(h.refusedExchanges(t))))
	})
	before = h.dump(t)
	if _, err := h.exchange(t, good()); err != nil {
		t.Errorf("the good assertion: %v", err)
	}
	if changes := difference(before, h.dump(t)); strings.Count(changes, "\n") != 1 || !strings.Contains(changes, "token.exchanged") {
		t.Errorf("an exchange writes more than its record:\n%s", changes)
	}
}

// A change of an issuer by an admin takes effect with the next call: an issuer that is removed,
// or that gets other keys, also if another process changes the database.
func TestChangedIssuersCountAtOnce(t *testing.T) {
	h := start(t, func(c *server.Config) { c.Issuer = thisServer })
	f := newForeign(t, "ci", "https://ci.test", "ES256")
	raw := f.sign(t, "ES256", f.claims(thisServer, "job"))
	call := func(what, want string) {
		t.Helper()
		_, err := h.exchange(t, raw)
		wants(t, what, outcome(err), want)
	}
	call("before the issuer", "ASSERTION_INVALID")
	h.trustIssuer(t, f)
	call("before the binding", "ASSERTION_UNBOUND")
	h.bind(t, "ci", "job", h.service(t, "job"))
	call("bound", "ok")
	change := func(do func(tx *feed.Tx, row *store.Issuer) error) {
		t.Helper()
		h.behind(t, func(tx *feed.Tx) error {
			row, err := tx.Issuer("ci")
			if err != nil {
				return err
			}
			row.UpdatedAt = tx.Now()
			return do(tx, row)
		})
	}
	change(func(tx *feed.Tx, row *store.Issuer) error { row.MaxLifetime = time.Minute; return tx.UpdateIssuer(row) })
	call("a shorter life", "ASSERTION_INVALID")
	change(func(tx *feed.Tx, row *store.Issuer) error { row.MaxLifetime = time.Hour; return tx.UpdateIssuer(row) })
	call("the longer life again", "ok")
	old := f.jwks(t)
	f.keys["ES256"], _ = newForeignKey("ES256")
	change(func(tx *feed.Tx, row *store.Issuer) error { row.Jwks = f.jwks(t); return tx.UpdateIssuer(row) })
	call("another key with the same kid", "ASSERTION_INVALID")
	change(func(tx *feed.Tx, row *store.Issuer) error { row.Jwks = old; return tx.UpdateIssuer(row) })
	call("the old key again", "ok")
	change(func(tx *feed.Tx, row *store.Issuer) error { return tx.DeleteIssuer("ci") })
	call("removed", "ASSERTION_INVALID")
}

// Assertions with thousands of unknown kids cause one fetch in ten seconds at a real issuer.
// Every refusal names the time to wait, and is on record. What happens in the next minutes is
// in TestUnknownKIDs of package federation.
func TestUnknownKIDsOfARealIssuer(t *testing.T) {
	f := newForeign(t, "web", "https://web.test", "ES256")
	var fetches atomic.Int64
	var set atomic.Value
	set.Store(f.jwks(t))
	web := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		fetches.Add(1)
		fmt.Fprint(rw, set.Load())
	}))
	defer web.Close()
	h := start(t, func(c *server.Config) { c.Issuer = thisServer })
	h.trustIssuer(t, f, func(row *store.Issuer) {
		row.Jwks, row.JwksURI, row.AllowPrivate = "", web.URL, true
		row.CAPEM = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}))
	})
	h.bind(t, "web", "job", h.service(t, "job"))
	if _, err := h.exchange(t, f.sign(t, "ES256", f.claims(thisServer, "job"))); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	const kids, callers = 2000, 50
	_, rest, _ := strings.Cut(f.sign(t, "ES256", f.claims(thisServer, "job")), ".") // without a key, nothing checks the signature
	client := watchwordv1.NewAuthServiceClient(h.own(t))
	var tasks sync.WaitGroup
	for c := range callers {
		tasks.Go(func() {
			for i := range kids / callers {
				header := fmt.Sprintf(`{"alg":"ES256","kid":"forged %d %d"}`, c, i)
				_, err := client.ExchangeToken(t.Context(), &watchwordv1.ExchangeTokenRequest{
					SubjectToken: base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + rest,
				})
				if got := outcome(err); got != "ISSUER_UNAVAILABLE" && got != "ASSERTION_INVALID" {
					t.Errorf("a forged kid: %s", got)
				} else if got == "ISSUER_UNAVAILABLE" && (retryDelay(err) <= 0 || retryDelay(err) > 11*time.Second) {
					t.Errorf("retry after %v", retryDelay(err))
				}
			}
		})
	}
	tasks.Wait()
	allowed := int64(time.Since(began)/(10*time.Second)) + 2 // the first fetch, and one fetch for each ten seconds that have begun
	if n := fetches.Load(); n > allowed {
		t.Errorf("%d fetches in %v, at most %d are allowed", n, time.Since(began), allowed)
	}
	eventually(t, func() bool {
		sum := int64(0)
		for _, n := range h.refusedExchanges(t) {
			sum += n
		}
		return sum == kids
	}, func() string { return fmt.Sprint("the record has ", h.refusedExchanges(t)) })
}

// retryDelay is the time to wait that a refusal names.
func retryDelay(err error) time.Duration {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// A service that was shown the token of a service account revokes nothing by the token, and the
// account itself revokes everything that it holds.
func TestAServiceRevokesItsOwnTokens(t *testing.T) {
	h := start(t, func(c *server.Config) { c.Issuer = thisServer })
	f := newForeign(t, "ci", "https://ci.test", "ES256")
	h.trustIssuer(t, f)
	for _, role := range []string{"reader", "admin"} {
		h.bind(t, "ci", role, h.service(t, "job-"+role, role))
		var tokens []string
		for _, audience := range []string{"billing", "watchword"} {
			resp, err := h.exchange(t, f.sign(t, "ES256", f.claims(thisServer, role)), audience)
			if err != nil {
				t.Fatal(err)
			}
			tokens = append(tokens, resp.GetAccessToken())
		}
		shown, own := tokens[0], tokens[1]
		_, err := h.sessions.RevokeUserSessions(bearing(t.Context(), shown), &watchwordv1.RevokeUserSessionsRequest{})
		wants(t, "by a token that was shown", outcome(err), "AUDIENCE_MISMATCH")
		wants(t, "afterwards", h.verify(t, shown), "ok")
		_, err = h.sessions.RevokeUserSessions(bearing(t.Context(), own), &watchwordv1.RevokeUserSessionsRequest{})
		wants(t, "by a token for watchword", outcome(err), "ok")
		wants(t, "afterwards", h.verify(t, shown), "TOKEN_REVOKED")
	}
}

// The token of a service account with three roles stays under 470 bytes, if the names of the
// account, the issuer and the audience have 20 characters.
func TestSizeOfAServiceToken(t *testing.T) {
	const name, iss = "abcdefghijklmnopqrst", "https://auth.a.test0"
	h := start(t, func(c *server.Config) { c.Issuer, c.Audience = iss, []string{name} })
	f := newForeign(t, "ci", "https://ci.test", "ES256")
	h.trustIssuer(t, f)
	h.bind(t, "ci", "job", h.service(t, name, "reader", "writer", "auditor"))
	h.behind(t, func(tx *feed.Tx) error {
		u, err := tx.UserByName(name)
		if err == nil {
			u.Version = time.Now().Unix() // a change of the account sets such a version
			err = tx.UpdateUser(u)
		}
		return err
	})
	resp, err := h.exchange(t, f.sign(t, "ES256", f.claims(iss, "job")))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(resp.GetAccessToken()); n >= 470 {
		t.Errorf("%d bytes", n)
	} else {
		t.Logf("%d bytes", n)
	}
}

// serviceAs is like service, for an account that an admin has changed.
func (h *harness) serviceAs(t testing.TB, name string, change func(u *store.User, now time.Time)) string {
	t.Helper()
	id := h.service(t, name)
	h.behind(t, func(tx *feed.Tx) error {
		u, err := tx.User(id)
		if err != nil {
			return err
		}
		change(u, tx.Now())
		return tx.UpdateUser(u)
	})
	return id
}

// unbind removes the bindings of an account.
func (h *harness) unbind(t testing.TB, account string) {
	t.Helper()
	h.behind(t, func(tx *feed.Tx) error {
		bindings, err := tx.Bindings(store.BindingFilter{UserID: account}, "", 100)
		for _, b := range bindings {
			if err == nil {
				err = tx.DeleteBinding(b.ID)
			}
		}
		return err
	})
}
