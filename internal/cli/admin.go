package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/server"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/user"
)

// record returns the security record for a command. The log lines that follow each
// record are dropped: the person at the terminal sees the command's output.
func record(s *store.Store) *audit.Log { return audit.New(s, slog.New(slog.DiscardHandler)) }

// userCmd holds the commands about users. They work on the database itself and need no
// running server, so an operator can help when no admin can log in.
type userCmd struct {
	Create      userCreateCmd  `cmd:"" help:"Make a user."`
	List        userListCmd    `cmd:"" help:"List users."`
	Disable     userDisableCmd `cmd:"" help:"Disable a user and end the user's sessions."`
	Enable      userEnableCmd  `cmd:"" help:"Enable a user."`
	SetRoles    userRolesCmd   `cmd:"" help:"Replace the roles of a user. The user's access tokens are refreshed with the new roles."`
	SetPassword userPassCmd    `cmd:"" help:"Give a user a new password and end the user's sessions."`
	Delete      userDeleteCmd  `cmd:"" help:"Delete a user. This cannot be undone."`
}

// users opens the database and calls do with its users. A server that runs on the same
// database learns of the changes by polling, within a second. policy is for new passwords.
func (d datastore) users(ctx context.Context, policy password.Policy, do func(*user.Users) error) error {
	return d.with(ctx, func(s *store.Store) error {
		return do(user.New(s, feed.Direct(s), password.NewPool(password.Config{Policy: policy}), record(s)))
	})
}

// newPassword holds the flags of a command that sets a password. The rules are the server's
// if the operator gives both the same flags or variables.
type newPassword struct {
	server.PasswordRules
	PasswordStdin bool `help:"Read the password from standard input."`
}

// read reads the rules and then the new password, at a terminal twice. Package user checks
// the password by the rules, with the username.
func (n newPassword) read(ctx context.Context, t Terminal) (pw password.Password, policy password.Policy, err error) {
	if policy, err = n.Policy(); err != nil {
		return pw, policy, err
	}
	text, err := t.readPassword(ctx, n.PasswordStdin, true)
	if err != nil {
		return pw, policy, err
	}
	if pw, err = password.Parse(text); err != nil {
		err = fmt.Errorf("password: %w", err)
	}
	return pw, policy, err
}

// named holds the flags and the argument of a command about one user.
type named struct {
	datastore
	Name string `arg:"" help:"Username."`
}

// parse folds the username, before the database is opened. A malformed name is wrong
// usage.
func (n named) parse() (user.Name, error) {
	name, err := user.ParseName(n.Name)
	if err != nil {
		err = usageError{fmt.Errorf("username: %w", err)}
	}
	return name, err
}

// change finds the user by name, and calls do with the user's id. Errors:
// user.ErrNotFound, with the name.
func (n named) change(ctx context.Context, policy password.Policy, do func(users *user.Users, id string) error) error {
	name, err := n.parse()
	if err != nil {
		return err
	}
	return n.users(ctx, policy, func(users *user.Users) error {
		row, err := users.GetByName(ctx, name)
		if err != nil {
			return fmt.Errorf("%w: %s", err, name)
		}
		return do(users, row.ID)
	})
}

type userCreateCmd struct {
	named
	newPassword
	Role []string `help:"A role; repeat the flag for more."`
}

// Run makes a user and prints the id: alone for a script, and in a sentence at a terminal.
// Run checks the arguments and
// reads the password before it opens the database.
func (c *userCreateCmd) Run(ctx context.Context, t Terminal) error {
	name, err := c.parse()
	if err != nil {
		return err
	}
	roles, err := user.ParseRoles(c.Role)
	if err != nil {
		return usageError{fmt.Errorf("--role: %w", err)}
	}
	pw, policy, err := c.read(ctx, t)
	if err != nil {
		return err
	}
	return c.users(ctx, policy, func(users *user.Users) error {
		row, err := users.Create(ctx, caller.AtCommandLine, name, roles, pw)
		switch {
		case err == nil:
			t.printMade(row)
		case errors.Is(err, user.ErrMalformed):
			err = usageError{fmt.Errorf("username: %w", err)}
		}
		return err
	})
}

// printMade prints a new user.
func (t Terminal) printMade(row *store.User) {
	if !t.outIsTerminal() {
		fmt.Fprintln(t.Out, row.ID)
		return
	}
	roles := "no roles"
	if len(row.Roles) > 0 {
		roles = "the roles " + strings.Join(row.Roles, ", ")
	}
	fmt.Fprintf(t.Out, "made the user %s with %s and the id %s\n", row.Username, roles, row.ID)
}

type userListCmd struct{ datastore }

// Run lists all users, a page at a time: each page is a transaction of its own, and a
// long list blocks nothing.
func (c *userListCmd) Run(ctx context.Context, t Terminal) error {
	return c.users(ctx, password.Policy{}, func(users *user.Users) error {
		return table(t.Out, "ID\tUSERNAME\tROLES\tSTATE\tCREATED", func(row addRow) error {
			const page = 500
			for after := ""; ; {
				rows, next, err := users.List(ctx, after, page)
				for _, u := range rows {
					state := "enabled"
					if u.Disabled {
						state = "disabled"
					}
					if err := row(u.ID, u.Username, strings.Join(u.Roles, ","), state, moment(u.CreatedAt)); err != nil {
						return err
					}
				}
				if err != nil || next == "" {
					return err
				}
				after = next
			}
		})
	})
}

type userDisableCmd struct{ named }

func (c *userDisableCmd) Run(ctx context.Context) error { return c.setDisabled(ctx, true) }

type userEnableCmd struct{ named }

func (c *userEnableCmd) Run(ctx context.Context) error { return c.setDisabled(ctx, false) }

// setDisabled disables or enables the user. Both end every session of the user.
func (n named) setDisabled(ctx context.Context, disabled bool) error {
	return n.change(ctx, password.Policy{}, func(users *user.Users, id string) error {
		_, err := users.Update(ctx, caller.AtCommandLine, id, user.Change{Disabled: &disabled})
		return err
	})
}

type userRolesCmd struct {
	named
	Role    []string `help:"A role; repeat the flag for more."`
	NoRoles bool     `help:"Remove every role."`
}

// Validate returns an error unless either roles or --no-roles are given: a forgotten --role
// must remove nothing. kong calls Validate, and the exit status is 2.
func (c *userRolesCmd) Validate() error {
	if (len(c.Role) > 0) == c.NoRoles {
		return errors.New("give all roles of the user by --role, or --no-roles to remove every role")
	}
	return nil
}

// Run replaces the roles of the user. If the user has these roles already, Run changes
// nothing.
func (c *userRolesCmd) Run(ctx context.Context) error {
	roles, err := user.ParseRoles(c.Role)
	if err != nil {
		return usageError{fmt.Errorf("--role: %w", err)}
	}
	return c.change(ctx, password.Policy{}, func(users *user.Users, id string) error {
		_, err := users.Update(ctx, caller.AtCommandLine, id, user.Change{Roles: &roles})
		return err
	})
}

type userPassCmd struct {
	named
	newPassword
}

// Run sets a new password and ends the user's sessions: an old password may have been
// stolen.
func (c *userPassCmd) Run(ctx context.Context, t Terminal) error {
	pw, policy, err := c.read(ctx, t)
	if err != nil {
		return err
	}
	return c.change(ctx, policy, func(users *user.Users, id string) error {
		_, err := users.SetPassword(ctx, caller.AtCommandLine, id, pw)
		return err
	})
}

type userDeleteCmd struct{ named }

// Run deletes the user. Records of the user stay in the security record, and
// `watchword audit --user` still finds the records by the name.
func (c *userDeleteCmd) Run(ctx context.Context) error {
	return c.change(ctx, password.Policy{}, func(users *user.Users, id string) error {
		return users.Delete(ctx, caller.AtCommandLine, id)
	})
}

// keyCmd holds the commands about signing keys and master keys, on the database itself.
type keyCmd struct {
	List   keyListCmd   `cmd:"" help:"List signing keys."`
	Rotate keyRotateCmd `cmd:"" help:"Let the next key sign, as soon as every cache can know the key."`
	Revoke keyRevokeCmd `cmd:"" help:"Withdraw a leaked key: every token of the key is refused."`
	Reseal keyResealCmd `cmd:"" help:"Seal the keys in the database under the first master key in the file."`

	CreateMasterKey keyMasterCmd `cmd:"" help:"Make a file with a new master key, for the first start on PostgreSQL."`
}

type keyMasterCmd struct {
	File string `arg:"" type:"path" help:"The file to make; must not exist."`
}

// Run makes a file with a new master key. The operator copies the file to every
// replica: a server on PostgreSQL never makes the file, since each replica would make
// another key.
func (c *keyMasterCmd) Run() error {
	_, err := seal.Create(c.File)
	return err
}

// keys holds the flags of the commands about keys. `key list` without the master key file
// cannot tell whether somebody without the master key has changed the rows.
type keys struct {
	datastore
	MasterKeyFile string `type:"path" help:"File of the master key, as for serve."`
}

// withMaster opens the database, loads the master keys by load, and calls do with both.
// Errors: fs.ErrNotExist if the file of the master keys is missing.
func (k keys) withMaster(ctx context.Context, load func(path string) (*seal.Keys, error), do func(*store.Store, *seal.Keys) error) error {
	return k.with(ctx, func(s *store.Store) error {
		path, err := server.MasterKeyPath(s, k.MasterKeyFile)
		if err != nil {
			return err
		}
		master, err := load(path)
		if err != nil {
			return err
		}
		return do(s, master)
	})
}

// ring opens the database's keyring, and prints the key that do returns. A server that
// runs on the same database learns of the change by polling, within a second.
func (k keys) ring(ctx context.Context, t Terminal, do func(*issuer.Keyring) (issuer.Key, error)) error {
	return k.withMaster(ctx, seal.Load, func(s *store.Store, master *seal.Keys) error {
		if err := server.CheckMaster(ctx, s, master); err != nil {
			return err
		}
		key, err := do(issuer.NewKeyring(s, feed.Direct(s), issuer.NewKeySet(master, slog.New(slog.DiscardHandler)), record(s)))
		if err != nil {
			return err
		}
		fmt.Fprintln(t.Out, signsFrom(key))
		return nil
	})
}

// signsFrom returns a line about a key from the database.
func signsFrom(key issuer.Key) string {
	return escape(fmt.Sprintf("%s %s signs from %s", key.KID, key.Algorithm, moment(key.SignsFrom)), "")
}

type keyRotateCmd struct {
	keys
	Alg string `enum:",EdDSA,ES256,RS256" default:"" help:"Algorithm of the next signing key: EdDSA, ES256 or RS256. Default: the current algorithm."`
}

// Run rotates the signing key. The printed time may be in the future: caches must know
// the next key before it signs.
func (c *keyRotateCmd) Run(ctx context.Context, t Terminal) error {
	return c.ring(ctx, t, func(ring *issuer.Keyring) (issuer.Key, error) {
		return ring.Rotate(ctx, caller.AtCommandLine, token.Algorithm(c.Alg))
	})
}

type keyRevokeCmd struct {
	keys
	KID string `arg:"" name:"kid" help:"The key's id."`
}

// Run withdraws a key, and prints the key that signs now.
func (c *keyRevokeCmd) Run(ctx context.Context, t Terminal) error {
	return c.ring(ctx, t, func(ring *issuer.Keyring) (issuer.Key, error) {
		return ring.Revoke(ctx, caller.AtCommandLine, c.KID)
	})
}

type keyResealCmd struct {
	keys
	NewMasterKey bool `help:"Put a new master key before the others in the file first."`
}

// Run seals all keys under the first master key. With --new-master-key, Run first puts
// a new master key into the file; every replica needs that file before the old keys may
// be removed from it.
func (c *keyResealCmd) Run(ctx context.Context, t Terminal) error {
	return c.withMaster(ctx, seal.Load, func(s *store.Store, master *seal.Keys) error {
		if err := server.CheckMaster(ctx, s, master); err != nil { // before the file is changed
			return err
		}
		if c.NewMasterKey {
			path, err := server.MasterKeyPath(s, c.MasterKeyFile)
			if err != nil {
				return err
			}
			if master, err = seal.Add(path); err != nil {
				return err
			}
		}
		n, err := server.Reseal(ctx, s, master, record(s))
		if err == nil {
			fmt.Fprintf(t.Out, "resealed %d keys; every key is sealed under the first master key in the file\n", n)
		}
		return err
	})
}

type keyListCmd struct{ keys }

// Run lists all signing keys, withdrawn keys too. With the master key file, a key that
// somebody without the master key has added or changed is `untrusted`.
func (c *keyListCmd) Run(ctx context.Context, t Terminal) error {
	return c.with(ctx, func(s *store.Store) error {
		var master *seal.Keys
		path, unchecked := server.MasterKeyPath(s, c.MasterKeyFile)
		if unchecked == nil {
			master, unchecked = seal.Load(path)
		}
		keys, err := issuer.List(ctx, s, master)
		if err != nil {
			return err
		}
		if unchecked != nil && len(keys) > 0 {
			fmt.Fprintf(t.Err, "the keys are shown as the database has them, without a check by the master key: %v\n", unchecked)
		}
		return table(t.Out, "KID\tALGORITHM\tSTATE\tPUBLISHED\tSIGNS FROM\tSIGNS UNTIL\tVERIFIES UNTIL", func(row addRow) error {
			for _, k := range keys {
				if err := row(k.KID, string(k.Algorithm), string(k.State),
					moment(k.PublishedAt), moment(k.SignsFrom), moment(k.SignsUntil), moment(k.VerifiesUntil)); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// addRow adds a row to a table. A cell that holds a line break or a tab makes no second
// cell or row: both are escaped.
type addRow func(cells ...string) error

// table prints a header and rows in columns. rows calls its argument for each row. The
// columns are aligned within each 500 rows: table keeps these rows alone in memory.
func table(out io.Writer, header string, rows func(addRow) error) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, header)
	const together = 500
	count := 0
	add := func(cells ...string) error {
		for i, cell := range cells {
			cells[i] = escape(cell, "")
		}
		_, err := fmt.Fprintln(w, strings.Join(cells, "\t"))
		if count++; err == nil && count%together == 0 {
			err = w.Flush()
		}
		return err
	}
	return errors.Join(rows(add), w.Flush())
}

// moment returns a time in the form of RFC 3339, and "-" for a time that is not
// decided.
func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Format(time.RFC3339)
}
