package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/durable"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/store"
)

// errNoMasterKey means that no master key file was named for a PostgreSQL database. There is no
// default file for PostgreSQL, since each replica would then make a key of its own.
var errNoMasterKey = errors.New("--master-key-file: PostgreSQL needs one, the same for every replica; " +
	"for a new database make it with: watchword key create-master-key FILE")

// ErrDamagedMAC means that a key for the MAC of refresh tokens was changed in the database, so
// that no master key opens the key.
var ErrDamagedMAC = session.ErrDamagedMAC

// MasterKeyPath returns the file of the master keys: the file that --master-key-file
// names, or by default a file beside an embedded database.
//
// Errors: an error that names the flag, if no file is named for PostgreSQL.
func MasterKeyPath(s *store.Store, named string) (string, error) {
	switch {
	case named != "":
		return named, nil
	case s.Path() == "":
		return "", errNoMasterKey
	}
	return s.Path() + ".master-key", nil
}

// masterKeys loads the master keys. If the file is missing, masterKeys makes a file beside an
// embedded database that has no sealed keys yet. On PostgreSQL masterKeys makes no file, since
// each replica would make another master key.
func (c *Config) masterKeys(ctx context.Context, s *store.Store) (*seal.Keys, error) {
	path, err := MasterKeyPath(s, c.MasterKeyFile)
	if err != nil {
		return nil, err
	}
	keys, err := seal.Load(path)
	if s.Path() == "" || !errors.Is(err, fs.ErrNotExist) {
		return keys, err
	}
	// A new master key could not open the keys in the database, so the server must not replace
	// a missing file without an error.
	sealed := false
	if err := s.Read(ctx, func(tx *store.Tx) error {
		macs, err := tx.MACKeys()
		if err != nil {
			return err
		}
		signing, err := tx.SigningKeys()
		sealed = len(macs)+len(signing) > 0
		return err
	}); err != nil {
		return nil, err
	}
	if sealed {
		return nil, fmt.Errorf("the keys in this database are sealed under a master key, and the file %s does not exist: "+
			"restore the file, or name the right file by --master-key-file; if the master key is lost, see watchword datastore rekey --help", path)
	}
	return seal.CreateBeside(path, s.Path())
}

// checkMasterFile returns an error if a start cannot use the file of --master-key-file. The file
// may be missing for an embedded database: masterKeys makes the file if the database is new.
func (c *Config) checkMasterFile() error {
	embedded := !strings.HasPrefix(c.DatastoreURI, "postgres")
	if c.MasterKeyFile == "" && embedded {
		return nil
	} else if c.MasterKeyFile == "" {
		return errNoMasterKey
	}
	_, err := seal.Load(c.MasterKeyFile)
	switch missing := errors.Is(err, fs.ErrNotExist); {
	case err == nil, missing && embedded:
		return nil
	case missing:
		return fmt.Errorf("%w (%s does not exist)", errNoMasterKey, c.MasterKeyFile)
	}
	return fmt.Errorf("--master-key-file: %w", err)
}

// warnOfReaders logs a warning if other users have the right to read the master key file or an
// embedded database: with a copy of both, a user can sign tokens.
func (s *Server) warnOfReaders(ctx context.Context) {
	path, _ := MasterKeyPath(s.store, s.cfg.MasterKeyFile) // the error is ignored: the start has found the path without an error
	for _, file := range []string{path, s.store.Path()} {
		if exposure := durable.Exposure(file); exposure != "" {
			s.logger.WarnContext(ctx, "other users can use a file with secrets: "+exposure, "file", file)
		}
	}
}

// checkMaster opens every sealed value in the database. A call that writes a sealed value calls
// checkMaster first: with the master key file of another installation, no server could open
// both the earlier values and the new value.
//
// Errors: seal.ErrWrongKey; errors of the store.
func checkMaster(tx *store.Tx, master *seal.Keys) error {
	if err := session.CheckMaster(tx, master); err != nil {
		return err
	}
	return issuer.CheckMaster(tx, master)
}

// CheckMaster opens every sealed value in the database. Errors: seal.ErrWrongKey; errors of the
// store.
func CheckMaster(ctx context.Context, s *store.Store, master *seal.Keys) error {
	return s.Read(ctx, func(tx *store.Tx) error { return checkMaster(tx, master) })
}

// Reseal seals every signing key and every MAC key in the database under the first master key
// in the file, in one transaction. Reseal returns the number of keys that were sealed under
// another master key before. Servers are allowed to run during a Reseal.
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
