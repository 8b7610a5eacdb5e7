package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/password"
)

const (
	// visitors is the number of users that log in, one after the other. Each user makes few
	// logins in an hour, so that each login has a record of its own.
	visitors = 1000
	secret   = "correct horse battery staple"
)

// logins compares logins by one caller with argon2id alone: the built server on SQLite, and the
// program bench/limits, in turns.
func logins(b *bench) (err error) {
	i, err := b.install("login", "")
	if err != nil {
		return err
	}
	defer i.remove()
	if err := i.addVisitors(); err != nil {
		return err
	}
	hash, err := startPart("argon2id", i.limits(), "argon2id")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hash.stop()) }()
	server, err := i.start()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	if err := i.crowd.dial(); err != nil {
		return err
	}
	defer i.crowd.hangUp()
	n := 0
	watch := &stopwatch{took: make([][]time.Duration, 1), call: func(int, int) error {
		n++
		_, err := i.crowd.auth[0].Login(context.Background(), &watchwordv1.LoginRequest{Username: fmt.Sprint("user-", n%visitors), Password: secret})
		return err
	}}
	login := &part{name: "login", program: server, run: calling(watch.run)}
	if err := server.settle(); err != nil {
		return err
	}
	if err := b.nextProfile(server); err != nil {
		return err
	}
	if err := b.turns([]*part{login, hash}, 1); err != nil {
		return err
	}
	b.report("login/of-argon2id", login.rates.over(hash.rates), "of-it", atLeast(0.95))
	for _, p := range []*part{login, hash} {
		b.report("login/"+p.name, median(p.rates), "calls/s", limit{})
		b.report("login/processor-time/"+p.name, p.perCall(p.sum.own), "µs", limit{})
		b.report("login/page-faults/"+p.name, float64(p.sum.faults)/float64(p.sum.calls), "pages", limit{})
	}
	b.report("login/p50", watch.quantile(0.5), "ms", limit{})
	return nil
}

// addVisitors inserts the users with the hash of the password, since logins through the server
// would take a minute.
func (i *installation) addVisitors() error {
	pw, err := password.Parse(secret)
	if err != nil {
		return err
	}
	hash, err := password.NewPool(password.Config{}).Hash(context.Background(), password.Stranger(""), pw)
	if err != nil {
		return err
	}
	db, err := sql.Open("sqlite", "file:"+i.database()+"?_pragma=synchronous(OFF)")
	if err != nil {
		return err
	}
	defer db.Close()
	for n := range visitors {
		_, err := db.Exec(insertUser+`VALUES ($1, $2, $3, 'reader writer', false, 1, 0, $4, $4)`,
			idOf("user", n), fmt.Sprint("user-", n), hash, time.Now().UnixMicro())
		if err != nil {
			return err
		}
	}
	return db.Close() // the second Close does nothing
}
