package server

import "testing"

// By default the server takes as many connections as the limit of open files allows. The
// connections of trusted proxies are more than the calls that the gate admits, for a proxy that
// makes a connection for each call.
func TestConnectionsFitTheOpenFiles(t *testing.T) {
	t.Parallel()
	for _, proxies := range [][]string{nil, {"10.0.0.9"}} {
		c := &Config{TrustedProxy: proxies}
		for files := 170; files < 7000; files += 10 {
			l, err := c.limits(files)
			if err != nil {
				t.Fatalf("%d files, proxies %v: %v", files, proxies, err)
			}
			if l.files() > files || l.connections < defaultConnections && c.limitsOf(l.connections+1).files() <= files {
				t.Fatalf("%d files, proxies %v: %d connections, which need %d files", files, proxies, l.connections, l.files())
			}
			if calls := l.watchers + l.calls.Reports + l.calls.Streams + l.calls.Requests; len(proxies) > 0 && l.proxied <= calls {
				t.Fatalf("%d connections of proxies for %d calls", l.proxied, calls)
			}
		}
		c.MaxConnections = 5000
		if _, err := c.limits(5000); err == nil {
			t.Errorf("5,000 connections with 5,000 files and proxies %v", proxies)
		}
	}
}
