package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/durable"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/user"
)

// adminName is the name of the first user, made at the first start.
const adminName = "admin"

// installation holds the identity of a database: its id and its issuer, which the first start
// of a server decides.
type installation struct {
	databaseID string
	issuer     string
}

// setup gives a new database an identity, keys and a first user, in one transaction. On a
// database with an identity, keys and a user, setup checks the issuer and stores what depends
// on the flags. announce gets the first user's password, unless --initial-password-file names a
// file for the password. setup calls announce as the last step before the commit: if announce
// fails, the database has no user, and the next start makes another password.
func (s *Server) setup(ctx context.Context, master *seal.Keys, defaultIssuer string, announce func(password string) error) (*installation, error) {
	first, err := s.cfg.prepareAdmin(ctx, s.store)
	if err != nil {
		return nil, err
	}
	var inst installation
	made, announced := false, false
	ctx = caller.WithSource(ctx, caller.Server)
	err = feed.Direct(s.store).Write(ctx, func(events *feed.Tx) error {
		tx := events.Tx
		err := tx.Exclusive() // other replicas may start at the same time, and a copy of the database may run
		if err == nil {
			err = tx.Usable()
		}
		if err == nil {
			inst, err = s.cfg.identify(tx, defaultIssuer)
		}
		if err != nil {
			return err
		}
		if err := checkMaster(tx, master); err != nil {
			return err
		}
		if err := issuer.Setup(tx, master, token.Algorithm(s.cfg.SigningAlg)); err != nil {
			return err
		}
		if err := session.SetupMAC(tx, master); err != nil {
			return err
		}
		if made, err = s.makeAdmin(ctx, tx, first.hash); err != nil {
			return err
		}
		// If the database is a restored backup, verifiers may know higher versions of users,
		// from the history that the backup lacks.
		if err := events.RaiseFloor(0); err != nil {
			return err
		}
		if err := s.cfg.storeAges(events); err != nil {
			return err
		}
		if made && !announced && first.file == "" { // a transaction can run several times, and the password stays the same
			if err := announce(first.password); err != nil {
				return fmt.Errorf("announcing the password of the first user, %s: %w", adminName, err)
			}
			announced = true
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("setting up the database: %w", err)
	}
	// After a commit of unknown outcome the admin may exist, so keep must not delete the file
	// with the password.
	made = made && (err == nil || errors.Is(err, store.ErrUncertain))
	if announced && !made {
		s.logger.WarnContext(ctx, "the password that was announced is of no user: the database has no new user")
	}
	if err = errors.Join(err, first.keep(made)); err != nil {
		return nil, err
	}
	return &inst, nil
}

// storeAges stores the age of caches, which the rotation of keys reads from the database, and
// the longest lifetime of a token, which the pruning of events reads. All replicas use the
// stored values.
func (c *Config) storeAges(tx *feed.Tx) error {
	if err := issuer.SetMaxAge(tx.Tx, c.JWKSMaxAge); err != nil {
		return err
	}
	return tx.RaiseMaxLifetime(c.AccessTTL)
}

// identify reads the database's id and issuer; at the first start, identify writes
// the id and the issuer. A different --issuer is refused: every token in use names the old one.
func (c *Config) identify(tx *store.Tx, defaultIssuer string) (inst installation, err error) {
	if inst.databaseID, err = setOnce(tx, store.DatabaseID, user.NewID()); err != nil {
		return inst, err
	}
	inst.issuer, err = setOnce(tx, store.OwnIssuer, cmp.Or(c.Issuer, defaultIssuer))
	switch {
	case err != nil:
	case inst.issuer == "":
		err = errors.New("--issuer: the first start on PostgreSQL must name the issuer, which all replicas share")
	case c.Issuer != "" && c.Issuer != inst.issuer:
		err = fmt.Errorf("--issuer is %s, but this database issues as %s. Every token in use and every service "+
			"checking `iss` depends on the issuer: start without --issuer to keep %[2]s, or with a new database to issue as %[1]s", c.Issuer, inst.issuer)
	}
	return inst, err
}

// setOnce returns the value of a setting. If the setting is empty, setOnce stores value
// and returns value.
func setOnce(tx *store.Tx, name, value string) (string, error) {
	stored, err := tx.Setting(name)
	if err != nil || stored != "" || value == "" {
		return stored, err
	}
	return value, tx.SetSetting(name, value)
}

// firstAdmin holds the password of the user `admin` for a database that never had a
// user: the text, the hash, and the file that holds the text, if any. For a database that has
// had a user, all fields are empty.
type firstAdmin struct{ password, hash, file string }

// prepareAdmin makes the first admin's password and its hash, before the transaction, since a
// hash takes long. With --initial-password-file, prepareAdmin writes the file before the user
// is committed, so that a crash between file and commit cannot lose the password.
func (c *Config) prepareAdmin(ctx context.Context, s *store.Store) (firstAdmin, error) {
	var had bool
	err := s.Read(ctx, func(tx *store.Tx) (err error) {
		had, err = user.EverMade(tx)
		return err
	})
	if err != nil || had {
		return firstAdmin{}, err
	}
	a := firstAdmin{password: password.Generate(), file: c.InitialPasswordFile}
	pw, err := password.Parse(a.password)
	if err == nil {
		a.hash, err = password.NewPool(password.Config{}).Hash(ctx, password.Admin(""), pw)
	}
	if err != nil || a.file == "" {
		return a, err
	}
	err = durable.Create(a.file, func(file *os.File) error {
		_, err := fmt.Fprintln(file, a.password)
		return err
	})
	switch {
	case errors.Is(err, fs.ErrExist):
		err = errFileExists(a.file)
	case err != nil:
		err = fmt.Errorf("--initial-password-file: %w", err)
	}
	return a, err
}

// keep runs after the transaction of the first start. If this server has not made the admin,
// keep deletes the file with the password: another replica has made the admin with another
// password, or the start has failed.
func (a firstAdmin) keep(made bool) error {
	if a.file != "" && !made {
		return os.Remove(a.file)
	}
	return nil
}

// checkPasswordFile returns an error if the start would make a new embedded database, and cannot
// make the file of --initial-password-file, because the file exists already or the folder is
// missing: the server writes the password of the first user into a new file, and overwrites no
// file. Since checkPasswordFile runs before the database is opened, a refused start leaves no
// database behind. For an existing database or PostgreSQL without a user, prepareAdmin returns
// the error. If the database has a user, the server writes no password, and the file is allowed
// to exist.
func (c *Config) checkPasswordFile() error {
	path, embedded := strings.CutPrefix(c.DatastoreURI, "sqlite:")
	if c.InitialPasswordFile == "" || !embedded {
		return nil
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := os.Lstat(c.InitialPasswordFile); err == nil {
		return errFileExists(c.InitialPasswordFile)
	}
	folder, err := filepath.Abs(filepath.Dir(c.InitialPasswordFile))
	made, errMade := filepath.Abs(filepath.Dir(path)) // the start makes the folder of the database
	if err == nil && folder != made {
		var info fs.FileInfo
		if info, err = os.Stat(folder); err == nil && !info.IsDir() {
			err = fmt.Errorf("%s is no folder", folder)
		}
	}
	if err := errors.Join(err, errMade); err != nil {
		return fmt.Errorf("--initial-password-file: the folder of the file: %w", err)
	}
	return nil
}

func errFileExists(path string) error {
	return fmt.Errorf("--initial-password-file: %s exists already, and this database has no user yet: "+
		"remove the file or name another one for the password of the first user", path)
}

// makeAdmin inserts the first admin, and reports whether makeAdmin has inserted the admin.
// makeAdmin inserts nothing if the database ever had a user, or if no hash was made: another
// replica may have made the admin since prepareAdmin.
func (s *Server) makeAdmin(ctx context.Context, tx *store.Tx, hash string) (bool, error) {
	had, err := user.EverMade(tx)
	if err != nil || had || hash == "" {
		return false, err
	}
	row, err := user.Insert(tx, adminName, user.Roles{caller.Admin}, hash)
	if err == nil {
		err = s.audit.Record(ctx, tx, user.Created(caller.AtCommandLine, row))
	}
	return err == nil, err
}
