package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/server"
	"github.com/watchword-auth/watchword/internal/user"
)

// serviceCmd holds the commands about service accounts.
type serviceCmd struct {
	Create   serviceCreateCmd   `cmd:"" help:"Make a service account, which has no password."`
	List     serviceListCmd     `cmd:"" help:"List service accounts."`
	Show     serviceShowCmd     `cmd:"" help:"Show a service account and its bindings."`
	Bind     serviceBindCmd     `cmd:"" help:"Let tokens of a trusted issuer sign in a service account."`
	Bindings serviceBindingsCmd `cmd:"" help:"List the bindings of service accounts."`
	Unbind   serviceUnbindCmd   `cmd:"" help:"Remove a binding of a service account and revoke its access tokens, and those that it has delegated."`
	Set      serviceSetCmd      `cmd:"" help:"Replace the roles or the audiences of a service account. The access tokens of the account become stale."`
	Rename   serviceRenameCmd   `cmd:"" help:"Give a service account another name. The access tokens of the account become stale."`
	Disable  serviceDisableCmd  `cmd:"" help:"Disable a service account and revoke its access tokens, and those that it has delegated."`
	Enable   serviceEnableCmd   `cmd:"" help:"Enable a service account."`
	Delete   serviceDeleteCmd   `cmd:"" help:"Delete a service account and revoke its access tokens, and those that it has delegated. This cannot be undone."`
}

// namedService holds the flags and the argument of a command about one service account.
type namedService struct {
	api
	Name string `arg:"" help:"Name of the service account."`
}

// change finds the service account of the command, and calls do with the account, as
// [named.change] does for a user.
func (n *namedService) change(ctx context.Context, t Terminal, do accountChange) error {
	account := named{n.api, n.Name}
	return account.changeOf(ctx, t, watchwordv1.UserKind_USER_KIND_SERVICE, server.LocalConfig{}, do)
}

// update calls UpdateUser for the named fields of the service account; set puts the new values
// into the message.
func (n *namedService) update(ctx context.Context, t Terminal, fields []string, set func(*watchwordv1.User)) error {
	return n.change(ctx, t, updateAccount(fields, set))
}

// rights holds the flags for the roles and the audiences of a service account. The flag
// --audience has a variable of its own, since WATCHWORD_AUDIENCE holds the audiences of all
// services for `watchword serve`.
type rights struct {
	Role        []string `help:"A role; repeat the flag for more."`
	Audience    []string `env:"WATCHWORD_SERVICE_AUDIENCE" help:"A name of the service in the audience of tokens; repeat the flag for more. The service may delegate only tokens for one of these."`
	DelegatesTo []string `help:"An audience to which the service may carry its callers' identity; repeat the flag for more."`
}

// check checks the form of roles and audiences before the command opens the database. A
// malformed role or audience is wrong usage (exit status 2).
func (r rights) check() error {
	errs := []error{rolesOf(r.Role)}
	for flag, names := range map[string][]string{"--audience": r.Audience, "--delegates-to": r.DelegatesTo} {
		if _, err := user.ParseAudiences(names); err != nil {
			errs = append(errs, usageError{fmt.Errorf("%s: %w", flag, err)})
		}
	}
	return errors.Join(errs...)
}

type serviceCreateCmd struct {
	namedService
	rights
}

// Help returns the text that --help prints below the first sentence about the command.
func (c *serviceCreateCmd) Help() string {
	return `A service account signs in with a token of a trusted issuer, such as Kubernetes or SPIRE.
On PostgreSQL the first service account waits until watchword migrate --finish has excluded
earlier versions of Watchword.`
}

// Run makes a service account and prints the id: alone for a script, and in a sentence at a
// terminal.
func (c *serviceCreateCmd) Run(ctx context.Context, t Terminal) error {
	if err := errors.Join(username(c.Name), c.check()); err != nil {
		return err
	}
	return c.with(ctx, t, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		resp, err := watchwordv1.NewUserServiceClient(conn).CreateUser(ctx, &watchwordv1.CreateUserRequest{
			Username: c.Name, Kind: watchwordv1.UserKind_USER_KIND_SERVICE, Roles: c.Role, Audiences: c.Audience, DelegatesTo: c.DelegatesTo,
		})
		if err == nil {
			t.printMade("service account", resp.GetUser())
		}
		return err
	})
}

type serviceListCmd struct {
	api
	asJSON
}

// Run lists all service accounts, a page at a time.
func (c *serviceListCmd) Run(ctx context.Context, t Terminal) error {
	return c.with(ctx, t, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		each := eachUser(ctx, conn, watchwordv1.UserKind_USER_KIND_SERVICE)
		return list(t, c.asJSON, "ID\tNAME\tROLES\tAUDIENCES\tDELEGATES TO\tSTATE\tCREATED", each, func(u *watchwordv1.User) []string {
			return []string{u.GetId(), u.GetUsername(), strings.Join(u.GetRoles(), ","), strings.Join(u.GetAudiences(), ","),
				strings.Join(u.GetDelegatesTo(), ","), userState(u), moment(u.GetCreatedAt())}
		})
	})
}

type serviceShowCmd struct {
	namedService
	asJSON
}

// Run prints what the server knows of a service account, a field in each line.
func (c *serviceShowCmd) Run(ctx context.Context, t Terminal) error {
	return c.bindings(ctx, t, func(ctx context.Context, service watchwordv1.FederationServiceClient, u *watchwordv1.User) error {
		if c.JSON {
			return t.printLine(u)
		}
		return table(t.Out, "", func(add addRow) error {
			err := errors.Join(add("id", u.GetId()), add("name", u.GetUsername()), add("roles", strings.Join(u.GetRoles(), ",")),
				add("audiences", strings.Join(u.GetAudiences(), ",")), add("delegates to", strings.Join(u.GetDelegatesTo(), ",")),
				add("state", userState(u)), add("created", moment(u.GetCreatedAt())), add("updated", moment(u.GetUpdatedAt())))
			if err != nil {
				return err
			}
			return eachBinding(ctx, service, &watchwordv1.ListBindingsRequest{UserId: u.GetId()}, func(b *watchwordv1.Binding) error {
				return add("binding", strings.TrimSpace(b.GetId()+" "+b.GetIssuer()+" "+b.GetSubject()+" "+claimsOf(b)))
			})
		})
	})
}

type serviceSetCmd struct {
	namedService
	rights
	NoRoles       bool `help:"Remove every role."`
	NoAudience    bool `help:"Remove every audience of the service."`
	NoDelegatesTo bool `help:"Let the service delegate to no audience."`
}

// Help returns the text that --help prints below the first sentence about the command.
func (c *serviceSetCmd) Help() string {
	return `Each flag replaces one list. Other lists stay. The access tokens of the service account become
stale, and so do the tokens that the service has delegated.`
}

// fields returns the names of the fields of the account that the flags change. Errors: if no
// flag names a list, or if flags both set and empty a list.
func (c *serviceSetCmd) fields() (fields []string, err error) {
	for _, list := range []struct {
		field   string
		names   []string
		removed bool
	}{{"roles", c.Role, c.NoRoles}, {"audiences", c.Audience, c.NoAudience}, {"delegates_to", c.DelegatesTo, c.NoDelegatesTo}} {
		switch {
		case len(list.names) > 0 && list.removed:
			return nil, fmt.Errorf("%s: give a new list, or remove the list", list.field)
		case len(list.names) > 0 || list.removed:
			fields = append(fields, list.field)
		}
	}
	if len(fields) == 0 {
		return nil, errors.New("give a new list by --role, --audience or --delegates-to, or remove a list by --no-roles, --no-audience or --no-delegates-to")
	}
	return fields, nil
}

// Validate returns the error of [serviceSetCmd.fields]. The parser kong calls Validate, and the
// exit status of an error is 2.
func (c *serviceSetCmd) Validate() error {
	_, err := c.fields()
	return err
}

// Run replaces roles and audiences of the service account.
func (c *serviceSetCmd) Run(ctx context.Context, t Terminal) error {
	fields, err := c.fields()
	if err := errors.Join(err, c.check()); err != nil {
		return err
	}
	return c.update(ctx, t, fields, func(u *watchwordv1.User) { u.Roles, u.Audiences, u.DelegatesTo = c.Role, c.Audience, c.DelegatesTo })
}

type serviceRenameCmd struct {
	namedService
	NewName string `arg:"" help:"The new name."`
}

// Run gives the service account another name.
func (c *serviceRenameCmd) Run(ctx context.Context, t Terminal) error {
	if err := username(c.NewName); err != nil {
		return err
	}
	return c.update(ctx, t, []string{"username"}, func(u *watchwordv1.User) { u.Username = c.NewName })
}

type serviceDisableCmd struct{ namedService }

// Run disables the service account, which revokes the access tokens of the account.
func (c *serviceDisableCmd) Run(ctx context.Context, t Terminal) error {
	return c.update(ctx, t, []string{"disabled"}, func(u *watchwordv1.User) { u.Disabled = true })
}

type serviceEnableCmd struct{ namedService }

// Run enables a disabled service account. Access tokens from before the account was disabled
// stay revoked.
func (c *serviceEnableCmd) Run(ctx context.Context, t Terminal) error {
	return c.update(ctx, t, []string{"disabled"}, func(u *watchwordv1.User) { u.Disabled = false })
}

type serviceDeleteCmd struct{ namedService }

// Run deletes the service account. Records of the account stay in the security record.
func (c *serviceDeleteCmd) Run(ctx context.Context, t Terminal) error {
	return c.change(ctx, t, deleteAccount)
}
