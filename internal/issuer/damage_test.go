package issuer_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/store"
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
	case deleted == "retired", deleted == "signing" && !isRevoke: // what is left goes on by itself
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
	if _, err := k.ReplaceAll(t.Context(), audit.Event{Type: audit.DatastoreRestored}); err != nil {
		t.Fatal(err)
	}
	checkChain(t, s, true)
	rotate(t, k, "")
}

// Without any row there is nothing that a rotation could go by.
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
		"RotateOld":  func() error { return k.RotateOld(t.Context(), time.Hour) },
		"ReplaceAll": func() error { _, err := k.ReplaceAll(t.Context(), audit.Event{}); return err },
	} {
		if err := call(); err == nil {
			t.Errorf("%s of nothing: no error", name)
		}
	}
}
