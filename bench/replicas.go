package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
)

// fleet is replicas over one PostgreSQL, all in this process.
type fleet struct {
	password string // the password of admin
	conns    []*grpc.ClientConn
	auth     []watchwordv1.AuthServiceClient // one of each replica
	closers  []func()
}

// replicas measures from the answer to a Logout at one replica until each other
// replica's Verify refuses the session's token: with notifications, and with
// polling alone.
func replicas(b *bench) error {
	for _, way := range []struct {
		name string
		deaf bool
		p99  limit
	}{
		{"notified", false, under(250)},
		{"polling", true, under(1000)},
	} {
		took, err := acrossReplicas(b.of(60, 300), way.deaf)
		if err != nil {
			return fmt.Errorf("replicas, %s: %w", way.name, err)
		}
		name := "revocation/other-replica/" + way.name
		b.report(name+"/p99", quantile(took, 0.99), "ms", way.p99)
		b.report(name+"/p50", quantile(took, 0.5), "ms", limit{})
		b.report(name+"/longest", quantile(took, 1), "ms", limit{})
	}
	return nil
}

func acrossReplicas(logouts int, deaf bool) (took []float64, err error) {
	postgres, err := pgtest.StartDurable()
	if err != nil {
		return nil, err
	}
	defer postgres.Close()
	f, err := startFleet(postgres, deaf, 3)
	defer f.close()
	if err != nil {
		return nil, err
	}
	for range logouts {
		each, err := f.logOut()
		if err != nil {
			return nil, err
		}
		took = append(took, each...)
	}
	return took, nil
}

func startFleet(postgres *pgtest.Durable, deaf bool, size int) (*fleet, error) {
	f := &fleet{}
	uri, err := postgres.Database()
	if err != nil {
		return f, err
	}
	if deaf {
		if err := deafen(postgres, uri); err != nil {
			return f, err
		}
	}
	if err := store.Migrate(context.Background(), uri); err != nil {
		return f, err
	}
	folder, err := os.MkdirTemp("", "watchword-bench-")
	if err != nil {
		return f, err
	}
	f.closers = append(f.closers, func() { os.RemoveAll(folder) })
	master := filepath.Join(folder, "master-key")
	if _, err := seal.Create(master); err != nil {
		return f, err
	}
	for range size {
		if err := f.add(uri, master); err != nil {
			return f, err
		}
	}
	return f, nil
}

// deafen makes notifications go nowhere in a database, as behind a pooler that
// gives each transaction another connection.
func deafen(postgres *pgtest.Durable, uri string) error {
	database, err := url.Parse(uri)
	if err != nil {
		return err
	}
	admin, err := url.Parse(postgres.Superuser())
	if err != nil {
		return err
	}
	admin.Path = database.Path
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, admin.String())
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, silent := conn.Exec(ctx, `CREATE FUNCTION public.pg_notify(text, text) RETURNS void LANGUAGE sql AS ''`)
	_, first := conn.Exec(ctx, `ALTER ROLE `+pgx.Identifier{database.User.Username()}.Sanitize()+` SET search_path = public, pg_catalog`)
	return errors.Join(silent, first)
}

// add starts a replica.
func (f *fleet) add(uri, master string) error {
	replica, err := start(uri, master)
	if err != nil {
		return err
	}
	f.closers = append(f.closers, replica.close)
	f.password += replica.password // the password of admin, which the first replica alone prints
	conns, err := dial(replica.addr, 1)
	if err != nil {
		return err
	}
	f.conns = append(f.conns, conns...)
	f.auth = append(f.auth, watchwordv1.NewAuthServiceClient(conns[0]))
	return nil
}

func (f *fleet) close() {
	for _, c := range f.conns {
		c.Close()
	}
	for i := range f.closers {
		f.closers[len(f.closers)-1-i]()
	}
}

// logOut ends a session at the first replica, and returns how many milliseconds
// after the answer each other one refused its token, which it had accepted just
// before.
func (f *fleet) logOut() ([]float64, error) {
	ctx := context.Background()
	resp, err := f.auth[0].Login(ctx, &watchwordv1.LoginRequest{Username: "admin", Password: f.password})
	if err != nil {
		return nil, err
	}
	pair := resp.GetTokens()
	verify := &watchwordv1.VerifyRequest{AccessToken: pair.GetAccessToken()}
	for _, other := range f.auth[1:] {
		if _, err := other.Verify(ctx, verify); err != nil {
			return nil, fmt.Errorf("before the logout: %w", err)
		}
	}
	if _, err := f.auth[0].Logout(ctx, &watchwordv1.LogoutRequest{RefreshToken: pair.GetRefreshToken()}); err != nil {
		return nil, err
	}
	answered := time.Now()
	took, errs := make([]float64, len(f.auth)-1), make([]error, len(f.auth)-1)
	var tasks sync.WaitGroup
	for i, other := range f.auth[1:] {
		tasks.Go(func() {
			for errs[i] == nil {
				_, err := other.Verify(ctx, verify)
				took[i] = milliseconds(time.Since(answered))
				if authn.Reason(err) == watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED {
					return
				}
				if err != nil || took[i] > 10_000 {
					errs[i] = fmt.Errorf("after the logout another replica says: %v", err)
				}
				time.Sleep(100 * time.Microsecond) // leaves the processors to the replicas, which must learn of the logout
			}
		})
	}
	tasks.Wait()
	return took, errors.Join(errs...)
}
