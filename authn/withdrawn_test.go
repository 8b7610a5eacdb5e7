package authn_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// A verifier remembers the latest thousand withdrawn keys, which the server names first in its
// list.
func TestTheMemoryOfWithdrawnKeysIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		leaked, forgotten := newKey(t), newKey(t)
		withdraw := func(kids ...string) {
			state := trustState(w.key)
			state.WithdrawnKids = kids
			w.watch.tell(change(&watchwordv1.Change{TrustState: state}))
		}
		withdraw(forgotten.Public().KID())
		for i := range 100 {
			kids := []string{leaked.Public().KID()}
			for j := range 20 {
				kids = append(kids, fmt.Sprint("other ", i, " ", j))
			}
			withdraw(kids...)
		}
		w.watch.tell(change(&watchwordv1.Change{TrustState: trustState(w.key, leaked, forgotten)}))
		w.wants(t, mint(t, leaked), "TOKEN_INVALID")
		w.wants(t, mint(t, forgotten), "ok")
	})
}

// A verifier never trusts a key again that a trust state named as withdrawn: neither when a
// later trust state has the key, nor after a restart with the snapshot file.
func TestAWithdrawnKeyNeverComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logBuffer
		w, path := startKept(t, authn.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		leaked, leakedToo := newKey(t), newKey(t)
		trusting := func(w *world) {
			w.watch.tell(change(&watchwordv1.Change{TrustState: trustState(w.key, leaked, leakedToo)}))
		}
		check := func(w *world, want string) {
			t.Helper()
			w.wants(t, mint(t, leaked), want)
			w.wants(t, mint(t, leakedToo), want)
			w.wants(t, mint(t, w.key), "ok")
		}
		trusting(w)
		check(w, "ok")
		for _, kid := range []string{leaked.Public().KID(), leakedToo.Public().KID()} {
			state := trustState(w.key)
			state.WithdrawnKids = []string{kid}
			w.watch.tell(change(&watchwordv1.Change{TrustState: state}))
		}
		trusting(w)
		check(w, "TOKEN_INVALID")
		if text := log.String(); !strings.Contains(text, "level=ERROR") || !strings.Contains(text, leaked.Public().KID()) {
			t.Errorf("the log does not name the key:\n%s", text)
		}
		w.Close()
		again := start(t, authn.WithSnapshotFile(path))
		trusting(again)
		check(again, "TOKEN_INVALID")
	})
}
