package audit

// Stats holds the numbers of a [Log], for metrics.
type Stats struct {
	// Recorded counts, by type, the events that were committed, and the repeats of refresh
	// tokens. Refused calls are in none of these numbers, with one exception: RefreshReused.
	Recorded map[Type]uint64
	// Unwritten counts the refused calls and repeats that are in no record of the database
	// yet. If the process is killed, unwritten calls stay missing in the security record.
	Unwritten int64
	// Merged counts the kinds of refused calls that have lost a record of their own, because
	// there were more kinds than places. The calls of these kinds are counted in coarser records.
	Merged        uint64
	FailedFlushes uint64 // see [Log.Flush]
}

// Stats returns the numbers of the log.
func (l *Log) Stats() Stats {
	s := Stats{Recorded: map[Type]uint64{}, FailedFlushes: l.failedFlushes.Load()}
	for t, n := range l.recorded {
		if t != Call {
			s.Recorded[t] = n.Load()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.Merged = l.merged + l.current.merged
	for _, w := range []*window{l.closing, l.current} {
		if w == nil {
			continue
		}
		for _, t := range w.tallies() {
			s.Unwritten += t.count - t.written
		}
	}
	return s
}
