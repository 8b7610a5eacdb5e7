package feed

// Beat sends a heartbeat to all watchers now.
func Beat(f *Feed) { f.beat() }
