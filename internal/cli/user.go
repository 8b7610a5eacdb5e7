package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/server"
	"github.com/watchword-auth/watchword/internal/user"
)

// userCmd holds the commands about users.
type userCmd struct {
	Create      userCreateCmd  `cmd:"" help:"Make a user."`
	List        userListCmd    `cmd:"" help:"List users."`
	Show        userShowCmd    `cmd:"" help:"Show a user."`
	Rename      userRenameCmd  `cmd:"" help:"Give a user another username. The user's access tokens are refreshed with the new name."`
	Disable     userDisableCmd `cmd:"" help:"Disable a user and end the user's sessions."`
	Enable      userEnableCmd  `cmd:"" help:"Enable a user."`
	SetRoles    userRolesCmd   `cmd:"" help:"Replace the roles of a user. The user's access tokens are refreshed with the new roles."`
	SetPassword userPassCmd    `cmd:"" help:"Give a user a new password and end the user's sessions."`
	Delete      userDeleteCmd  `cmd:"" help:"Delete a user. This cannot be undone."`
}

// newPassword holds the flags of a command that sets a password. A running server checks the
// password by the server's own rules, and ignores the flags of the command.
type newPassword struct {
	server.PasswordRules
	PasswordStdin bool `help:"Read the password from standard input."`
}

// read reads the new password, twice at a terminal. For a command on a database, read first
// reads the rules for passwords, by which the API checks the password.
func (n newPassword) read(ctx context.Context, t Terminal, a *api) (text string, local server.LocalConfig, err error) {
	if a.TokenStdin && (n.PasswordStdin || !t.inIsTerminal()) {
		return "", local, usageError{errors.New("--token-stdin: standard input holds the token, so the password must come from a terminal")}
	}
	if !a.onServer {
		if local.Policy, err = n.Policy(); err != nil {
			return "", local, err
		}
	}
	if text, err = t.readPassword(ctx, n.PasswordStdin, true); err != nil {
		return "", local, err
	}
	if _, err = password.Parse(text); err != nil {
		err = fmt.Errorf("password: %w", err)
	}
	return text, local, err
}

// named holds the flags and the argument of a command about one user.
type named struct {
	api
	Name string `arg:"" help:"Username."`
}

// username checks the form of a username before the database is opened or a password is asked
// for. A malformed username is wrong usage (exit status 2).
func username(text string) error {
	if _, err := user.ParseName(text); err != nil {
		return usageError{fmt.Errorf("username: %w", err)}
	}
	return nil
}

// rolesOf checks the form of the roles in --role before the database is opened. A malformed
// role is wrong usage.
func rolesOf(names []string) error {
	if _, err := user.ParseRoles(names); err != nil {
		return usageError{fmt.Errorf("--role: %w", err)}
	}
	return nil
}

// change finds the user, and calls do with the user. Errors: USER_NOT_FOUND, with the name; an
// error that names the commands for service accounts, if the account is one.
func (n *named) change(ctx context.Context, t Terminal, local server.LocalConfig, do accountChange) error {
	return n.changeOf(ctx, t, watchwordv1.UserKind_USER_KIND_USER, local, do)
}

// accountChange changes or shows an account.
type accountChange func(context.Context, watchwordv1.UserServiceClient, *watchwordv1.User) error

// changeOf finds the account of a kind (user or service account) with the name, and calls do
// with the account.
func (n *named) changeOf(ctx context.Context, t Terminal, kind watchwordv1.UserKind, local server.LocalConfig, do accountChange) error {
	if err := username(n.Name); err != nil {
		return err
	}
	return n.withLocal(ctx, t, local, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		u, err := accountOf(ctx, conn, n.Name, kind)
		if err != nil {
			return err
		}
		return do(ctx, watchwordv1.NewUserServiceClient(conn), u)
	})
}

// accountOf returns the account of a kind with a name. Errors: USER_NOT_FOUND, with the name;
// an error that names the right commands, if the account has the other kind.
func accountOf(ctx context.Context, conn grpc.ClientConnInterface, name string, kind watchwordv1.UserKind) (*watchwordv1.User, error) {
	u, err := findUser(ctx, conn, name)
	switch {
	case err != nil || u.GetKind() == kind:
		return u, err
	case u.GetKind() == watchwordv1.UserKind_USER_KIND_SERVICE:
		return nil, fmt.Errorf("%s is a service account, which has no password and no session: use the commands of watchword service", u.GetUsername())
	}
	return nil, fmt.Errorf("%s is a user, and no service account: use the commands of watchword user", u.GetUsername())
}

// update calls UpdateUser for one field of the user; set puts the new value into the message.
func (n *named) update(ctx context.Context, t Terminal, field string, set func(*watchwordv1.User)) error {
	return n.change(ctx, t, server.LocalConfig{}, updateAccount([]string{field}, set))
}

// updateAccount returns the [accountChange] that calls UpdateUser for the named fields; set
// puts the new values into the message.
func updateAccount(fields []string, set func(*watchwordv1.User)) accountChange {
	return func(ctx context.Context, users watchwordv1.UserServiceClient, u *watchwordv1.User) error {
		set(u)
		_, err := users.UpdateUser(ctx, &watchwordv1.UpdateUserRequest{User: u, UpdateMask: &fieldmaskpb.FieldMask{Paths: fields}})
		return err
	}
}

// deleteAccount is the [accountChange] that deletes an account.
func deleteAccount(ctx context.Context, users watchwordv1.UserServiceClient, u *watchwordv1.User) error {
	_, err := users.DeleteUser(ctx, &watchwordv1.DeleteUserRequest{Id: u.GetId()})
	return err
}

type userCreateCmd struct {
	named
	newPassword
	Role []string `help:"A role; repeat the flag for more."`
}

// Run makes a user and prints the id: alone for a script, and in a sentence at a terminal.
// Run opens the database only after Run has checked the arguments and read the password.
func (c *userCreateCmd) Run(ctx context.Context, t Terminal) error {
	if err := errors.Join(username(c.Name), rolesOf(c.Role)); err != nil {
		return err
	}
	pw, local, err := c.read(ctx, t, &c.api)
	if err != nil {
		return err
	}
	return c.withLocal(ctx, t, local, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		resp, err := watchwordv1.NewUserServiceClient(conn).CreateUser(ctx, &watchwordv1.CreateUserRequest{
			Username: c.Name, Password: pw, Roles: c.Role,
		})
		if err == nil {
			t.printMade("user", resp.GetUser())
		}
		return err
	})
}

// printMade prints a new account. kind is the kind of the account in words, such as "service
// account".
func (t Terminal) printMade(kind string, u *watchwordv1.User) {
	if !t.outIsTerminal() {
		fmt.Fprintln(t.Out, u.GetId())
		return
	}
	roles := "no roles"
	if len(u.GetRoles()) > 0 {
		roles = "the roles " + strings.Join(u.GetRoles(), ", ")
	}
	fmt.Fprintf(t.Out, "made the %s %s with %s and the id %s\n", kind, u.GetUsername(), roles, u.GetId())
}

type userListCmd struct {
	api
	asJSON
}

// eachUser returns a function that calls show for each account of a kind, a page at a time: each
// page is a transaction of its own, and a long list blocks nothing.
func eachUser(ctx context.Context, conn grpc.ClientConnInterface, kind watchwordv1.UserKind) func(show func(*watchwordv1.User) error) error {
	users := watchwordv1.NewUserServiceClient(conn)
	return func(show func(*watchwordv1.User) error) error {
		return pages(func(token string) (string, error) {
			resp, err := users.ListUsers(ctx, &watchwordv1.ListUsersRequest{PageSize: pageSize, PageToken: token, Kind: kind})
			for _, u := range resp.GetUsers() {
				if err := show(u); err != nil {
					return "", err
				}
			}
			return resp.GetNextPageToken(), err
		})
	}
}

// Run lists all users; `watchword service list` lists the service accounts.
func (c *userListCmd) Run(ctx context.Context, t Terminal) error {
	return c.with(ctx, t, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		each := eachUser(ctx, conn, watchwordv1.UserKind_USER_KIND_USER)
		return list(t, c.asJSON, "ID\tUSERNAME\tROLES\tSTATE\tCREATED", each, func(u *watchwordv1.User) []string {
			return []string{u.GetId(), u.GetUsername(), strings.Join(u.GetRoles(), ","), userState(u), moment(u.GetCreatedAt())}
		})
	})
}

func userState(u *watchwordv1.User) string {
	if u.GetDisabled() {
		return "disabled"
	}
	return "enabled"
}

type userShowCmd struct {
	named
	asJSON
}

// Run prints what the server knows of a user, a field in each line.
func (c *userShowCmd) Run(ctx context.Context, t Terminal) error {
	return c.change(ctx, t, server.LocalConfig{}, func(_ context.Context, _ watchwordv1.UserServiceClient, u *watchwordv1.User) error {
		if c.JSON {
			return t.printLine(u)
		}
		return table(t.Out, "", func(add addRow) error {
			return errors.Join(add("id", u.GetId()), add("username", u.GetUsername()), add("roles", strings.Join(u.GetRoles(), ",")),
				add("state", userState(u)), add("created", moment(u.GetCreatedAt())), add("updated", moment(u.GetUpdatedAt())))
		})
	})
}

type userRenameCmd struct {
	named
	NewName string `arg:"" help:"The new username."`
}

// Run gives the user another name. The user's sessions continue.
func (c *userRenameCmd) Run(ctx context.Context, t Terminal) error {
	if err := username(c.NewName); err != nil {
		return err
	}
	return c.update(ctx, t, "username", func(u *watchwordv1.User) { u.Username = c.NewName })
}

type userDisableCmd struct{ named }

// Run disables the user, which ends every session of the user.
func (c *userDisableCmd) Run(ctx context.Context, t Terminal) error {
	return c.update(ctx, t, "disabled", func(u *watchwordv1.User) { u.Disabled = true })
}

type userEnableCmd struct{ named }

// Run enables the user. Sessions that have ended stay ended.
func (c *userEnableCmd) Run(ctx context.Context, t Terminal) error {
	return c.update(ctx, t, "disabled", func(u *watchwordv1.User) { u.Disabled = false })
}

type userRolesCmd struct {
	named
	Role    []string `help:"A role; repeat the flag for more."`
	NoRoles bool     `help:"Remove every role."`
}

// Validate returns an error unless either roles or --no-roles are given: a forgotten --role
// must remove nothing. The parser kong calls Validate, and the exit status of an error is 2.
func (c *userRolesCmd) Validate() error {
	if (len(c.Role) > 0) == c.NoRoles {
		return errors.New("give all roles of the user by --role, or --no-roles to remove every role")
	}
	return nil
}

// Run replaces the roles of the user. If the user has these roles already, Run changes
// nothing.
func (c *userRolesCmd) Run(ctx context.Context, t Terminal) error {
	if err := rolesOf(c.Role); err != nil {
		return err
	}
	return c.update(ctx, t, "roles", func(u *watchwordv1.User) { u.Roles = c.Role })
}

type userPassCmd struct {
	named
	newPassword
}

// Run sets a new password and ends the user's sessions: an old password may have been
// stolen.
func (c *userPassCmd) Run(ctx context.Context, t Terminal) error {
	if err := username(c.Name); err != nil {
		return err
	}
	pw, local, err := c.read(ctx, t, &c.api)
	if err != nil {
		return err
	}
	return c.change(ctx, t, local, func(ctx context.Context, users watchwordv1.UserServiceClient, u *watchwordv1.User) error {
		_, err := users.SetPassword(ctx, &watchwordv1.SetPasswordRequest{Id: u.GetId(), Password: pw})
		return err
	})
}

type userDeleteCmd struct{ named }

// Run deletes the user. Records of the user stay in the security record, and
// `watchword audit --user` still finds the records by the name.
func (c *userDeleteCmd) Run(ctx context.Context, t Terminal) error {
	return c.change(ctx, t, server.LocalConfig{}, deleteAccount)
}
