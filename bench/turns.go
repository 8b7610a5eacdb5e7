package main

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

// side is one of the compared sides: a call that several workers make again and again. i counts
// a worker's calls within a turn.
type side struct {
	name string
	call func(worker, i int) error
}

// race says how the compared sides take turns, such as a server with a feature and one without.
type race struct {
	turns   int
	stint   time.Duration // for how long each side runs in a turn
	workers int
	batch   int // calls between two looks at the clock
	// processor counts calls for each second of the process's processor time, of client and
	// server. For sides that wait for nothing else, this is their cost, whatever other programs
	// run on the machine.
	processor bool
}

// rates are calls a second, one for each turn.
type rates []float64

// run lets every side run once in each turn, from first to last and the next time
// from last to first. There is one turn more at the beginning, which warms up and
// does not count.
func (r race) run(sides ...side) ([]rates, error) {
	all := make([]rates, len(sides))
	for turn := range r.turns + 1 {
		for k := range sides {
			if turn%2 == 1 {
				k = len(sides) - 1 - k
			}
			runtime.GC() // collects the garbage of one side, so that the next side does not pay for it
			rate, err := r.stintOf(sides[k])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", sides[k].name, err)
			}
			if turn > 0 {
				all[k] = append(all[k], rate)
			}
		}
	}
	return all, nil
}

// lap holds what a side did in one turn.
type lap struct {
	rate  float64 // calls a second that ended within the stint
	calls int     // every call, those included that ended after the stint
}

// lap lets the workers make calls for the time of r.stint.
func (r race) lap(call func(worker, i int) error) (l lap, err error) {
	var (
		tasks sync.WaitGroup
		begin = make(chan struct{})
		start time.Time
		each  = make([]lap, r.workers)
		errs  = make([]error, r.workers)
	)
	for w := range r.workers {
		tasks.Go(func() {
			<-begin
			for calls, inTime := 0, 0; ; inTime = calls {
				for range r.batch {
					if err := call(w, calls); err != nil {
						errs[w] = err
						return
					}
					calls++
				}
				if time.Since(start) > r.stint {
					each[w] = lap{float64(inTime) / r.stint.Seconds(), calls}
					return
				}
			}
		})
	}
	start = time.Now()
	close(begin)
	tasks.Wait()
	for w := range r.workers {
		if errs[w] != nil {
			return lap{}, errs[w]
		}
		l.rate += each[w].rate
		l.calls += each[w].calls
	}
	return l, nil
}

// stintOf returns the rate of a side in a stint.
func (r race) stintOf(s side) (float64, error) {
	var before, after syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &before); err != nil {
		return 0, err
	}
	l, err := r.lap(s.call)
	if err != nil {
		return 0, err
	}
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &after); err != nil {
		return 0, err
	}
	if r.processor {
		return float64(l.calls) / time.Duration(after.Utime.Nano()+after.Stime.Nano()-before.Utime.Nano()-before.Stime.Nano()).Seconds(), nil
	}
	return l.rate, nil
}

// nanos is the time for one call: of all cores together, as `go test -bench` has
// it for RunParallel.
func (r rates) nanos() float64 { return 1e9 / median(r) }

// over is the median of the turns' ratios.
func (r rates) over(other rates) float64 {
	ratios := make([]float64, len(r))
	for i := range r {
		ratios[i] = r[i] / other[i]
	}
	return median(ratios)
}

// overAll returns the ratio to the best of the other sides, as over calculates the ratio.
func (r rates) overAll(others []rates) float64 {
	least := math.Inf(1)
	for _, other := range others {
		least = min(least, r.over(other))
	}
	return least
}

func median(values []float64) float64 { return quantile(values, 0.5) }

// quantile returns the value that the part q of all values does not exceed.
func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	if q == 0.5 && len(sorted)%2 == 0 {
		return (sorted[len(sorted)/2-1] + sorted[len(sorted)/2]) / 2
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
