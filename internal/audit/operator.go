package audit

import (
	"context"
	"errors"

	"github.com/watchword-auth/watchword/internal/store"
)

// ForOperator makes a user of the operating system the actor of each event without an actor,
// for commands on the database. Call ForOperator before other methods.
func (l *Log) ForOperator(name string) *Log {
	l.operator = name
	return l
}

// commands writes log lines, in each running server, about the records that commands of
// `watchword` on the database have written. A server itself writes no record with the source of
// the command line.
type commands struct {
	log    *Log
	at     Place
	began  bool
	failed bool // the log has a line about the error
}

// look logs the records that commands on the database have written since the last call of look.
func (c *commands) look(ctx context.Context) {
	err := c.follow(ctx)
	if err != nil && !c.failed && ctx.Err() == nil && !errors.Is(err, store.ErrAway) { // the store logs outages
		c.log.logger.WarnContext(ctx, "cannot read what commands on the database have done; trying again every second", "error", err)
	}
	c.failed = err != nil
}

func (c *commands) follow(ctx context.Context) error {
	if !c.began {
		at, err := newest(ctx, c.log.store)
		if err != nil {
			return err
		}
		c.at, c.began = at, true
	}
	for more := true; more; {
		part, err := Follow(ctx, c.log.store, Following{CommandLine: true}, c.at)
		if err != nil {
			return err
		}
		if part.Gap == OtherHistory { // the database has lost records, which the log already has
			c.began = false
			return nil
		}
		for _, r := range part.Records {
			c.log.log(ctx, r)
		}
		c.at, more = part.Next, part.More
	}
	return nil
}

// newest returns a place behind all records that the database holds now. newest makes no mark
// (see markEvery).
func newest(ctx context.Context, s *store.Store) (p Place, err error) {
	err = s.Read(ctx, func(tx *store.Tx) error {
		p.After, err = tx.NewestAudit()
		return err
	})
	return p, err
}
