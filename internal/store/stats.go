package store

import "github.com/watchword-auth/watchword/internal/count"

// Stats holds the numbers of a Store, for metrics.
type Stats struct {
	Away        bool   // the database does not answer
	Outages     uint64 // the number of outages that have begun since the start
	FailedCalls uint64 // calls that failed because the database was away
	// Reads, Writes and Spends have the time of each call of [Store.Read], [Store.Write] and
	// [Store.Spend], with the wait for a connection and for the commit, whatever the outcome.
	Reads, Writes, Spends count.Histogram
	Connections           Connections
}

// Connections holds the numbers of the connections that callers share. On SQLite, Connections
// has the numbers of the connections for reading.
type Connections struct {
	InUse, Idle int
	Most        int // the largest number of connections that the pool is allowed to have
	Withheld    int // the number of connections that PostgreSQL has refused a moment ago, see [slots]
}

// Stats returns the numbers of the Store, without a query to the database.
func (s *Store) Stats() Stats {
	stats := Stats{
		Away: s.outage.away.Load(), Reads: s.reads.Read(), Writes: s.writes.Read(), Spends: s.spends.Read(),
		Connections: s.engine.stats(),
	}
	s.outage.mu.Lock()
	defer s.outage.mu.Unlock()
	stats.Outages, stats.FailedCalls = s.outage.outages, s.outage.failures
	return stats
}

func (s *sqliteDB) stats() Connections {
	idle := len(s.readers)
	return Connections{InUse: cap(s.readers) - idle, Idle: idle, Most: cap(s.readers)}
}

func (p *pgDB) stats() Connections {
	stat := p.pool.Stat()
	p.slots.mu.Lock()
	defer p.slots.mu.Unlock()
	return Connections{
		InUse: int(stat.AcquiredConns()), Idle: int(stat.IdleConns()), Most: int(stat.MaxConns()), Withheld: p.slots.withheld,
	}
}
