package hub

import "fmt"

// Check returns an error if an invariant stated at ring or Watcher does not hold.
func Check(h *Hub, watchers ...*Watcher) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := &h.ring
	if len(r.entries) > ringSize || r.afterTrust > r.end() {
		return fmt.Errorf("%d entries, afterTrust %d, end %d", len(r.entries), r.afterTrust, r.end())
	}
	size := 0
	for _, e := range r.entries {
		size += len(e.message)
	}
	if size != r.bytes || size > ringBytes && len(r.entries) > 1 {
		return fmt.Errorf("%d entries of %d bytes, counted as %d", len(r.entries), size, r.bytes)
	}
	for i, e := range r.entries {
		if e.seq > r.at.Seq || i > 0 && e.seq < r.entries[i-1].seq {
			return fmt.Errorf("entry %d has number %d, the state %d", i, e.seq, r.at.Seq)
		}
	}
	for i, p := range r.recent {
		if p.Seq > r.at.Seq || i > 0 && p.Seq != r.recent[i-1].Seq+1 {
			return fmt.Errorf("event %d has number %d, the state %d", i, p.Seq, r.at.Seq)
		}
	}
	for _, w := range watchers {
		if w.next > r.end() {
			return fmt.Errorf("a watcher waits for message %d, of %d", w.next, r.end())
		}
	}
	return nil
}
