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

// errNoMasterKey says what a database wants that has no place for a file beside it.
var errNoMasterKey = errors.New("--master-key-file: PostgreSQL needs one, the same for every replica; " +
	"for a new database make it with: watchword key create-master-key FILE")

// MasterKeyPath is the file of the master keys: the one named, or the one beside
// an embedded database.
func MasterKeyPath(s *store.Store, named string) (string, error) {
	switch {
	case named != "":
		return named, nil
	case s.Path() == "":
		return "", errNoMasterKey
	}
	return s.Path() + ".master-key", nil
}

// masterKeys loads the master keys. A file is made only beside an embedded
// database in which nothing is sealed yet: replicas would each make their own.
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
		return nil, fmt.Errorf("%w (%s is not there)", errNoMasterKey, path)
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
		return nil, fmt.Errorf("the keys in this database are sealed under a master key, and %s is not there: "+
			"restore that file, or name it by --master-key-file", path)
	}
	return seal.Create(path)
}

// Reseal seals every key in the database under the first master key, and says
// how many were not. Running servers go on with the keys that they have.
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
