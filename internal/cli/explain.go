package cli

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/server"
)

// explainCmd prints what an access token says, and why the token is refused. With --addr a
// running server checks the token, and needs no login; without --addr the command checks the
// token on the database.
type explainCmd struct {
	place
	masterKeyFile
	Audience string `help:"The service that must be in the token. Default: any."`
}

// Help returns the text that --help prints below the first sentence about the command.
func (c *explainCmd) Help() string {
	return `The command never prints the token itself. What the token says of itself is shown also if
the signature is wrong: the last line says whether a service would accept the token.`
}

// Run explains the token on standard input, or the access token that `watchword login` has
// kept. The exit status is 0 for a refused token, too.
func (c *explainCmd) Run(ctx context.Context, t Terminal) error {
	if !c.onServer && !t.inIsGiven() {
		return usageError{errors.New("give the token on standard input")}
	}
	token, err := remote{c.Addr, c.connection}.accessToken(ctx, t)
	if err != nil {
		return err
	}
	if strings.HasPrefix(token, "wwrt_") {
		fmt.Fprintln(t.Out, "has the form of a refresh token: for Refresh and Logout of the server alone. Every service refuses it.")
		return nil
	}
	claims, ok := readClaims(token)
	if !ok {
		fmt.Fprintln(t.Out, "no token of Watchword: neither an access token (a JWT in three parts) nor a refresh token (which begins with wwrt_). Every service refuses it.")
		return nil
	}
	do := func(ctx context.Context, conn grpc.ClientConnInterface) error {
		return c.explain(ctx, t, conn, token, claims)
	}
	if c.onServer {
		defer t.progress()()
		return remote{c.Addr, c.connection}.with(ctx, do)
	}
	audience := slices.DeleteFunc(slices.Clone(claims.Audience), func(a string) bool { return a == "" })
	if len(audience) == 0 {
		audience = []string{caller.AdminAudience}
	}
	return c.withDatabase(ctx, t, server.LocalConfig{MasterKeyFile: c.MasterKeyFile, VerifyFor: audience}, do)
}

// explain prints what the token says, and what the server says of the token.
func (c *explainCmd) explain(ctx context.Context, t Terminal, conn grpc.ClientConnInterface, token string, claims *claims) error {
	keys, err := watchwordv1.NewTrustServiceClient(conn).GetKeySet(ctx, &watchwordv1.GetKeySetRequest{})
	if err != nil {
		return err
	}
	_, refused := watchwordv1.NewAuthServiceClient(conn).Verify(ctx, &watchwordv1.VerifyRequest{AccessToken: token, Audience: c.Audience})
	reason := refusal.Reason(refused)
	if refused != nil && reason == watchwordv1.ErrorReason_ERROR_REASON_UNSPECIFIED {
		return refused
	}
	verdict := "passes now"
	if c.Audience == "" {
		verdict += ", at the services of its audience"
	}
	if refused != nil {
		verdict = strings.TrimSpace("refused: " + explainError(refused) + ". " + claims.remedy(reason))
	}
	kid := "not in the key set: the server does not know the key, or has withdrawn it"
	if slices.ContainsFunc(keys.GetKeys(), func(k *watchwordv1.JsonWebKey) bool { return k.GetKid() == claims.KID }) {
		kid = "in the key set"
	}
	issuer := "of this server"
	if claims.Issuer != keys.GetIssuer() {
		issuer = "of another server: this one is " + keys.GetIssuer()
	}
	return table(t.Out, "", func(add addRow) error {
		return errors.Join(
			add("kind", cmp.Or(claims.Type, "JWT without a type")),
			add("user", nameAndID(claims.Username, claims.Subject)),
			add("actors", cmp.Or(claims.actors(), "-")),
			add("session", cmp.Or(claims.Session, "-")),
			add("client", cmp.Or(claims.ClientID, "-")),
			add("key", cmp.Or(claims.KID, "-")+" "+claims.Algorithm+", "+kid),
			add("issuer", cmp.Or(claims.Issuer, "-")+", "+issuer),
			add("audience", strings.Join(claims.Audience, ",")),
			add("issued", instant(claims.IssuedAt)),
			add("expires", instant(claims.Expires)),
			add("verdict", verdict))
	})
}

// remedy says what a user or a program can do after a reason of a refused access token.
func (c *claims) remedy(reason watchwordv1.ErrorReason) string {
	switch reason {
	case watchwordv1.ErrorReason_ERROR_REASON_AUDIENCE_MISMATCH:
		return "The client must ask for a token for this audience."
	case watchwordv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED, watchwordv1.ErrorReason_ERROR_REASON_TOKEN_STALE, watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED:
	default:
		return ""
	}
	switch {
	case c.Actor != nil:
		return "The service " + nameAndID(c.Actor.Username, "") + " must get another token for its caller."
	case c.Session == "":
		return "The service must exchange the token of its platform again."
	case reason == watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED:
		return "The user must log in again."
	case reason == watchwordv1.ErrorReason_ERROR_REASON_TOKEN_STALE:
		return "The client must refresh, and gets a token with the new rights."
	}
	return "The client must refresh."
}

// claims holds the claims that an access token carries, unchecked.
type claims struct {
	header
	payload
}

type header struct {
	KID       string `json:"kid"`
	Algorithm string `json:"alg"`
	Type      string `json:"typ"`
}

type payload struct {
	Issuer   string   `json:"iss"`
	Subject  string   `json:"sub"`
	Username string   `json:"username"`
	Session  string   `json:"sid"`
	ClientID string   `json:"client_id"`
	Audience audience `json:"aud"`
	IssuedAt float64  `json:"iat"`
	Expires  float64  `json:"exp"`
	Actor    *actor   `json:"act"`
}

// actor is a service that acts for the user, and inside it the service that called before (the
// claim act, RFC 8693 section 4.1).
type actor struct {
	Subject  string `json:"sub"`
	Username string `json:"username"`
	Before   *actor `json:"act"`
}

// actors lists the services that act for the user, the service that called last first.
func (p payload) actors() string {
	var all []string
	for a := p.Actor; a != nil; a = a.Before {
		all = append(all, nameAndID(a.Username, a.Subject))
	}
	return strings.Join(all, ", ")
}

// audience holds the claim aud, which JSON gives as a text or as a list (RFC 7519 section
// 4.1.3).
type audience []string

// UnmarshalJSON reads the claim aud in both forms, a text and a list.
func (a *audience) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(a))
}

// readClaims decodes an access token (a JWT) without checking the signature; readClaims returns
// false for a text that is no JWT.
func readClaims(token string) (*claims, bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, false
	}
	c := new(claims)
	for i, into := range []any{&c.header, &c.payload} {
		data, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil || json.Unmarshal(data, into) != nil {
			return nil, false
		}
	}
	return c, true
}

// instant returns a claim's time (seconds since 1970), and the distance to the present time of
// this machine.
func instant(seconds float64) string {
	if seconds <= 0 || seconds > 1<<40 {
		return "-"
	}
	t := time.Unix(int64(seconds), 0).UTC()
	if seconds > 1<<33 { // for a time after the year 2242, a time.Duration could not hold the distance
		return t.Format(time.RFC3339)
	}
	if left := time.Until(t).Round(time.Second); left >= 0 {
		return fmt.Sprintf("%s, in %s", t.Format(time.RFC3339), left)
	}
	return fmt.Sprintf("%s, %s ago", t.Format(time.RFC3339), time.Since(t).Round(time.Second))
}
