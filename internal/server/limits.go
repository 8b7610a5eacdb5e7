package server

import (
	"fmt"

	"github.com/watchword-auth/watchword/internal/gate"
)

const (
	// defaultConnections is the number of gRPC connections that a server accepts at a time,
	// unless --max-connections or the limit of open files says otherwise. docs/scaling.md
	// gives the memory of a connection, of an unfinished request and of a stream; the
	// numbers below follow from these.
	defaultConnections = 2048
	minConnections     = 16
	// reservedFiles is the number of open files that the server keeps for the database, its
	// listeners and its own files.
	reservedFiles = 64
)

// limits holds the bounds that follow from the number of connections.
type limits struct {
	connections int // to the gRPC address
	http        int // connections to the HTTP address
	watchers    int // streams of the trust bundle: a verifier has a connection of its own
	calls       gate.Limits
}

// limits returns the bounds of a configuration. files is the number of files that the
// process may have open; 0 means no limit. Connections to one address cannot take the files
// of the other address: each has a number of its own.
//
// Errors: one that names --max-connections and the limit of open files, if the connections
// do not fit.
func (c *Config) limits(files int) (limits, error) {
	connections := c.MaxConnections
	if connections == 0 {
		connections = defaultConnections
		if fit := (files - reservedFiles) * 8 / 9; files > 0 && fit < connections {
			connections = max(minConnections, fit)
		}
	}
	l := limits{connections: connections, http: max(minConnections/2, connections/16), watchers: connections, calls: gate.Limits{
		Requests: max(32, connections/4), RequestsPerPeer: max(16, connections/8),
		Streams: max(16, connections/8), StreamsPerPeer: max(8, connections/32),
	}}
	if needed := l.connections + l.http + reservedFiles; files > 0 && needed > files {
		return limits{}, fmt.Errorf("--max-connections: %d connections need %d open files, and the limit of open files (ulimit -n) is %d: "+
			"raise the limit, or give a smaller --max-connections", connections, needed, files)
	}
	return l, nil
}
