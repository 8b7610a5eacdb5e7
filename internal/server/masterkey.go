package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/store"
)

// errNoMasterKey reports a missing master key for a database without a file of its own.
var errNoMasterKey = errors.New("--master-key-file: PostgreSQL needs one, the same for every replica; " +
	"for a new database make it with: watchword key create-master-key FILE")

// MasterKeyPath returns the file of the master keys: the named file, or by default a file
// beside an embedded database.
//
// Errors: if no file is named for PostgreSQL.
func MasterKeyPath(s *store.Store, named string) (string, error) {
	switch {
	case named != "":
		return named, nil
	case s.Path() == "":
		return "", errNoMasterKey
	}
	return s.Path() + ".master-key", nil
}

// masterKeys loads the master keys. masterKeys makes a file only beside an embedded
// database without sealed keys: several replicas would make several files.
func (c *Config) masterKeys(ctx context.Context, s *store.Store) (*seal.Keys, error) {
	path, err := MasterKeyPath(s, c.MasterKeyFile)
	if err != nil {
		return nil, err
	}
	keys, err := seal.Load(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return keys, err
	}
	if s.Path() == "" {
		return nil, fmt.Errorf("%w (%s does not exist)", errNoMasterKey, path)
	}
	sealed := false
	if err := s.Read(ctx, func(tx *store.Tx) error {
		rows, err := tx.MACKeys()
		sealed = len(rows) > 0
		return err
	}); err != nil {
		return nil, err
	}
	if sealed {
		return nil, fmt.Errorf("the keys in this database are sealed under a master key, and the file %s does not exist: "+
			"restore the file, or name the right file by --master-key-file", path)
	}
	return seal.Create(path)
}

// Reseal seals every key in the database under the first master key, and returns the
// number of keys sealed under another one before. Running servers continue.
func Reseal(ctx context.Context, s *store.Store, master *seal.Keys, log *audit.Log) (int, error) {
	n := 0
	err := s.Write(ctx, func(tx *store.Tx) error {
		signing, err := issuer.Reseal(tx, master)
		if err != nil {
			return err
		}
		macs, err := session.ResealMAC(tx, master)
		if n = signing + macs; err != nil || n == 0 {
			return err
		}
		return log.Record(ctx, tx, audit.Event{Type: audit.KeysResealed, Detail: fmt.Sprintf("%d keys", n)})
	})
	return n, err
}
