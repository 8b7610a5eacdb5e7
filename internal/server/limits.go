package server

import (
	"cmp"
	"fmt"

	"github.com/watchword-auth/watchword/internal/gate"
)

const (
	// defaultConnections is the number of gRPC connections that a server accepts at a time,
	// unless --max-connections or the limit of open files says otherwise. The constants in this
	// file follow from the memory of a connection, of an unfinished request and of a stream,
	// which docs/scaling.md gives.
	defaultConnections = 2048
	minConnections     = 16
	// reservedFiles is the number of open files that the server keeps for the database, its
	// listeners and its own files.
	reservedFiles = 64
	// knownNetworks is the largest number of known networks: networks from which a client has
	// shown a right password or a valid token (see [share.Known]). Each known network takes
	// about 600 bytes.
	knownNetworks = 8192
)

// limits holds the bounds that follow from --max-connections.
type limits struct {
	connections int // the largest number of connections to the gRPC address
	proxied     int // the largest number of connections of trusted proxies to the gRPC address; 0 without --trusted-proxy
	http        int // the largest number of connections to the HTTP address
	watchers    int // the largest number of streams of the trust bundle, one for each verifier
	calls       gate.Limits
}

// limits returns the bounds of a configuration. files is the number of files that the process
// is allowed to have open; 0 means no limit. Connections to one address cannot take the files
// of the other address: each address has a bound of its own.
//
// Errors: an error that names --max-connections and the limit of open files, if the connections
// need more files than the limit.
func (c *Config) limits(files int) (limits, error) {
	l := c.limitsOf(cmp.Or(c.MaxConnections, defaultConnections))
	for c.MaxConnections == 0 && files > 0 && l.files() > files && l.connections > minConnections {
		l = c.limitsOf(l.connections - 1)
	}
	if files > 0 && l.files() > files {
		return limits{}, fmt.Errorf("--max-connections: %d connections need %d open files, and the limit of open files (ulimit -n) is %d: "+
			"raise the limit, or give a smaller --max-connections", l.connections, l.files(), files)
	}
	return l, nil
}

// limitsOf returns the bounds for a number of connections to the gRPC address.
func (c *Config) limitsOf(connections int) limits {
	// A verifier has a connection of its own. One in four connections is reserved for other
	// clients than verifiers: a connection without a call gives way to a new connection, and a
	// connection with a verifier's stream does not.
	watchers := connections - connections/4
	l := limits{connections: connections, http: max(minConnections/2, connections/16), watchers: watchers, calls: gate.Limits{
		Requests: max(32, connections/4), RequestsPerPeer: max(16, connections/8),
		Streams: max(16, connections/8), StreamsPerPeer: max(8, connections/32),
		Reports: watchers, ReportsPerPeer: watchers / 2,
	}}
	if len(c.TrustedProxy) > 0 {
		// A proxy such as nginx makes a connection for each call. One in eight connections is a
		// reserve, for calls that the gate refuses and for connections without a call.
		l.proxied = l.watchers + l.calls.Reports + l.calls.Streams + l.calls.Requests + connections/8
	}
	return l
}

// files returns the number of open files that the connections need, and the open files that the
// database and the server itself need.
func (l limits) files() int {
	files := l.connections + l.http + reservedFiles
	if l.proxied > 0 {
		files += l.proxied + l.http // connections of proxies to the HTTP address have a bound of their own, of the same size
	}
	return files
}
