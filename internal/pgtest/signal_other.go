//go:build !unix

package pgtest

import (
	"errors"
	"syscall"
)

// The programs of the tests' PostgreSQL need a Unix shell and the signals of Unix. On other
// systems set WATCHWORD_TEST_POSTGRES_URL. Freeze and Thaw stop no process there: the tests
// that need Freeze fail.
const Freeze, Thaw = syscall.Signal(0), syscall.Signal(0)

func send(int, syscall.Signal) error { return errors.ErrUnsupported }

func attributes() *syscall.SysProcAttr { return nil }

func handOver(string) error { return nil }
