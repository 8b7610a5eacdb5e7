package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"time"

	testv1 "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/protobuf/proto"
)

// A refresh is compared with the sum of its least parts: a call, a signature, and an update of
// a row in a commit that is on the disk. The program bench/limits does the parts, in processes
// of its own and without code of Watchword. Each part runs alone, with as many callers as the
// refreshes. The limit is the rate of a program that does the parts one after the other.

// part is the refresh or one of its parts.
type part struct {
	name string
	*program
	run      func(callers int, d time.Duration) (lap, error)
	database int // the process id of PostgreSQL, if the part uses PostgreSQL

	rates rates // a rate for each turn
	sum   spent
}

// spent holds the processor time and the bytes that a part has used.
type spent struct {
	calls         int
	own, database time.Duration // the processor time of the program, and of PostgreSQL
	written       int64         // bytes to the disk, by the program
	faults        int           // pages that the program got from the operating system
}

// spentNow reads what the processes of the part have used since their start.
func (p *part) spentNow() (s spent, err error) {
	var errs [4]error
	s.own, errs[0] = processorTime(p.cmd.Process.Pid, false)
	s.written, errs[1] = diskBytes(p.cmd.Process.Pid)
	s.faults, errs[2] = pageFaults(p.cmd.Process.Pid)
	if p.database != 0 {
		s.database, errs[3] = processorTime(p.database, true)
	}
	return s, errors.Join(errs[:]...)
}

// stint runs the part for a time. The figures are kept if counts is true.
func (p *part) stint(callers int, d time.Duration, counts bool) error {
	before, err := p.spentNow()
	if err != nil {
		return err
	}
	l, err := p.run(callers, d)
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	after, err := p.spentNow()
	if err == nil && counts {
		p.rates = append(p.rates, l.rate)
		p.sum.calls += l.calls
		p.sum.own += after.own - before.own
		p.sum.database += after.database - before.database
		p.sum.written += after.written - before.written
		p.sum.faults += after.faults - before.faults
	}
	return err
}

// perCall returns a sum of times for each call, in µs.
func (p *part) perCall(sum time.Duration) float64 {
	return float64(sum.Microseconds()) / float64(p.sum.calls)
}

// refreshAgainst compares refreshes of the built server on a database with their parts. updates
// holds one part, or one for each number of connections that is tried.
func (b *bench) refreshAgainst(i *installation, updates []*part) (err error) {
	parts := slices.Clone(updates)
	defer func() {
		for _, p := range parts {
			err = errors.Join(err, p.stop())
		}
	}()
	server, err := i.start()
	if err != nil {
		return err
	}
	refresh := &part{name: "refresh", program: server, database: updates[0].database}
	parts = append(parts, refresh)
	if err := i.crowd.dial(); err != nil {
		return err
	}
	defer i.crowd.hangUp()
	sign, err := startPart("sign", i.limits(), "sign")
	if err != nil {
		return err
	}
	parts = append(parts, sign)
	asked, answer, err := i.crowd.refreshing(1, upTo(1, tableRows-1)).refresh(0, 0)
	if err != nil {
		return err
	}
	call, err := i.startCalls(asked, answer)
	if err != nil {
		return err
	}
	parts = append(parts, call)
	if err := server.settle(); err != nil {
		return err
	}
	spread := rand.Perm(tableRows - 1) // the last session has been refreshed
	for k, n := range []int{1, 32, callers} {
		// Each number of callers has separate sessions, since the tokens of sessions that were
		// refreshed before are spent.
		calls := i.crowd.refreshing(n, spread[k*refreshed:(k+1)*refreshed])
		watch := &stopwatch{call: calls.call, took: make([][]time.Duration, n)}
		refresh.run = calling(watch.run)
		update, err := fastest(updates, n)
		if err != nil {
			return err
		}
		if err := b.nextProfile(server); err != nil {
			return err
		}
		all := []*part{refresh, call, sign, update}
		if err := b.turns(all, n); err != nil {
			return fmt.Errorf("%d callers: %w", n, err)
		}
		b.reportParts(fmt.Sprintf("%s/%d-callers/", i.name, n), all, n)
		for _, q := range []float64{0.5, 0.99} {
			b.report(fmt.Sprintf("%s/%d-callers/p%g", i.name, n, 100*q), watch.quantile(q), "ms", limit{})
		}
	}
	return nil
}

// fastest returns the part that is fastest with a number of callers.
func fastest(parts []*part, callers int) (best *part, err error) {
	if len(parts) == 1 {
		return parts[0], nil
	}
	most := 0.0
	for _, p := range parts {
		var l lap
		for range 2 { // the first time opens the connections
			if l, err = p.run(callers, 400*time.Millisecond); err != nil {
				return nil, err
			}
		}
		if l.rate > most {
			best, most = p, l.rate
		}
	}
	return best, nil
}

// turns lets the parts take turns, in both orders. The first turn warms up.
func (b *bench) turns(parts []*part, callers int) error {
	for _, p := range parts {
		p.rates, p.sum = nil, spent{}
	}
	for turn := range b.of(8, 40) + 1 {
		for k := range parts {
			if turn%2 == 1 {
				k = len(parts) - 1 - k
			}
			runtime.GC()
			if err := parts[k].stint(callers, 500*time.Millisecond, turn > 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// reportParts reports the refresh, which is the first of all, beside its parts.
func (b *bench) reportParts(name string, all []*part, callers int) {
	refresh, parts := all[0], all[1:]
	limits := make(rates, len(refresh.rates))
	for turn := range limits {
		for _, p := range parts {
			limits[turn] += 1 / p.rates[turn]
		}
		limits[turn] = 1 / limits[turn]
	}
	promised := atLeast(0.9)
	if callers == 1 {
		promised = atLeast(0.8)
	}
	b.report(name+"of-limit", refresh.rates.over(limits), "of-it", promised)
	b.report(name+"limit", median(limits), "calls/s", limit{})
	least := 0.0
	for _, p := range all {
		b.report(name+p.name, median(p.rates), "calls/s", limit{})
		if p != refresh {
			least += p.perCall(p.sum.own + p.sum.database)
		}
	}
	b.report(name+"processor-time/parts-of-refresh", least/refresh.perCall(refresh.sum.own+refresh.sum.database), "of-it", limit{})
	for _, p := range all {
		b.report(name+"processor-time/"+p.name, p.perCall(p.sum.own), "µs", limit{})
		if p.database != 0 {
			b.report(name+"processor-time/"+p.name+"/postgres", p.perCall(p.sum.database), "µs", limit{})
		}
		if p.sum.written > 0 {
			b.report(name+"written/"+p.name, float64(p.sum.written)/float64(p.sum.calls), "bytes", limit{})
		}
	}
}

// calling returns the run of a part that this process calls.
func calling(call func(worker, i int) error) func(int, time.Duration) (lap, error) {
	return func(callers int, d time.Duration) (lap, error) {
		return race{stint: d, workers: callers, batch: 1}.lap(call)
	}
}

// startPart starts a part that calls itself, and waits until the part is ready.
func startPart(name string, args ...string) (*part, error) {
	p, err := launch(args...)
	if err != nil {
		return nil, err
	}
	_, err = p.line("ready")
	return &part{name: name, program: p, run: func(callers int, d time.Duration) (l lap, err error) {
		if _, err = fmt.Fprintln(p.in, callers, d.Milliseconds()); err != nil {
			return l, err
		}
		line, err := p.line("")
		if err == nil {
			_, err = fmt.Sscan(line, &l.rate, &l.calls)
		}
		return l, err
	}}, err
}

// startCalls starts a server without interceptors. The messages have the sizes of a request and
// an answer of Watchword.
func (i *installation) startCalls(asked, answer proto.Message) (*part, error) {
	p, err := launch(i.limits(), "call", strconv.Itoa(proto.Size(answer)))
	if err != nil {
		return nil, err
	}
	addr, err := p.line("127.0.0.1:")
	if err != nil {
		return nil, err
	}
	conns, err := dial(addr, connections)
	if err != nil {
		return nil, err
	}
	clients := make([]testv1.TestServiceClient, len(conns))
	for k, conn := range conns {
		clients[k] = testv1.NewTestServiceClient(conn)
	}
	request := &testv1.SimpleRequest{Payload: &testv1.Payload{}}
	for proto.Size(request) < proto.Size(asked) {
		request.Payload.Body = bytes.Repeat([]byte{'x'}, len(request.Payload.Body)+1)
	}
	return &part{name: "call", program: p, run: calling(func(worker, _ int) error {
		_, err := clients[worker%connections].UnaryCall(context.Background(), request)
		return err
	})}, nil
}
