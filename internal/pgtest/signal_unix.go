//go:build unix

package pgtest

import (
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// Freeze is the signal that stops a process, and Thaw is the signal that lets a stopped process
// continue.
const Freeze, Thaw = syscall.SIGSTOP, syscall.SIGCONT

func send(pid int, signal syscall.Signal) error { return syscall.Kill(pid, signal) }

// attributes returns the attributes with which a program starts: in a session of its own, and
// as an unprivileged user.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true, Credential: unprivileged()}
}

// handOver makes the unprivileged user the owner of a directory.
func handOver(dir string) error {
	if c := unprivileged(); c != nil {
		return os.Chown(dir, int(c.Uid), int(c.Gid))
	}
	return nil
}

// unprivileged returns the user for the programs, because PostgreSQL and PgBouncer refuse
// to run as root. If the tests do not run as root, unprivileged returns nil.
func unprivileged() *syscall.Credential {
	if os.Getuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		}
	}
	return &syscall.Credential{Uid: 65534, Gid: 65534}
}
