package store

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// values returns the values of a batch's jobs.
func values[T any](batch []*job[T]) (list []T) {
	for _, j := range batch {
		list = append(list, j.value)
	}
	return list
}

// collect answers the members of every batch, and returns the batches' values.
func collect(q *queue[int]) (batches [][]int) {
	for batch := range q.batches {
		batches = append(batches, values(batch))
		for _, j := range batch {
			j.result <- nil
		}
	}
	return batches
}

func enqueued(t *testing.T, q *queue[int], value int) *job[int] {
	t.Helper()
	j, err := q.enqueue(t.Context(), value)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestQueueGathersWhatIsQueued(t *testing.T) {
	q := newQueue[int](3)
	var jobs []*job[int]
	for n := range 3 {
		jobs = append(jobs, enqueued(t, q, n))
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := q.enqueue(gone, 3); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("no room: %v", err)
	}
	if answered, err := jobs[1].wait(gone, nil); !answered || !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("withdrawn: %v, %v", answered, err)
	}
	q.close()
	q.close()
	if _, err := q.enqueue(t.Context(), 4); !errors.Is(err, errClosed) {
		t.Errorf("closed: %v", err)
	}
	if got := collect(q); len(got) != 1 || !slices.Equal(got[0], []int{0, 2}) {
		t.Errorf("batches %v", got)
	}
	for _, i := range []int{0, 2} {
		if answered, err := jobs[i].wait(t.Context(), nil); !answered || err != nil {
			t.Errorf("job %d: %v, %v", i, answered, err)
		}
	}
}

func TestQueueKeepsATakenJob(t *testing.T) {
	q, refusal := newQueue[int](1), errors.New("refused")
	j := enqueued(t, q, 1)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for batch := range q.batches {
		if answered, err := j.wait(gone, nil); answered || err != nil {
			t.Errorf("taken: %v, %v", answered, err)
		}
		batch[0].result <- refusal
		q.close()
	}
	if answered, err := j.wait(t.Context(), nil); !answered || !errors.Is(err, refusal) {
		t.Errorf("answered: %v, %v", answered, err)
	}
}

// Every job is either run by exactly one worker or withdrawn, never both, and no
// batch is larger than the queue.
func TestQueueRunsEachJobOnce(t *testing.T) {
	const callers, jobs, size = 16, 200, 8
	q := newQueue[*atomic.Int32](size)
	var workers, tasks sync.WaitGroup
	for range 2 {
		workers.Go(func() {
			for batch := range q.batches {
				if len(batch) > size {
					t.Errorf("a batch of %d", len(batch))
				}
				for _, j := range batch {
					j.value.Add(1)
					j.result <- nil
				}
			}
		})
	}
	var withdrawn, ran atomic.Int32
	for caller := range callers {
		tasks.Go(func() {
			for n := range jobs {
				ctx, cancel := context.WithCancel(context.Background())
				var runs atomic.Int32
				j, err := q.enqueue(ctx, &runs)
				if err != nil {
					t.Error(err)
				}
				if (caller+n)%3 == 0 {
					cancel()
				}
				answered, err := j.wait(ctx, nil)
				if !answered {
					err = <-j.result
				}
				want := int32(1)
				if err != nil {
					want = 0
					withdrawn.Add(1)
				} else {
					ran.Add(1)
				}
				if got := runs.Load(); got != want {
					t.Errorf("ran %d times, told %v", got, err)
				}
				cancel()
			}
		})
	}
	tasks.Wait()
	q.close()
	workers.Wait()
	if ran.Load() == 0 || withdrawn.Load() == 0 {
		t.Errorf("%d jobs ran and %d were withdrawn", ran.Load(), withdrawn.Load())
	}
}
