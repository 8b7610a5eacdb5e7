//go:build !unix

package pgtest

import (
	"errors"
	"syscall"
)

// The PostgreSQL server of the tests needs a Unix shell and the signals of Unix. On a system
// without them, set WATCHWORD_TEST_POSTGRES_URL; Freeze and Thaw stop no process on such a
// system, so the tests that need Freeze fail.
const Freeze, Thaw = syscall.Signal(0), syscall.Signal(0)

func send(int, syscall.Signal) error { return errors.ErrUnsupported }

func attributes() *syscall.SysProcAttr { return nil }

func handOver(string) error { return nil }
