package pgtest

import (
	"cmp"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

var errNoPostgres = errors.New(`PostgreSQL is missing: no directory has postgres, initdb and pg_basebackup
(looked at PATH, pg_config --bindir and the usual places).
  Debian, Ubuntu: apt-get install postgresql
  Fedora:         dnf install postgresql-server
  macOS:          brew install postgresql
Or set the URL of a server where the user may create databases: ` + external + `=postgres://user:password@host:5432/postgres`)

// programs returns the directory with PostgreSQL's programs.
var programs = sync.OnceValues(func() (string, error) { return programsIn(places()) })

func programsIn(dirs []string) (string, error) {
	for _, dir := range dirs {
		if hasAll(dir, "postgres", "initdb", "pg_basebackup") {
			return dir, nil
		}
	}
	return "", errNoPostgres
}

// places lists directories that can hold PostgreSQL's programs, the best first: the directory
// in PATH, and otherwise the newest version. On Debian, the programs are not in PATH.
func places() (dirs []string) {
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(path))
		}
	}
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin",
		"/usr/pgsql-*/bin",
		"/opt/homebrew/opt/postgresql*/bin",
		"/usr/local/opt/postgresql*/bin",
		"/usr/local/pgsql/bin",
	} {
		found, _ := filepath.Glob(pattern)
		slices.SortFunc(found, func(a, b string) int { return cmp.Compare(version(b), version(a)) })
		dirs = append(dirs, found...)
	}
	return dirs
}

// version returns the version number of PostgreSQL in a path as a number, so that 15 sorts
// after 9.
func version(path string) int {
	n, _ := strconv.Atoi(strings.Trim(filepath.Dir(path), "abcdefghijklmnopqrstuvwxyz/-@"))
	return n
}

func hasAll(dir string, names ...string) bool {
	return !slices.ContainsFunc(names, func(name string) bool {
		info, err := os.Stat(filepath.Join(dir, name))
		return err != nil || info.Mode()&0o111 == 0
	})
}
