// Package roster knows the watchers of every replica. A watcher is a service's verifier with a
// stream of the trust bundle. A roster has the streams and what the watchers report, for
// display alone: no decision of a server depends on a roster, since a report proves nothing,
// and without client certificates any client can report anything.
//
// Each replica keeps its own watchers in memory, and writes a summary of them into its row of
// the table replicas: once a minute, and several times a second after a question. A question is
// a time in the database, written by [store.Tx.AskReplicas]. Package feed reads the time of the
// question together with the events, and passes the time to [Roster.Asked]. A replica that is
// asked sends heartbeats more often, since a watcher reports after each heartbeat. A watcher does
// not report after a revocation, so a report never delays a revocation. While no replica is asked,
// a watcher reports once in five seconds.
//
// A watcher's reports may reach another replica than the watcher's stream. So [Roster.List]
// joins streams and reports by the random id of the watcher.
package roster

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/watchword-auth/watchword/internal/hub"
	"github.com/watchword-auth/watchword/internal/store"
)

const (
	// writeEvery is the time between two writes of a replica's row in the table replicas while
	// no call of List asks the replicas. The row shows that the replica runs, and, if the replica
	// is killed, which watchers the replica had.
	writeEvery = time.Minute
	// againAfter is the time between two attempts of a write that fails.
	againAfter = time.Second
	// askedFor is the time for which a replica keeps writing its watchers into its row several
	// times a second, after a question of a List.
	askedFor = 5 * time.Second
	// busyEvery is the pause of [Roster.Run] between two checks, during askedFor after a
	// question, whether the replica's row must be written.
	busyEvery = 50 * time.Millisecond
	// gather is the time between a heartbeat to the watchers and the write of the replica's
	// row: during gather, the reports of the watchers arrive.
	gather = 100 * time.Millisecond
	// During askedFor after a question, a heartbeat follows a new event within beatEvery; with
	// more than 200 watchers, within beatPerWatcher for each watcher. So a replica gets at most
	// 2,000 reports a second. Without a new event, the next heartbeat follows after quietBeat.
	beatEvery      = 100 * time.Millisecond
	beatPerWatcher = 500 * time.Microsecond
	quietBeat      = time.Second
	// writeRate bounds what a replica writes into its row during askedFor, in bytes a second.
	// 1,536 clients without a certificate that send the longest reports have a summary of 7.4
	// MB. At writeRate the summary is written every 1.8 s, before List shows the replica as one
	// that does not answer (lateAfter).
	writeRate = 4 << 20
)

// Self holds what the process tells its own roster about this replica.
type Self struct {
	Address          string // the name of the machine, and the address of the gRPC listener
	NeedsCertificate bool   // true if a watcher must show a client certificate (--client-ca)
}

// Roster holds the watchers of one replica, and lists those of every replica. A Roster is
// safe for concurrent use.
type Roster struct {
	store  *store.Store
	hub    *hub.Hub
	self   Self
	id     int64 // random for each process
	logger *slog.Logger
	wake   chan struct{} // has room for one element, which makes Run check at once whether the row must be written
	asking chan struct{} // has room for one element; full while a caller of ask asks the replicas

	lastAsked time.Time // the time of this roster's newest question; only the caller that has filled asking uses lastAsked

	mu      sync.Mutex // guards the fields below
	streams map[*Stream]struct{}
	reports map[identity]*Reports
	seen    map[string]time.Time // by the name in a watcher's certificate, when the database was told of the certificate; zero: not yet
	number  uint64               // the number of the newest stream
	changes uint64               // the number of changes of streams and reports so far
	asked   time.Time            // the time of the newest question of any replica, by the database's clock
	heard   time.Time            // when this process read the question of the time asked
}

// identity is the key under which a roster finds the reports of a watcher: the random id that
// the watcher has chosen, and the certificate that the watcher has shown.
type identity struct{ watcher, certificate string }

// New returns the roster of a replica that has no watchers yet. [Roster.Run] writes the
// watchers into the database for the other replicas. If h is nil, the process is a command that
// only lists the watchers of the servers, and must not call Run.
func New(s *store.Store, h *hub.Hub, self Self, logger *slog.Logger) *Roster {
	var id [8]byte
	rand.Read(id[:])
	return &Roster{
		store: s, hub: h, self: self, id: int64(binary.BigEndian.Uint64(id[:]) >> 1), logger: logger,
		wake: make(chan struct{}, 1), asking: make(chan struct{}, 1),
		streams: map[*Stream]struct{}{}, reports: map[identity]*Reports{}, seen: map[string]time.Time{},
	}
}

// Client describes the client of a stream of the trust bundle or of reports.
type Client struct {
	Watcher     []byte // the random id that the watcher has chosen; empty: the watcher sends no reports
	Address     string
	Certificate string // the name in the certificate; empty without a certificate
}

func (c *Client) identity() identity { return identity{string(c.Watcher), c.Certificate} }

// Stream stands for a verifier's stream of the trust bundle in the roster of this replica.
type Stream struct {
	Client
	roster *Roster
	number uint64
	opened time.Time
}

// Opened adds a new stream of the trust bundle to the roster. The caller must call
// [Stream.Close] at the end of the stream.
func (r *Roster) Opened(c Client) *Stream {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.number++
	s := &Stream{Client: c, roster: r, number: r.number, opened: time.Now()}
	r.streams[s] = struct{}{}
	r.changes++
	if _, known := r.seen[c.Certificate]; c.Certificate != "" && !known {
		r.seen[c.Certificate] = time.Time{}
	}
	return s
}

// Close removes the stream.
func (s *Stream) Close() {
	s.roster.mu.Lock()
	defer s.roster.mu.Unlock()
	delete(s.roster.streams, s)
	s.roster.changes++
	if s.Certificate != "" {
		s.roster.seen[s.Certificate] = time.Time{}
	}
}

// Words holds the names that a watcher (a verifier) gives itself in the reports.
type Words struct{ Service, Instance, Version string }

// Reports stands for a watcher's stream of reports (ReportWatcher) in the roster, and holds the
// newest report.
type Reports struct {
	Words
	roster *Roster
	of     identity
	// Roster.mu guards the fields below.
	at   time.Time // when the newest report came; zero: the watcher has sent no report
	last Report
}

// Report holds the state that a watcher reports, such as the newest event that it has applied.
type Report struct {
	Position  int64 // the number of the newest event that the watcher has applied; 0: unknown
	Staleness time.Duration
	Refusals  map[int32]uint64 // the number of refused calls, by reason
}

// Reporting adds a watcher's stream of reports (ReportWatcher) to the roster. The caller must
// call [Reports.Close] at the end of the stream. If a watcher has several streams of reports,
// the roster shows the reports of the newest stream.
func (r *Roster) Reporting(c Client, words Words) *Reports {
	r.mu.Lock()
	defer r.mu.Unlock()
	reports := &Reports{Words: words, roster: r, of: c.identity()}
	r.reports[reports.of] = reports
	return reports
}

// Add replaces the watcher's report by a newer report.
func (s *Reports) Add(report Report) {
	s.roster.mu.Lock()
	defer s.roster.mu.Unlock()
	s.last, s.at = report, time.Now()
	s.roster.changes++
}

// Close removes the watcher's report.
func (s *Reports) Close() {
	s.roster.mu.Lock()
	defer s.roster.mu.Unlock()
	if s.roster.reports[s.of] == s {
		delete(s.roster.reports, s.of)
	}
	s.roster.changes++
}

// Asked tells the roster that a process has asked all replicas for their watchers (a question).
// asked is the time of the question, and now is the present time, both by the database's clock.
// Asked does not block.
func (r *Roster) Asked(asked, now time.Time) {
	if now.Sub(asked).Abs() >= askedFor { // an old question, such as one from before the start of this process
		return
	}
	r.mu.Lock()
	r.asked, r.heard = asked, time.Now()
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run writes the watchers of this replica into the table replicas, for the other replicas,
// until ctx ends. At the end Run deletes the row of this replica, and the rows of earlier processes
// with the same address, which were killed: without the newer row of this replica, List would
// show the killed processes again (see [hidden]).
func (r *Roster) Run(ctx context.Context) {
	turn := turn{roster: r}
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			_ = r.store.Write(ctx, func(tx *store.Tx) error {
				return errors.Join(tx.DeleteReplica(r.id), tx.DeleteSupersededReplicas(r.self.Address, turn.began))
			})
			return
		case <-r.wake:
		case <-next.C:
		}
		err := turn.take(ctx)
		if err != nil && !turn.warned && ctx.Err() == nil && !errors.Is(err, store.ErrAway) {
			r.logger.WarnContext(ctx, "cannot tell the other replicas of this replica's watchers", "error", err)
		}
		turn.warned = err != nil
		next.Reset(turn.pause())
	}
}

// turn holds what [Roster.Run] remembers from one check of the replica's row to the next. Only
// one goroutine uses a turn.
type turn struct {
	roster   *Roster
	warned   bool
	asked    time.Time // the time of the newest question, by the database's clock
	answered time.Time // the time of the newest question that the row answers
	busy     bool      // true if the newest question is less than askedFor old
	began    time.Time // when the row was first written, by the database's clock; zero: not yet
	wroteAt  time.Time // when the row was last written; zero: write the row now
	wrote    uint64    // the value of Roster.changes when the row was last written
	size     int       // the size of the summary in the row, in bytes
	beatAt   time.Time // when beat last sent a heartbeat
	position int64     // the number of the newest event when beat last sent a heartbeat
}

// pause returns the time until Run must check again whether the replica's row is due.
func (t *turn) pause() time.Duration {
	if t.busy {
		return busyEvery
	}
	return max(againAfter, writeEvery-time.Since(t.wroteAt))
}

// take writes the replica's row if the row is due, and sends a heartbeat to the watchers if a
// heartbeat is due.
func (t *turn) take(ctx context.Context) error {
	was := t.busy
	t.roster.mu.Lock()
	t.asked, t.busy = t.roster.asked, time.Since(t.roster.heard) < askedFor
	t.roster.mu.Unlock()
	if t.busy {
		t.beat(!was)
	}
	if !t.due() {
		return nil
	}
	return t.write(ctx)
}

// beat sends a heartbeat if the time for the next heartbeat has come, so that the watchers
// report.
func (t *turn) beat(first bool) {
	r := t.roster
	r.mu.Lock()
	pause := max(beatEvery, time.Duration(len(r.streams))*beatPerWatcher)
	r.mu.Unlock()
	position, since := r.hub.Applied(), time.Since(t.beatAt)
	if first || since >= quietBeat || since >= pause && position != t.position {
		r.hub.Beat()
		t.beatAt, t.position = time.Now(), position
	}
}

// due reports whether the replica must write its row now.
func (t *turn) due() bool {
	t.roster.mu.Lock()
	changed := t.roster.changes != t.wrote
	t.roster.mu.Unlock()
	switch since := time.Since(t.wroteAt); {
	case since >= writeEvery:
		return true
	case !t.busy, since < time.Duration(t.size)*time.Second/writeRate:
		return false
	case t.asked.After(t.answered):
		return time.Since(t.beatAt) >= gather || since >= quietBeat
	default:
		return changed
	}
}

// write writes the replica's row of the table replicas, and the names of the watchers' client
// certificates, into the database.
func (t *turn) write(ctx context.Context) error {
	r := t.roster
	changes, summary, names := r.summarize()
	encoded, err := summary.encode()
	if err != nil {
		return err
	}
	row := &store.Replica{ID: r.id, Address: r.self.Address, Answered: t.asked, Summary: encoded}
	began := t.began
	err = r.store.Write(ctx, func(tx *store.Tx) error {
		if t.began.IsZero() {
			began = tx.Now()
		}
		return errors.Join(tx.SawCertificates(names), tx.WriteReplica(row))
	})
	if err != nil {
		return err
	}
	r.wrote(names)
	t.began = began
	t.wroteAt, t.wrote, t.answered, t.size = time.Now(), changes, t.asked, len(encoded)
	return nil
}

// The replica writes the certificate of a connected watcher into the database again after
// seenEvery. Until seenFor after the last write, List shows the certificate as absent if no
// watcher is connected with the certificate. List shows at most seenMost absent certificates.
const (
	seenEvery = time.Hour
	seenFor   = 24 * time.Hour
	seenMost  = 1000
)

// summarize returns the number of changes so far, the summary of this replica's watchers for
// the other replicas, and the sorted names of certificates that must be written to the
// database.
func (r *Roster) summarize() (changes uint64, s *summary, names []string) {
	s = &summary{NeedsCertificate: r.self.NeedsCertificate}
	if r.hub != nil {
		s.Position = r.hub.Applied()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for stream := range r.streams {
		s.Streams = append(s.Streams, streamLine{
			Number: stream.number, Watcher: stream.Watcher, Address: stream.Address, Certificate: stream.Certificate, Age: time.Since(stream.opened),
		})
	}
	for of, reports := range r.reports {
		if !reports.at.IsZero() {
			s.Reports = append(s.Reports, reportLine{
				Watcher: []byte(of.watcher), Certificate: of.certificate, Words: reports.Words, Report: reports.last, Age: time.Since(reports.at),
			})
		}
	}
	for name, written := range r.seen {
		if time.Since(written) >= seenEvery {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return r.changes, s, names
}

// wrote notes that the names of certificates were written to the database, and forgets the
// names of certificates without an open stream.
func (r *Roster) wrote(names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	connected := map[string]bool{}
	for stream := range r.streams {
		connected[stream.Certificate] = true
	}
	for _, name := range names {
		if connected[name] {
			r.seen[name] = time.Now()
		} else {
			delete(r.seen, name)
		}
	}
}

// Prune deletes the rows of replicas that have ended without deleting their rows, and the
// certificates with which no watcher has been connected for a day.
func (r *Roster) Prune(ctx context.Context) error {
	return r.store.Write(ctx, func(tx *store.Tx) error {
		ended, err1 := tx.Aged(endedFor)
		old, err2 := tx.Aged(seenFor)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		return errors.Join(tx.PruneReplicas(ended), tx.PruneWatcherCertificates(old, seenMost))
	})
}
