package storetest_test

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func newUser(name string) *store.User {
	return &store.User{ID: name, Username: name, PasswordHash: "h", Roles: []string{"a", "b"}, Version: 5, CreatedAt: time.Now(), UpdatedAt: time.Now()}
}

func TestSmoke(t *testing.T) {
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) {
		s := storetest.Open(t, new(t))
		ctx := t.Context()
		row := &store.Session{ID: "s1", UserID: "alice", BornVersion: 5, Audience: []string{"internal"}, CreatedAt: time.Now(), RefreshedAt: time.Now(), Generations: store.Generations{Current: 1}}
		err := s.Write(ctx, func(tx *store.Tx) error {
			var head int64
			return errors.Join(tx.InsertUser(newUser("alice")), tx.InsertSession(row), tx.InsertAudit(&store.AuditRecord{Type: "x"}),
				tx.SetMaxLifetime(time.Minute), tx.HeadInto(&head))
		})
		if err != nil {
			t.Fatal(err)
		}
		spend := &store.Spend{SessionID: "s1", Generation: 1, Audience: "internal", Grace: 10 * time.Second, Idle: time.Hour, Max: 2 * time.Hour}
		spent, err := s.Spend(ctx, spend)
		if err != nil || spent.Username != "alice" || spent.Session.Generations.Current != 2 || spent.Version != 5 {
			t.Fatalf("%+v %v", spent, err)
		}
		if _, err := s.Spend(ctx, spend); !errors.Is(err, store.ErrNotFound) {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for range 25 {
					err := s.Write(ctx, func(tx *store.Tx) error {
						u, err := tx.User("alice")
						if err != nil {
							return err
						}
						u.Version++
						e := &store.Event{Tag: []byte("12345678"), Kind: store.SessionEnded, Subject: fmt.Sprint(i), ExpiresAt: tx.Now()}
						return errors.Join(tx.UpdateUser(u), tx.AppendEvent(e))
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		err = s.Read(ctx, func(tx *store.Tx) error {
			u, err := tx.User("alice")
			if err != nil {
				return err
			}
			events, err := tx.Events(0, 1000)
			if err != nil {
				return err
			}
			t.Log(u.Version, len(events), events[0].ExpiresAt, tx.Now())
			r, next, err := tx.Audit(store.AuditFilter{}, 10, 100)
			t.Log(len(r), next)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
