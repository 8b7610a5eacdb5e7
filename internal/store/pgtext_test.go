package store_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

func TestIsText(t *testing.T) {
	for text, want := range map[string]bool{
		"": true, "alice": true, "é\U0001f600": true, "\n\x01\x7f": true, "\ufffd": true,
		"\x00": false, "a\x00b": false, "\xff": false, "a\xc3": false, "\xed\xa0\x80": false, "\xc0\x80": false,
	} {
		if got := store.IsText(text); got != want {
			t.Errorf("%q: %t", text, got)
		}
	}
}

// A text that PostgreSQL cannot hold is a fault of the caller of the store, and no fault
// of the database: it is not unavailable, nothing runs again, and the next call works.
func TestADataExceptionIsNoOutage(t *testing.T) {
	for _, mode := range []string{"cache_statement", "exec"} {
		proxy := pgtest.NewProxy(t, storetest.Postgres(t))
		s := storetest.Open(t, parameter(proxy.URI(), "default_query_exec_mode="+mode))
		insertAlice(t, s, 2)
		for _, text := range []string{"a\x00b", "a\xffb", "a\xc3"} {
			for name, call := range map[string]func(run func()) error{
				"a row to change": func(run func()) error {
					return s.Write(t.Context(), func(tx *store.Tx) error { run(); _, err := tx.User(text); return err })
				},
				"a row to read": func(run func()) error {
					return s.Read(t.Context(), func(tx *store.Tx) error { run(); _, err := tx.Session(text); return err })
				},
				"a statement with the commit": func(run func()) error {
					return s.Write(t.Context(), func(tx *store.Tx) error { run(); return tx.SetSetting("a", text) })
				},
				"an error that fn hides": func(run func()) error {
					return s.Write(t.Context(), func(tx *store.Tx) error { run(); _, _ = tx.User(text); return nil })
				},
				"a refresh":            func(run func()) error { run(); return spend(t.Context(), s, text, 1) },
				"a refresh in a batch": func(run func()) error { run(); return inBatch(t, s, spendOf(text, 1)) },
				"an audience in a batch": func(run func()) error {
					run()
					of := spendOf("s1", 1)
					of.Audience = text
					return inBatch(t, s, of)
				},
			} {
				runs := 0
				err := call(func() { runs++ })
				if err == nil || errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "22021") {
					t.Errorf("%s, %s, %q: %v", mode, name, text, err)
				}
				if runs != 1 {
					t.Errorf("%s, %s, %q: ran %d times", mode, name, text, runs)
				}
			}
			if err := s.Write(t.Context(), set("after", "yes")); err != nil {
				t.Errorf("%s, afterwards: %v", mode, err)
			}
		}
		if proxy.Dials() > store.PoolSize {
			t.Errorf("%s: %d connections were made", mode, proxy.Dials())
		}
	}
}

// inBatch spends in a batch with a good member, which must succeed.
func inBatch(t *testing.T, s *store.Store, bad *store.Spend) error {
	t.Helper()
	errs := store.SpendTogether(t.Context(), s, []*store.Spend{spendOf("s0", generation(t, s, "s0")), bad})
	if errs[0] != nil {
		t.Errorf("the good member of the batch: %v", errs[0])
	}
	return errs[1]
}
