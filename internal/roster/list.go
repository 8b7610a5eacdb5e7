package roster

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

const (
	// aliveFor is how long a replica is treated as running after it has last written its row.
	aliveFor = 2*writeEvery + 5*time.Second
	// endedFor is how long a replica that does not answer is listed after it has last written
	// its row. A replica that stops deletes its row at once.
	endedFor = 15 * time.Minute
	// askEvery is the least time between two questions of one roster. A question asks every
	// replica for its watchers.
	askEvery = time.Second
	// answerWithin bounds how long List waits for the answers of the other replicas.
	answerWithin = 1500 * time.Millisecond
	// answerPoll is the time between two reads of the table replicas, while ask waits for
	// answers.
	answerPoll = 20 * time.Millisecond
	// lateAfter is the age of a replica's row from which on List shows the replica as one that
	// does not answer. A replica writes its row after each question, and questions come once in
	// askEvery.
	lateAfter = 3 * time.Second
)

// List holds the watchers of every replica.
type List struct {
	Watchers []*Watcher // in the order of their ids
	Replicas []*Replica // the replica that has made the list comes first
	Absent   []*store.WatcherCertificate
	Position int64 // the number of the newest event in the database
}

// Replica describes a server process.
type Replica struct {
	ID               string
	Address          string
	Answers          bool
	Position         int64 // the number of the newest event that the replica's own verifier has applied
	NeedsCertificate bool
	SeenAt           time.Time
}

// Watcher describes a stream of the trust bundle (WatchBundle) to a service's verifier, with
// the newest report of the verifier.
type Watcher struct {
	ID      string // unique among the streams of all replicas
	Replica string
	Since   time.Time
	Client
	Reports bool // true if the watcher has reported; otherwise the fields below are zero
	Words
	Report
	Lag int64 // the number of events in the database after the watcher's Position
}

// List returns the watchers of every replica. If this roster has not asked the replicas for some
// seconds, List waits until every running replica has answered, for answerWithin at most.
//
// Errors: those of [store.Store.Write]; those of ctx.
func (r *Roster) List(ctx context.Context) (*List, error) {
	if err := r.ask(ctx); err != nil {
		return nil, err
	}
	// List reads the watchers of this replica before the number of the newest event below: so
	// no watcher has reported a newer event than the newest.
	_, own, _ := r.summarize()
	list := &List{}
	var rows []*store.Replica
	var now time.Time
	err := r.store.Read(ctx, func(tx *store.Tx) (err error) {
		if list.Position, err = tx.Head(); err != nil {
			return err
		}
		now = tx.Now()
		if rows, err = tx.Replicas(); err != nil {
			return err
		}
		list.Absent, err = tx.WatcherCertificates(now.Add(-seenFor), seenMost)
		return err
	})
	if err != nil {
		return nil, err
	}
	join := joining{list: list, now: now, newest: map[identity]int{}, reports: map[identity]*reportLine{}}
	if len(own.Streams) > 0 || slices.ContainsFunc(rows, func(row *store.Replica) bool { return row.ID == r.id }) {
		join.add(&store.Replica{ID: r.id, Address: r.self.Address, WrittenAt: now}, own)
	}
	for _, row := range rows {
		if row.ID == r.id || hidden(row, rows, now) {
			continue
		}
		other, err := decode(row.Summary)
		if err != nil {
			r.logger.WarnContext(ctx, "cannot read what another replica tells of its watchers", "replica", row.Address, "error", err)
			other, row.WrittenAt = &summary{}, row.WrittenAt.Add(-lateAfter)
		}
		join.add(row, other)
	}
	join.finish()
	return list, nil
}

// hidden reports whether List leaves a replica out, since the replica has ended: another
// replica with the same address has written a row later, or the replica's row is older than
// endedFor.
func hidden(row *store.Replica, all []*store.Replica, now time.Time) bool {
	age := now.Sub(row.WrittenAt)
	return age > endedFor || age > lateAfter && slices.ContainsFunc(all, func(other *store.Replica) bool {
		return other.ID != row.ID && other.Address == row.Address && other.WrittenAt.After(row.WrittenAt)
	})
}

// ask tells every replica to write the list of the replica's watchers (the connected verifiers)
// into its row of the table replicas, several times a second, until askedFor has passed. If the
// latest call of ask was more than lateAfter ago, the rows may be old, so ask waits until the
// running replicas have written their rows, for answerWithin at most.
func (r *Roster) ask(ctx context.Context) error {
	select {
	case r.asking <- struct{}{}: // only one caller at a time asks the replicas
		defer func() { <-r.asking }()
	case <-ctx.Done():
		return ctx.Err()
	}
	since := time.Since(r.lastAsked)
	if since < askEvery {
		return nil
	}
	var at time.Time
	err := r.store.Write(ctx, func(tx *store.Tx) (err error) {
		at, err = tx.AskReplicas()
		return err
	})
	if err != nil {
		return err
	}
	r.lastAsked = time.Now()
	r.Asked(at, at)
	if since < lateAfter {
		return nil
	}
	return r.awaitAnswers(ctx, at)
}

// awaitAnswers waits until every running replica has answered the question of the time `asked`, for
// answerWithin at most.
func (r *Roster) awaitAnswers(ctx context.Context, asked time.Time) error {
	poll := time.NewTicker(answerPoll)
	defer poll.Stop()
	for began := time.Now(); time.Since(began) < answerWithin; {
		select {
		case <-poll.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		all := true
		err := r.store.Read(ctx, func(tx *store.Tx) error {
			rows, err := tx.ReplicaAnswers()
			for _, row := range rows {
				running := tx.Now().Sub(row.WrittenAt).Abs() < aliveFor
				all = all && (!running || !row.Answered.Before(asked))
			}
			return err
		})
		if err != nil || all {
			return err
		}
	}
	return nil
}

// joining joins the summaries in the rows of the replicas to one list of watchers.
type joining struct {
	list    *List
	now     time.Time
	newest  map[identity]int // for each watcher with an id, the index in list.Watchers of its newest stream
	reports map[identity]*reportLine
}

// add adds the watchers in the summary of one replica to the list.
func (j *joining) add(row *store.Replica, s *summary) {
	late := j.now.Sub(row.WrittenAt)
	replica := &Replica{
		ID: fmt.Sprintf("%016x", row.ID), Address: row.Address, Position: s.Position, NeedsCertificate: s.NeedsCertificate,
		SeenAt: row.WrittenAt, Answers: late.Abs() <= lateAfter,
	}
	j.list.Replicas = append(j.list.Replicas, replica)
	for _, line := range s.Streams {
		w := &Watcher{
			ID: fmt.Sprintf("%s-%016x", replica.ID, line.Number), Replica: replica.ID, Since: j.now.Add(-line.Age - late),
			Client: Client{line.Watcher, line.Address, line.Certificate},
		}
		of := w.identity()
		i, twice := j.newest[of]
		switch {
		case of.watcher == "" || !twice:
			j.newest[of] = len(j.list.Watchers)
			j.list.Watchers = append(j.list.Watchers, w)
		case w.Since.After(j.list.Watchers[i].Since):
			// A watcher with an id has one stream: the newer stream replaces the older stream,
			// which is dead, although the server has not noticed yet.
			j.list.Watchers[i] = w
		}
	}
	for _, line := range s.Reports {
		line.Age += late
		if known := j.reports[line.identity()]; known == nil || line.Age < known.Age {
			j.reports[line.identity()] = &line
		}
	}
}

// finish gives every watcher its report, sorts the watchers, and removes the certificates with
// a stream from the list of absent certificates.
func (j *joining) finish() {
	present := map[string]bool{}
	for _, w := range j.list.Watchers {
		present[w.Certificate] = true
		line := j.reports[w.identity()]
		if line == nil || len(w.Client.Watcher) == 0 {
			continue
		}
		w.Reports, w.Words, w.Report = true, line.Words, line.Report
		w.Staleness += line.Age
		if w.Position > j.list.Position { // true if the watcher has applied events that the database has lost
			w.Position = 0
		}
		w.Lag = j.list.Position - w.Position
	}
	slices.SortFunc(j.list.Watchers, func(a, b *Watcher) int { return cmp.Compare(a.ID, b.ID) })
	j.list.Absent = slices.DeleteFunc(j.list.Absent, func(c *store.WatcherCertificate) bool { return present[string(c.Name)] })
}
