//go:build linux

package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"unsafe"

	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/watchword-auth/watchword/authn"
)

// inNamespace is set in the process that runs a test in a network namespace of its own.
const inNamespace = "WATCHWORD_E2E_IN_NAMESPACE"

// ownNetwork runs the calling test once more, in a network namespace of its own where the
// loopback interface has the addresses; ownNetwork returns true there.
func ownNetwork(t *testing.T, addresses ...string) bool {
	t.Helper()
	if os.Getenv(inNamespace) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), inNamespace+"=1")
		root := []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL,
			UidMappings: root, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("in a network namespace (user namespaces must be allowed): %v\n%s", err, out)
		}
		return false
	}
	for _, address := range addresses {
		if err := addLoopback(net.ParseIP(address)); err != nil {
			t.Fatalf("adding %s to the loopback interface: %v", address, err)
		}
	}
	return true
}

// addLoopback brings the loopback interface up and adds an IPv6 address, by the calls of
// netdevice(7).
func addLoopback(ip net.IP) error {
	fd, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	var flags [40]byte // struct ifreq: the name, then the flags
	copy(flags[:], "lo")
	binary.NativeEndian.PutUint16(flags[syscall.IFNAMSIZ:], syscall.IFF_UP|syscall.IFF_RUNNING)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		return errno
	}
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	var request struct { // struct in6_ifreq
		addr   [16]byte
		prefix uint32
		index  int32
	}
	copy(request.addr[:], ip.To16())
	request.prefix, request.index = 128, int32(lo.Index)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.SIOCSIFADDR, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return errno
	}
	return nil
}

// The addresses of one IPv6 network are one peer: a host may have any of them.
func TestOneIPv6NetworkIsOnePeer(t *testing.T) {
	t.Parallel()
	var addresses []string
	for i := range watchesPerPeer + 1 {
		addresses = append(addresses, fmt.Sprintf("2001:db8:a::%x", i+1))
	}
	const server, elsewhere = "2001:db8:5::1", "2001:db8:b::1"
	if !ownNetwork(t, append(addresses, server, elsewhere)...) {
		return
	}
	dir := t.TempDir()
	s := serveCommand(t, dir, exec.Command(watchword(t), "serve", "--grpc-addr", "["+server+"]:0", "--http-addr", "["+server+"]:0",
		"--insecure", "--datastore-uri", database(dir)))
	watch := func(ip string) error {
		conn, err := tryDialAs(ip, s.grpcAddr, insecure.NewCredentials())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		stream, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
		if err != nil {
			return err
		}
		_, err = stream.Recv()
		return err
	}
	for i, address := range addresses {
		switch err := watch(address); {
		case i < watchesPerPeer && err != nil:
			t.Fatalf("stream %d of the network, from %s: %v", i+1, address, err)
		case i == watchesPerPeer && authn.Reason(err) != overloaded:
			t.Errorf("one stream more than a peer may have, from %s: %v", address, err)
		}
	}
	if err := watch(elsewhere); err != nil {
		t.Errorf("a stream from another network: %v", err)
	}
}
