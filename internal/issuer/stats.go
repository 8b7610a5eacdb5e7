package issuer

import "time"

// Stats holds the numbers of a [KeySet], for metrics.
type Stats struct {
	Keys map[State]int
	// Ages has, for each state but Revoked, the longest time that a key of the state has been
	// in the state.
	Ages map[State]time.Duration
	// Problems counts how often this process has read a key set from the database that could
	// not be used as it was. For each problem, the log has an ERROR that says what to do.
	Problems uint64
}

// Stats returns the numbers of the key set at a time.
func (k *KeySet) Stats(now time.Time) Stats {
	k.mu.RLock()
	defer k.mu.RUnlock()
	s := Stats{
		Keys: map[State]int{Next: 0, Signing: 0, Retired: 0, Revoked: 0}, Ages: map[State]time.Duration{}, Problems: k.problems,
	}
	for _, row := range k.rows {
		of := state(row, now)
		s.Keys[of]++
		since := map[State]time.Time{Next: row.PublishedAt, Signing: row.SignsFrom, Retired: row.SignsUntil}[of]
		if of != Revoked {
			s.Ages[of] = max(s.Ages[of], now.Sub(since))
		}
	}
	return s
}
