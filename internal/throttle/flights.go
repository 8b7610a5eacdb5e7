package throttle

import (
	"context"
	"slices"
	"sync"
)

// flights counts the running tries (guesses at a secret, such as logins) at each name in this
// process. A try runs from before the read of its buckets until [Try.End], when the count of a
// wrong guess is on disk. The ids of the two buckets of a name stand for the name. The zero
// value is ready for use.
type flights struct {
	mu   sync.Mutex
	keys map[[2]int64]*flight // only names with a running or waiting try
}

// flight holds the tries at one name that run or wait in this process. flights.mu guards a
// flight.
type flight struct {
	running int
	waiting []chan struct{} // one channel for each waiting try, in order of arrival; closed to wake the try
}

// join adds a try at a name, and returns the number of running tries at the name, the new try
// included. The caller must then call leave or wait.
func (f *flights) join(ids [2]int64) (running int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := f.keys[ids]
	if at == nil {
		at = &flight{}
		if f.keys == nil {
			f.keys = map[[2]int64]*flight{}
		}
		f.keys[ids] = at
	}
	at.running++
	return at.running
}

// leave removes a running try, and wakes the waiting try at the same name that has waited
// longest.
func (f *flights) leave(ids [2]int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := f.keys[ids]
	at.running--
	f.wakeLocked(ids, at)
}

// wakeLocked wakes the try that has waited longest. The woken try joins again, and wakes
// the next try when the woken try leaves. As long as a try waits, another try at the name
// therefore runs or is about to join.
func (f *flights) wakeLocked(ids [2]int64, at *flight) {
	switch {
	case len(at.waiting) > 0:
		close(at.waiting[0])
		at.waiting = at.waiting[1:]
	case at.running == 0 && f.keys[ids] == at:
		delete(f.keys, ids)
	}
}

// wait removes a running try, and waits until another try at the same name leaves. If no other
// try runs, wait returns at once. After a nil error, the caller must call join again.
func (f *flights) wait(ctx context.Context, ids [2]int64) error {
	f.mu.Lock()
	at := f.keys[ids]
	at.running--
	if at.running == 0 {
		f.wakeLocked(ids, at)
		f.mu.Unlock()
		return ctx.Err()
	}
	woken := make(chan struct{})
	at.waiting = append(at.waiting, woken)
	f.mu.Unlock()
	select {
	case <-woken:
		return nil
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.Index(at.waiting, woken); i >= 0 {
		at.waiting = slices.Delete(at.waiting, i, i+1)
	} else { // ctx has ended just when the try was woken: wake another try
		f.wakeLocked(ids, at)
	}
	return ctx.Err()
}
