package caller_test

import (
	"context"
	"net"
	"testing"

	"github.com/watchword-auth/watchword/internal/caller"
)

func TestNetwork(t *testing.T) {
	t.Parallel()
	for source, want := range map[caller.Source]string{
		"192.0.2.7":                 "192.0.2.7",
		"127.0.0.1":                 "127.0.0.1",
		"::ffff:192.0.2.7":          "192.0.2.7", // IPv4, as a socket for both families shows it
		"2001:db8:1:2:3:4:5:6":      "2001:db8:1:2::/64",
		"2001:db8:1:2::":            "2001:db8:1:2::/64",
		"2001:db8:1:3:3:4:5:6":      "2001:db8:1:3::/64",
		"::1":                       "::1",
		"fe80::1%eth0":              "fe80::/64",
		"fe80::2%eth1":              "fe80::/64",
		caller.CommandLine:          "cli",
		caller.Server:               "server",
		"":                          "",
		"@":                         "@", // a Unix socket without a name
		"192.0.2.7:50051":           "192.0.2.7:50051",
		"not an address, but taken": "not an address, but taken",
	} {
		if got := source.Network(); got != want {
			t.Errorf("the network of %q is %q, want %q", source, got, want)
		}
	}
}

func TestAddress(t *testing.T) {
	t.Parallel()
	for want, addr := range map[caller.Source]net.Addr{
		"":             nil,
		"192.0.2.7":    &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 50051},
		"2001:db8::1":  &net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 50051},
		"fe80::1%eth0": &net.TCPAddr{IP: net.ParseIP("fe80::1"), Port: 50051, Zone: "eth0"},
		"@":            &net.UnixAddr{Net: "unix", Name: "@"},
		"/run/w.sock":  &net.UnixAddr{Net: "unix", Name: "/run/w.sock"},
	} {
		address := caller.Address{Addr: addr}
		if got := address.Source(); got != want {
			t.Errorf("the source of %v is %q, want %q", addr, got, want)
		}
		if got := caller.SourceOf(caller.WithSource(context.Background(), address)); got != want {
			t.Errorf("a context with %v gives %q, want %q", addr, got, want)
		}
	}
}

func TestSourceOf(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	if got := caller.SourceOf(ctx); got != "" {
		t.Errorf("without a source: %q", got)
	}
	ctx = caller.WithSource(ctx, caller.Server)
	if got := caller.SourceOf(ctx); got != caller.Server {
		t.Errorf("with a source: %q", got)
	}
	if got := caller.SourceOf(caller.WithSource(ctx, caller.CommandLine)); got != caller.CommandLine {
		t.Errorf("with another source inside: %q", got)
	}
}
