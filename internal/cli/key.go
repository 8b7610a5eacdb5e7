package cli

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/server"
	"github.com/watchword-auth/watchword/internal/store"
)

// keyCmd holds the commands about signing keys, and about master keys.
type keyCmd struct {
	List   keyListCmd   `cmd:"" help:"List signing keys."`
	Rotate keyRotateCmd `cmd:"" help:"Let the next key sign, as soon as every cache can know the key."`
	Revoke keyRevokeCmd `cmd:"" help:"Withdraw a leaked key: every token of the key is refused."`
	Reseal keyResealCmd `cmd:"" help:"Seal the keys in the database under the first master key in the file."`

	CreateMasterKey keyMasterCmd `cmd:"" help:"Make a file with a new master key, for the first start on PostgreSQL."`
}

// signingKeys holds the flags of the commands about signing keys. On a database, `key list`
// without the master key file cannot tell whether somebody without the master key has
// changed the rows.
type signingKeys struct {
	api
	masterKeyFile
}

type masterKeyFile struct {
	MasterKeyFile string `type:"path" help:"On a database: file of the master key, as for serve."`
}

// do connects to the API, and calls the function do with a client of KeyService and the
// connection.
func (k *signingKeys) do(ctx context.Context, t Terminal, do func(context.Context, watchwordv1.KeyServiceClient, grpc.ClientConnInterface) error) error {
	return k.withLocal(ctx, t, server.LocalConfig{MasterKeyFile: k.MasterKeyFile}, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		return do(ctx, watchwordv1.NewKeyServiceClient(conn), conn)
	})
}

type keyListCmd struct {
	signingKeys
	asJSON
}

// Run lists all signing keys, withdrawn keys too.
func (c *keyListCmd) Run(ctx context.Context, t Terminal) error {
	return c.do(ctx, t, func(ctx context.Context, keys watchwordv1.KeyServiceClient, _ grpc.ClientConnInterface) error {
		each := func(show func(*watchwordv1.Key) error) error {
			resp, err := keys.ListKeys(ctx, &watchwordv1.ListKeysRequest{})
			for _, k := range resp.GetKeys() {
				if err := show(k); err != nil {
					return err
				}
			}
			return err
		}
		return list(t, c.asJSON, "KID\tALGORITHM\tSTATE\tPUBLISHED\tSIGNS FROM\tSIGNS UNTIL\tVERIFIES UNTIL", each, func(k *watchwordv1.Key) []string {
			state := strings.ToLower(strings.TrimPrefix(k.GetState().String(), "KEY_STATE_"))
			return []string{k.GetKid(), k.GetAlgorithm(), state, moment(k.GetPublishedAt()), moment(k.GetSignsFrom()), moment(k.GetSignsUntil()), moment(k.GetVerifiesUntil())}
		})
	})
}

// keyChange holds the flags of the commands that change the signing keys.
type keyChange struct {
	signingKeys
	asJSON
	waiting
}

// change calls a method of KeyService, prints the key that the method returns, and waits for
// the verifiers if --wait is given.
func (c *keyChange) change(ctx context.Context, t Terminal, call func(context.Context, watchwordv1.KeyServiceClient) (*watchwordv1.Key, error)) error {
	return c.do(ctx, t, func(ctx context.Context, keys watchwordv1.KeyServiceClient, conn grpc.ClientConnInterface) error {
		key, err := call(ctx, keys)
		if err != nil {
			return err
		}
		if err := t.printSigns(key, c.asJSON); err != nil {
			return err
		}
		return c.afterChange(ctx, t, conn)
	})
}

type keyRotateCmd struct {
	keyChange
	Alg string `enum:",EdDSA,ES256,RS256" default:"" help:"Algorithm of the next signing key: EdDSA, ES256 or RS256. Default: the current algorithm."`
}

// Run rotates the signing key. The printed time can be in the future: the caches of keys must
// know the next key before the next key signs.
func (c *keyRotateCmd) Run(ctx context.Context, t Terminal) error {
	return c.change(ctx, t, func(ctx context.Context, keys watchwordv1.KeyServiceClient) (*watchwordv1.Key, error) {
		resp, err := keys.RotateKey(ctx, &watchwordv1.RotateKeyRequest{Algorithm: c.Alg})
		return resp.GetKey(), err
	})
}

type keyRevokeCmd struct {
	keyChange
	KID string `arg:"" name:"kid" help:"The key's id."`
}

// Run withdraws a key, and prints the key that signs now.
func (c *keyRevokeCmd) Run(ctx context.Context, t Terminal) error {
	return c.change(ctx, t, func(ctx context.Context, keys watchwordv1.KeyServiceClient) (*watchwordv1.Key, error) {
		resp, err := keys.RevokeKey(ctx, &watchwordv1.RevokeKeyRequest{Kid: c.KID})
		return resp.GetKey(), err
	})
}

// printSigns prints the time from which a signing key signs access tokens.
func (t Terminal) printSigns(k *watchwordv1.Key, f asJSON) error {
	if f.JSON {
		return t.printLine(k)
	}
	_, err := fmt.Fprintln(t.Out, escape(fmt.Sprintf("%s %s signs from %s", k.GetKid(), k.GetAlgorithm(), moment(k.GetSignsFrom())), ""))
	return err
}

// signsFrom returns a line that says from when a signing key in the database signs access
// tokens.
func signsFrom(key issuer.Key) string {
	return escape(fmt.Sprintf("%s %s signs from %s", key.KID, key.Algorithm, key.SignsFrom.Format(time.RFC3339)), "")
}

type keyMasterCmd struct {
	File string `arg:"" type:"path" help:"The file to make; must not exist."`
}

// Run makes a file with a new master key. The operator copies the file to every
// replica: a server on PostgreSQL never makes the file, since each replica would make
// another key.
func (c *keyMasterCmd) Run(context.Context, Terminal) error {
	_, err := seal.Create(c.File)
	return err
}

// record returns the security record in the database, for a command without a server. The log
// line for each event is dropped: the person at the terminal sees the command's output.
func record(s *store.Store) *audit.Log {
	return audit.New(s, slog.New(slog.DiscardHandler)).ForOperator(operator())
}

// keys holds the flags of the commands that change the keys in a database without a server,
// such as `key reseal`.
type keys struct {
	datastore
	MasterKeyFile string `type:"path" help:"File of the master key, as for serve."`
}

// withMaster opens the database, loads the master keys by load, and calls do with the database
// and the master keys. Errors: fs.ErrNotExist if the file of the master keys is missing.
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

type keyResealCmd struct {
	keys
	NewMasterKey bool `help:"Put a new master key before the others in the file first."`
}

// Run seals all keys under the first master key. With --new-master-key, Run first puts a new
// master key into the file; every replica needs the file with the new master key before an
// operator removes the old master keys from the file.
func (c *keyResealCmd) Run(ctx context.Context, t Terminal) error {
	defer t.progress()()
	return c.withMaster(ctx, seal.Load, func(s *store.Store, master *seal.Keys) error {
		if err := server.CheckMaster(ctx, s, master); err != nil { // checks that the master key file is the right one, before --new-master-key changes the file
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
