package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/grpc"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// ofIssuer holds the flag that names a trusted issuer. The environment variable of the flag
// differs from WATCHWORD_ISSUER, since WATCHWORD_ISSUER sets the issuer of `watchword serve`.
type ofIssuer struct {
	Issuer string `env:"WATCHWORD_TRUSTED_ISSUER" required:"" placeholder:"NAME" help:"Name of the trusted issuer."`
}

type serviceBindCmd struct {
	namedService
	ofIssuer
	Subject string   `required:"" help:"The claim sub of the tokens, byte for byte."`
	Claim   []string `sep:"none" placeholder:"NAME=TEXT" help:"A further claim that the tokens must have; repeat the flag for more."`
}

// Help returns the text that --help prints below the first sentence about the command.
func (c *serviceBindCmd) Help() string {
	return `A token of the issuer signs in the service account, if the token has exactly this subject and
each of the further claims. Of several bindings that match, the one with most claims counts.

--claim NAME=TEXT asks for a text, and --claim NAME:=VALUE for a number, true or false. A NAME
that begins with / leads into the claim (a JSON Pointer, RFC 6901):
--claim /kubernetes.io/namespace=shop. In a JSON Pointer, ~1 stands for / and ~0 for ~.`
}

// Run binds a service account to tokens of a trusted issuer, and prints the id of the binding.
func (c *serviceBindCmd) Run(ctx context.Context, t Terminal) error {
	binding := &watchwordv1.Binding{Issuer: c.Issuer, Subject: c.Subject}
	for _, text := range c.Claim {
		claim, err := parseClaim(text)
		if err != nil {
			return usageError{fmt.Errorf("--claim: %w", err)}
		}
		binding.Claims = append(binding.Claims, claim)
	}
	return c.bindings(ctx, t, func(ctx context.Context, service watchwordv1.FederationServiceClient, u *watchwordv1.User) error {
		binding.UserId = u.GetId()
		resp, err := service.CreateBinding(ctx, &watchwordv1.CreateBindingRequest{Binding: binding})
		if err != nil {
			return aboutIssuer(err, c.Issuer)
		}
		if t.outIsTerminal() {
			fmt.Fprintf(t.Out, "bound %s by the binding %s\n", u.GetUsername(), resp.GetBinding().GetId())
			return nil
		}
		_, err = fmt.Fprintln(t.Out, resp.GetBinding().GetId())
		return err
	})
}

// bindings finds the service account that the command names, and calls do with the account and
// a client of FederationService.
func (n *namedService) bindings(ctx context.Context, t Terminal, do func(context.Context, watchwordv1.FederationServiceClient, *watchwordv1.User) error) error {
	if err := username(n.Name); err != nil {
		return err
	}
	return n.with(ctx, t, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		u, err := accountOf(ctx, conn, n.Name, watchwordv1.UserKind_USER_KIND_SERVICE)
		if err != nil {
			return err
		}
		return do(ctx, watchwordv1.NewFederationServiceClient(conn), u)
	})
}

// parseClaim parses a value of the flag --claim, such as NAME=TEXT.
func parseClaim(text string) (*watchwordv1.BoundClaim, error) {
	name, value, found := strings.Cut(text, "=")
	name, typed := strings.CutSuffix(name, ":")
	if !found || name == "" {
		return nil, errors.New("give NAME=TEXT, or NAME:=VALUE for a number, true or false")
	}
	claim := &watchwordv1.BoundClaim{Path: []string{name}}
	if pointer, ok := strings.CutPrefix(name, "/"); ok {
		claim.Path = strings.Split(pointer, "/")
		for i, part := range claim.Path {
			if strings.Contains(strings.NewReplacer("~0", "", "~1", "").Replace(part), "~") {
				return nil, errors.New("a JSON Pointer writes ~ as ~0, and / within a name as ~1")
			}
			claim.Path[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(part)
		}
	}
	if !typed {
		claim.Value = &watchwordv1.BoundClaim_StringValue{StringValue: value}
		return claim, nil
	}
	var parsed any
	err := json.Unmarshal([]byte(value), &parsed)
	switch v := parsed.(type) {
	case float64:
		claim.Value = &watchwordv1.BoundClaim_NumberValue{NumberValue: v}
	case bool:
		claim.Value = &watchwordv1.BoundClaim_BoolValue{BoolValue: v}
	default:
		err = errors.New("after := comes a number, true or false; a text follows = alone")
	}
	return claim, err
}

// formatClaim returns a claim of a binding in the form that the flag --claim takes.
func formatClaim(c *watchwordv1.BoundClaim) string {
	name := ""
	if path := c.GetPath(); len(path) == 1 && !strings.ContainsAny(path[0], "=/~") && !strings.HasSuffix(path[0], ":") {
		name = path[0]
	} else {
		for _, part := range path {
			name += "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(part)
		}
	}
	switch v := c.GetValue().(type) {
	case *watchwordv1.BoundClaim_NumberValue:
		return name + ":=" + strconv.FormatFloat(v.NumberValue, 'g', -1, 64)
	case *watchwordv1.BoundClaim_BoolValue:
		return name + ":=" + strconv.FormatBool(v.BoolValue)
	}
	return name + "=" + c.GetStringValue()
}

type serviceUnbindCmd struct {
	namedService
	ID string `arg:"" name:"binding" help:"Id of the binding, as service show prints it."`
}

// Run removes a binding of the service account, and revokes the access tokens of the account.
func (c *serviceUnbindCmd) Run(ctx context.Context, t Terminal) error {
	return c.bindings(ctx, t, func(ctx context.Context, service watchwordv1.FederationServiceClient, u *watchwordv1.User) error {
		found := false
		err := eachBinding(ctx, service, &watchwordv1.ListBindingsRequest{UserId: u.GetId()}, func(b *watchwordv1.Binding) error {
			found = found || b.GetId() == c.ID
			return nil
		})
		switch {
		case err != nil:
			return err
		case !found: // the binding belongs to another account: the operator has mistyped the id or the name
			return fmt.Errorf("%s has no binding with this id: see watchword service show", u.GetUsername())
		}
		_, err = service.DeleteBinding(ctx, &watchwordv1.DeleteBindingRequest{Id: c.ID})
		return err
	})
}

type serviceBindingsCmd struct {
	api
	asJSON
	Name   string `arg:"" optional:"" help:"Name of the service account. Default: every service account."`
	Issuer string `env:"WATCHWORD_TRUSTED_ISSUER" placeholder:"NAME" help:"Only bindings of the trusted issuer with this name."`
}

// Run lists the bindings of service accounts, and reads the list in pages.
func (c *serviceBindingsCmd) Run(ctx context.Context, t Terminal) error {
	return c.with(ctx, t, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		filter := &watchwordv1.ListBindingsRequest{Issuer: c.Issuer}
		if c.Name != "" {
			u, err := accountOf(ctx, conn, c.Name, watchwordv1.UserKind_USER_KIND_SERVICE)
			if err != nil {
				return err
			}
			filter.UserId = u.GetId()
		}
		each := func(show func(*watchwordv1.Binding) error) error {
			return eachBinding(ctx, watchwordv1.NewFederationServiceClient(conn), filter, show)
		}
		names := usernames{watchwordv1.NewUserServiceClient(conn), map[string]string{}}
		return list(t, c.asJSON, "ID\tISSUER\tSUBJECT\tCLAIMS\tSERVICE\tCREATED", each, func(b *watchwordv1.Binding) []string {
			return []string{b.GetId(), b.GetIssuer(), b.GetSubject(), claimsOf(b), nameAndID(names.of(ctx, b.GetUserId()), b.GetUserId()), moment(b.GetCreatedAt())}
		})
	})
}

// usernames reads the names of users by their ids, each name once.
type usernames struct {
	users watchwordv1.UserServiceClient
	read  map[string]string // by id
}

// of returns the name of a user, and "" for a user that cannot be read, such as a user that was
// deleted a moment ago: a table shows the id of such a user alone.
func (n usernames) of(ctx context.Context, id string) string {
	name, known := n.read[id]
	if !known {
		resp, _ := n.users.GetUser(ctx, &watchwordv1.GetUserRequest{Key: &watchwordv1.GetUserRequest_Id{Id: id}})
		name = resp.GetUser().GetUsername()
		n.read[id] = name
	}
	return name
}

// eachBinding calls show for each binding that req asks for, and reads the list in pages.
func eachBinding(ctx context.Context, service watchwordv1.FederationServiceClient, req *watchwordv1.ListBindingsRequest, show func(*watchwordv1.Binding) error) error {
	return pages(func(token string) (string, error) {
		req.PageSize, req.PageToken = pageSize, token
		resp, err := service.ListBindings(ctx, req)
		for _, b := range resp.GetBindings() {
			if err := show(b); err != nil {
				return "", err
			}
		}
		return resp.GetNextPageToken(), err
	})
}

func claimsOf(b *watchwordv1.Binding) string {
	var texts []string
	for _, c := range b.GetClaims() {
		texts = append(texts, formatClaim(c))
	}
	return strings.Join(texts, " ")
}
