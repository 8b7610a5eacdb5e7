package server

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/user"
)

// Settings that the whole installation shares, by their names in the store.
const (
	settingDatabaseID = "database_id"
	settingIssuer     = "issuer"
)

const adminName = "admin"

// installation is what a database says of itself after its first start.
type installation struct {
	databaseID string
	issuer     string
}

// setup makes sure that the database has an identity, keys and a first user.
// The password of the user `admin`, if one was made, is all that is written to
// out, so that a script can read it from there.
func (s *Server) setup(ctx context.Context, master *seal.Keys, defaultIssuer string, out io.Writer) (*installation, error) {
	password, hash, err := adminPassword(ctx, s.store)
	if err != nil {
		return nil, err
	}
	var inst installation
	made := false
	ctx = caller.WithSource(ctx, caller.Server)
	err = feed.Direct(s.store).Write(ctx, func(events *feed.Tx) error {
		tx := events.Tx
		err := tx.Exclusive() // replicas may start at once, or a copy come in between
		if err == nil {
			err = tx.Usable()
		}
		if err != nil {
			return err
		}
		if inst, err = s.cfg.identify(tx, defaultIssuer); err != nil {
			return err
		}
		if err := issuer.Setup(tx, master, token.Algorithm(s.cfg.SigningAlg)); err != nil {
			return err
		}
		if err := session.SetupMAC(tx, master); err != nil {
			return err
		}
		if made, err = s.makeAdmin(ctx, tx, hash); err != nil {
			return err
		}
		if err := issuer.SetMaxAge(tx, s.cfg.JWKSMaxAge); err != nil {
			return err
		}
		return events.RaiseMaxLifetime(s.cfg.AccessTTL)
	})
	if made && (err == nil || errors.Is(err, store.ErrUncertain)) { // who may have been made, nobody makes again
		fmt.Fprintln(out, password)
	}
	if err != nil {
		return nil, fmt.Errorf("setting up the database: %w", err)
	}
	return &inst, nil
}

// identify reads the database's id and issuer, and writes them at first start.
func (c *Config) identify(tx *store.Tx, defaultIssuer string) (installation, error) {
	id, err := setOnce(tx, settingDatabaseID, user.NewID())
	if err != nil {
		return installation{}, err
	}
	wanted := c.Issuer
	if wanted == "" {
		wanted = defaultIssuer
	}
	if wanted == "" {
		if wanted, err = tx.Setting(settingIssuer); err != nil {
			return installation{}, err
		}
		if wanted == "" {
			return installation{}, errors.New("--issuer: the first start on PostgreSQL must name the issuer, which all replicas share")
		}
	}
	name, err := setOnce(tx, settingIssuer, wanted)
	if err != nil {
		return installation{}, err
	}
	if c.Issuer != "" && c.Issuer != name {
		return installation{}, fmt.Errorf("--issuer is %s, but this database issues as %s: every token that is out, and every service "+
			"that checks `iss`, depends on it. Start without --issuer to keep it, or with a new database to change it", c.Issuer, name)
	}
	return installation{databaseID: id, issuer: name}, nil
}

func setOnce(tx *store.Tx, name, value string) (string, error) {
	stored, err := tx.Setting(name)
	if err != nil || stored != "" {
		return stored, err
	}
	return value, tx.SetSetting(name, value)
}

// adminPassword makes a password and its hash for a database that never had a
// user; the hash is empty for one that had.
func adminPassword(ctx context.Context, s *store.Store) (plain, hash string, err error) {
	var had bool
	err = s.Read(ctx, func(tx *store.Tx) (err error) {
		had, err = user.EverMade(tx)
		return err
	})
	if err != nil || had {
		return "", "", err
	}
	plain = password.Generate()
	pw, err := password.Parse(plain)
	if err != nil {
		return "", "", err
	}
	hash, err = password.NewPool(password.Config{}).Hash(ctx, password.SignedIn, pw)
	return plain, hash, err
}

func (s *Server) makeAdmin(ctx context.Context, tx *store.Tx, hash string) (bool, error) {
	had, err := user.EverMade(tx)
	if err != nil || had || hash == "" {
		return false, err
	}
	row, err := user.Insert(tx, adminName, user.Roles{caller.Admin}, hash)
	if err != nil {
		return false, err
	}
	return true, s.audit.Record(ctx, tx, user.Created(caller.AtCommandLine, row))
}
