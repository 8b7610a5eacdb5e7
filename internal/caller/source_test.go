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

// The networks of a source, from the narrowest to the widest.
func TestSiteAndBlock(t *testing.T) {
	for source, want := range map[caller.Source][2]string{
		"192.0.2.7":             {"192.0.2.0/24", "192.0.2.0/24"},
		"::ffff:192.0.2.7":      {"192.0.2.0/24", "192.0.2.0/24"},
		"2001:db8:1:2:3:4:5:6":  {"2001:db8:1::/48", "2001:db8::/32"},
		"fe80::1%eth0":          {"fe80::/48", "fe80::/32"},
		"/run/watchword.socket": {"/run/watchword.socket", "/run/watchword.socket"},
		"":                      {"", ""},
	} {
		if got := [2]string{source.Site(), source.Block()}; got != want {
			t.Errorf("%s: %q, want %q", source, got, want)
		}
	}
}

func TestProxies(t *testing.T) {
	t.Parallel()
	proxies, err := caller.ParseProxies([]string{"10.0.0.0/8", "192.0.2.1", "2001:db8:ff::/48"})
	if err != nil {
		t.Fatal(err)
	}
	tcp := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 50051} }
	for name, test := range map[string]struct {
		peer      net.Addr
		forwarded []string
		want      caller.Source
	}{
		"no address":                   {nil, []string{"198.51.100.1"}, ""},
		"IPv4":                         {tcp("198.51.100.7"), nil, "198.51.100.7"},
		"IPv6":                         {tcp("2001:db8::1"), nil, "2001:db8::1"},
		"with a zone":                  {&net.TCPAddr{IP: net.ParseIP("fe80::1"), Port: 50051, Zone: "eth0"}, nil, "fe80::1%eth0"},
		"Unix socket without a name":   {&net.UnixAddr{Net: "unix", Name: "@"}, []string{"198.51.100.1"}, "@"},
		"a client that claims":         {tcp("198.51.100.7"), []string{"198.51.100.1"}, "198.51.100.7"},
		"a proxy":                      {tcp("10.1.2.3"), []string{"198.51.100.1"}, "198.51.100.1"},
		"a proxy by IPv6":              {tcp("2001:db8:ff::9"), []string{"2001:db8:1::1"}, "2001:db8:1::1"},
		"mapped":                       {tcp("::ffff:10.1.2.3"), []string{"::ffff:198.51.100.1"}, "198.51.100.1"},
		"a proxy that says nothing":    {tcp("10.1.2.3"), nil, "10.1.2.3"},
		"the client claims first":      {tcp("10.1.2.3"), []string{"203.0.113.9, 198.51.100.1"}, "198.51.100.1"},
		"the claim in its own line":    {tcp("10.1.2.3"), []string{"203.0.113.9", "198.51.100.1"}, "198.51.100.1"},
		"two proxies":                  {tcp("10.1.2.3"), []string{"203.0.113.9, 198.51.100.1, 192.0.2.1"}, "198.51.100.1"},
		"two proxies in two lines":     {tcp("10.1.2.3"), []string{"198.51.100.1", "192.0.2.1"}, "198.51.100.1"},
		"a neighbour of the proxy":     {tcp("10.1.2.3"), []string{"198.51.100.1, 192.0.2.2"}, "192.0.2.2"},
		"all trusted":                  {tcp("10.1.2.3"), []string{"10.9.9.9, 10.8.8.8"}, "10.9.9.9"},
		"with a port":                  {tcp("10.1.2.3"), []string{"198.51.100.1:4711"}, "198.51.100.1"},
		"IPv6 with a port":             {tcp("10.1.2.3"), []string{"[2001:db8:1::1]:4711"}, "2001:db8:1::1"},
		"IPv6 in brackets":             {tcp("10.1.2.3"), []string{"[2001:db8:1::1]"}, "2001:db8:1::1"},
		"a zone is no part":            {tcp("10.1.2.3"), []string{"fe80::1%anything"}, "fe80::1"},
		"no address at the end":        {tcp("10.1.2.3"), []string{"198.51.100.1, unknown"}, "10.1.2.3"},
		"no address behind a proxy":    {tcp("10.1.2.3"), []string{"secret, 192.0.2.1"}, "192.0.2.1"},
		"no address that nobody reads": {tcp("10.1.2.3"), []string{"unknown, 198.51.100.1"}, "198.51.100.1"},
		"empty":                        {tcp("10.1.2.3"), []string{""}, "10.1.2.3"},
	} {
		if got := proxies.Source(test.peer, test.forwarded); got != test.want {
			t.Errorf("%s: %v with %q has the source %q, want %q", name, test.peer, test.forwarded, got, test.want)
		}
	}
	if got := (caller.Proxies)(nil).Source(tcp("10.1.2.3"), []string{"198.51.100.1"}); got != "10.1.2.3" {
		t.Errorf("without trusted proxies: %q", got)
	}
	for _, wrong := range []string{"", "proxy.example", "10.0.0.0/33", "10.0.0.1:80", "fe80::1%eth0"} {
		if _, err := caller.ParseProxies([]string{wrong}); err == nil {
			t.Errorf("%q was taken for a network", wrong)
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
