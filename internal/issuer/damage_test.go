package issuer_test

import (
	"bytes"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
	"github.com/watchword-auth/watchword/internal/token"
)

// If a row of signing_keys is deleted by hand, every call returns an error that says
// what to do, whatever state the key was in. ReplaceAll mends the chain of keys.
func TestARowThatWasDeletedByHand(t *testing.T) {
	for _, deleted := range []string{"retired", "signing", "dated", "next"} {
		for _, call := range []string{"Rotate", "RotateOld", "Revoke retired", "Revoke signing", "Revoke dated", "Revoke next"} {
			t.Run(deleted+", "+call, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { damage(t, deleted, call) })
			})
		}
	}
}

func damage(t *testing.T, deleted, call string) {
	k, s, _ := ring(t)
	kids := map[string]string{"retired": signing(t, s).KID}
	time.Sleep(age)
	kids["signing"] = rotate(t, k, "").KID
	kids["dated"] = rotate(t, k, "").KID
	for _, key := range inState(t, s, issuer.Next) {
		if key.SignsFrom.IsZero() {
			kids["next"] = key.KID
		}
	}
	if err := s.Write(t.Context(), func(tx *store.Tx) error { return tx.DeleteSigningKey(kids[deleted]) }); err != nil {
		t.Fatal(err)
	}
	var err error
	named, isRevoke := strings.CutPrefix(call, "Revoke ")
	switch {
	case isRevoke:
		_, err = k.Revoke(t.Context(), caller.AtCommandLine, kids[named])
	case call == "Rotate":
		_, err = k.Rotate(t.Context(), caller.AtCommandLine, "")
	default:
		err = k.RotateOld(t.Context(), time.Hour)
	}
	switch {
	case deleted == "retired" && named == "retired":
		if !errors.Is(err, issuer.ErrNotFound) {
			t.Errorf("the key that is gone: %v", err)
		}
		return
	case deleted == "retired", deleted == "signing" && !isRevoke: // the other keys are enough, so the call succeeds
		if err != nil {
			t.Error(err)
		}
		return
	case deleted == "signing" && named == "signing":
		if !errors.Is(err, issuer.ErrNotFound) {
			t.Errorf("the key that is gone: %v", err)
		}
	case !errors.Is(err, issuer.ErrChainBroken) || !strings.Contains(err.Error(), "restore the row, or replace all keys"):
		t.Errorf("%v, want one that says what to do", err)
	}
	if _, err := replaceAll(t, k); err != nil {
		t.Fatal(err)
	}
	checkChain(t, s, true)
	rotate(t, k, "")
}

func replaceAll(t *testing.T, k *issuer.Keyring) (issuer.Key, error) {
	t.Helper()
	return k.ReplaceAll(t.Context(), func() (audit.Event, error) { return audit.Event{Type: audit.DatastoreRestored}, nil })
}

// Each replacement of all keys takes back every earlier delegated token, as a withdrawal does,
// and a rotation does not.
func TestReplaceAllEndsDelegatedTokens(t *testing.T) {
	k, s, _ := ring(t)
	moment := func() (at time.Time) {
		if err := s.Read(t.Context(), func(tx *store.Tx) (err error) {
			at, err = tx.DelegatedNotBefore()
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return at
	}
	rotate(t, k, "")
	if at := moment(); !at.IsZero() {
		t.Errorf("after a rotation: %v", at)
	}
	for range 2 {
		before := moment()
		if _, err := replaceAll(t, k); err != nil {
			t.Fatal(err)
		}
		if at := moment(); at.Before(before.Add(time.Second)) || at.Nanosecond() != 0 || at.Before(time.Now()) {
			t.Errorf("%v, after %v", at, before)
		}
	}
}

// Without any row there is nothing that a rotation could go by, and ReplaceAll makes new keys.
func TestEveryRowWasDeletedByHand(t *testing.T) {
	k, s, _ := ring(t)
	for _, key := range rows(t, s) {
		if err := s.Write(t.Context(), func(tx *store.Tx) error { return tx.DeleteSigningKey(key.KID) }); err != nil {
			t.Fatal(err)
		}
	}
	for name, call := range map[string]func() error{
		"Rotate": func() error { _, err := k.Rotate(t.Context(), caller.AtCommandLine, ""); return err },
		"Rotate to an algorithm": func() error {
			_, err := k.Rotate(t.Context(), caller.AtCommandLine, "ES256")
			return err
		},
		"RotateOld": func() error { return k.RotateOld(t.Context(), time.Hour) },
	} {
		if err := call(); err == nil {
			t.Errorf("%s of nothing: no error", name)
		}
	}
	if key, err := replaceAll(t, k); err != nil || key.Algorithm != "EdDSA" {
		t.Errorf("ReplaceAll of nothing: %+v, %v", key, err)
	}
	rotate(t, k, "")
}

// Before the first start, ReplaceAll makes no keys: a key's tag names the database, which has no
// id yet.
func TestReplaceAllBeforeTheFirstStart(t *testing.T) {
	s := storetest.Open(t, "sqlite:"+filepath.Join(t.TempDir(), "i.db"))
	master, err := seal.Create(filepath.Join(t.TempDir(), "master"))
	if err != nil {
		t.Fatal(err)
	}
	discard := slog.New(slog.DiscardHandler)
	k := issuer.NewKeyring(s, feed.Direct(s), issuer.NewKeySet(master, discard), audit.New(s, discard))
	if _, err := replaceAll(t, k); err == nil || len(rows(t, s)) != 0 {
		t.Errorf("error %v and %d rows", err, len(rows(t, s)))
	}
}

// ReplaceAll keeps the algorithm of an authentic row, whatever else somebody has written into
// the table, and changes nothing if before fails. A row with an impossible id is deleted.
func TestReplaceAllAmongForeignRows(t *testing.T) {
	k, s, _ := ring(t)
	rotate(t, k, token.ES256)
	foreign := *rows(t, s)[0]
	foreign.KID, foreign.Algorithm, foreign.PublishedAt = "ÿÿ", "x", time.Now().Add(time.Hour)
	if err := s.Write(t.Context(), func(tx *store.Tx) error { return tx.InsertSigningKey(&foreign) }); err != nil {
		t.Fatal(err)
	}
	failed, before := errors.New("failed"), len(inState(t, s, issuer.Revoked))
	if _, err := k.ReplaceAll(t.Context(), func() (audit.Event, error) { return audit.Event{}, failed }); !errors.Is(err, failed) {
		t.Errorf("before has failed: %v", err)
	}
	if now := len(inState(t, s, issuer.Revoked)); now != before {
		t.Errorf("%d keys are withdrawn, before %d", now, before)
	}
	if key, err := replaceAll(t, k); err != nil || key.Algorithm != "ES256" {
		t.Errorf("ReplaceAll: %+v, %v, want ES256", key, err)
	}
	for _, row := range rows(t, s) {
		if row.KID == foreign.KID {
			t.Error("the row with an impossible id is there")
		}
	}
	checkChain(t, s, true)
}

// While the id of the database differs from the id at the start of the process, the process
// changes no key, says so, and goes on when the id is back.
func TestAnotherDatabaseIDUnderARunningProcess(t *testing.T) {
	_, s, master := ring(t)
	var logged bytes.Buffer
	set := issuer.NewKeySet(master, slog.New(slog.NewTextHandler(&logged, nil)))
	load(t, s, set)
	k := issuer.NewKeyring(s, feed.Direct(s), set, audit.New(s, slog.New(slog.DiscardHandler)))
	setID := func(id string) {
		t.Helper()
		if err := s.Write(t.Context(), func(tx *store.Tx) error { return tx.SetSetting(store.DatabaseID, id) }); err != nil {
			t.Fatal(err)
		}
	}
	setID("another")
	if _, err := k.Rotate(t.Context(), caller.AtCommandLine, ""); err == nil || !strings.Contains(err.Error(), "database_id") {
		t.Errorf("a rotation: %v, want the setting's name", err)
	}
	load(t, s, set)
	if !strings.Contains(logged.String(), "database_id") {
		t.Errorf("the log does not name the setting: %s", &logged)
	}
	setID("database")
	rotate(t, k, "")
	rotate(t, issuer.NewKeyring(s, feed.Direct(s), keySet(master), audit.New(s, slog.New(slog.DiscardHandler))), "")
}
