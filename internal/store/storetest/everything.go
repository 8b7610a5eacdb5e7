package storetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

// TouchEverything runs every statement of a store at least once, on rows with names that end in n.
func TouchEverything(t testing.TB, s *store.Store, n int64) {
	t.Helper()
	name := fmt.Sprint("everything", n)
	u, row := newUser(name, name), newSession(name, name)
	insert(t, s, u, row)
	if _, err := spend(s, row.ID, 1); err != nil {
		t.Error(err)
	}
	touchRows(t, s, u, row)
	touchKeys(t, s, n)
	touchThrottle(t, s, n)
	touchReplicas(t, s, n)
	touchIssuers(t, s, u, n)
	readEverything(t, s, u)
	err := s.Write(t.Context(), func(tx *store.Tx) error {
		u.DeletedAt = tx.Now()
		_, err := tx.PruneSessions("", 10, func(*store.Session) bool { return false })
		return errors.Join(err, tx.EndSession(row.ID), tx.DeleteSigningKey(name), tx.UpdateUser(u))
	})
	if err != nil {
		t.Error(err)
	}
}

// touchRows reads and changes a user and a session, and writes the security record, the events and
// the settings that go with a change.
func touchRows(t testing.TB, s *store.Store, u *store.User, row *store.Session) {
	t.Helper()
	var head int64
	var tag []byte
	r, displaced := &store.AuditRecord{Type: "t"}, &store.AuditRecord{Type: "t"}
	err := s.Write(t.Context(), func(tx *store.Tx) error {
		if err := tx.Exclusive(); err != nil {
			return err
		}
		_, err1 := tx.User(u.ID)
		_, err2 := tx.Session(row.ID)
		_, _, err3 := tx.SessionAndUser(row.ID)
		_, err4 := tx.SessionsBeyond(u, 1, 10)
		_, err5 := tx.EndedBeyond(u, 1, 10)
		if err := errors.Join(err1, err2, err3, err4, err5, tx.DeleteSessions([]string{"none"}), tx.UpdateUser(u), tx.AdvanceSession(row.ID, row.Generations), tx.CountRepeat(row.ID, row.Generations), tx.InsertAudit(r), tx.InsertAudit(displaced)); err != nil {
			return err
		}
		_, err1 = tx.SetAuditCount(r.ID, 2)
		err1 = errors.Join(err1, tx.RaiseAuditCount(r.ID))
		_, err2 = tx.PruneAudit(tx.Now().Add(-time.Hour), 500)
		_, err3 = tx.PruneEvents(tx.Now(), 500)
		_, err4 = tx.Aged(time.Hour)
		_, err5 = tx.MarkAudit()
		return errors.Join(err1, err2, err3, err4, err5, tx.Tick(), tx.RaiseHorizon(tx.Now()), tx.RaiseDelegatedNotBefore(tx.Now()), tx.DeleteAudit(displaced.ID), tx.SetMaxLifetime(time.Minute), tx.AppendEvent(newEvent(tx, "s")), tx.HeadInto(&head, &tag))
	})
	if err != nil {
		t.Error(err)
	}
}

func touchKeys(t testing.TB, s *store.Store, n int64) {
	t.Helper()
	name, now := fmt.Sprint("everything", n), time.Now()
	key := &store.SigningKey{KID: name, Algorithm: "a", PublicKey: []byte{1}, SealedKey: []byte{1}, PublishedAt: now}
	mac := &store.MACKey{ID: n, SealedKey: []byte{1}, CreatedAt: now}
	err := s.Write(t.Context(), func(tx *store.Tx) error {
		return errors.Join(tx.InsertSigningKey(key), tx.UpdateSigningKey(key), tx.InsertMACKey(mac), tx.ResealMACKey(n, []byte{2}))
	})
	if err != nil {
		t.Error(err)
	}
}

func touchThrottle(t testing.TB, s *store.Store, n int64) {
	t.Helper()
	err := s.Write(t.Context(), func(tx *store.Tx) error {
		pair, err := tx.LockThrottleBuckets([2]int64{2 * n, 2*n + 1})
		if err != nil {
			return err
		}
		pair[0].ClearAt = tx.Now().Add(time.Hour)
		err1, err2 := tx.SetThrottleBucket(&pair[0]), tx.SetThrottleBucket(&pair[1])
		_, _, err3 := tx.PruneThrottle(2*n-1, 2, tx.Now())
		return errors.Join(err1, err2, err3)
	})
	if err != nil {
		t.Error(err)
	}
}

func touchReplicas(t testing.TB, s *store.Store, n int64) {
	t.Helper()
	err := s.Write(t.Context(), func(tx *store.Tx) error {
		_, err1 := tx.AskReplicas()
		_, _, err2 := tx.FloorAndQuestion()
		_, err3 := tx.ReplicaAnswers()
		_, err4 := tx.Replicas()
		_, err5 := tx.WatcherCertificates(tx.Now(), 10)
		row := &store.Replica{ID: n, Answered: tx.Now(), Summary: []byte{1}}
		return errors.Join(err1, err2, err3, err4, err5, tx.WriteReplica(row), tx.DeleteReplica(n), tx.PruneReplicas(time.Time{}),
			tx.SawCertificates([]string{fmt.Sprint("everything", n)}), tx.PruneWatcherCertificates(time.Time{}, 10))
	})
	if err != nil {
		t.Error(err)
	}
}

func touchIssuers(t testing.TB, s *store.Store, u *store.User, n int64) {
	t.Helper()
	i := newIssuer(fmt.Sprint("everything", n))
	b := newBinding(fmt.Sprint("everything", n), i.Name, u.ID)
	err := s.Write(t.Context(), func(tx *store.Tx) error {
		err := errors.Join(tx.InsertIssuer(i), tx.UpdateIssuer(i), tx.InsertBinding(b))
		if err != nil {
			return err
		}
		_, err1 := tx.Issuer(i.Name)
		_, err2 := tx.IssuerStamps(10)
		_, err3 := tx.Issuers("", 10)
		_, err4 := tx.Binding(b.ID)
		_, err5 := tx.BindingsOfSubject(i.Name, b.Subject, 10)
		_, err6 := tx.UsersOfIssuer(i.Name)
		_, err7 := tx.CountIssuers(10)
		_, err8 := tx.RaiseUsersByID([]string{u.ID}, 1)
		for _, f := range []store.BindingFilter{{}, {Issuer: i.Name}, {UserID: u.ID}, {Issuer: i.Name, UserID: u.ID}} {
			_, err := tx.Bindings(f, "", 10)
			_, errCount := tx.CountBindings(f, 10)
			err7 = errors.Join(err7, err, errCount)
		}
		return errors.Join(err1, err2, err3, err4, err5, err6, err7, err8, tx.DeleteBinding(b.ID), tx.DeleteIssuer(i.Name))
	})
	if err != nil {
		t.Error(err)
	}
}

func readEverything(t testing.TB, s *store.Store, u *store.User) {
	t.Helper()
	now := time.Now()
	err := s.Read(t.Context(), func(tx *store.Tx) error {
		_, err1 := tx.Head()
		_, err2 := tx.Events(0, 10)
		_, err3 := tx.UserByName(u.Username)
		_, err4 := tx.Users("", 10)
		_, err5 := tx.Sessions(u, store.SessionPlace{}, 10)
		var err6 error
		for _, f := range []store.AuditFilter{{}, {Type: "t"}, {UserID: "u"}, {SessionID: "s", UserID: "u", Type: "t", Start: now, End: now}} {
			_, _, err := tx.Audit(f, 10, 10)
			err6 = errors.Join(err6, err)
		}
		_, err7 := tx.SigningKeys()
		_, err13 := tx.AnotherAdmin("id")
		_, err8 := tx.MACKeys()
		_, err9 := tx.MaxLifetime()
		_, err10 := tx.UserIDs(u.Username, 10)
		_, err11 := tx.ThrottleBuckets([2]int64{1, 2})
		_, err12 := tx.IsRecent(newSession("s", u.ID), 10)
		for _, commandLine := range []bool{false, true} {
			_, err := tx.AuditState(store.AuditMark{}, commandLine)
			_, _, errAfter := tx.AuditAfter(store.AuditPlace{}, 1000, 10, commandLine)
			err6 = errors.Join(err6, err, errAfter)
		}
		_, err14 := tx.UsersOf(store.KindService, "", 10)
		_, err15 := tx.UsersOf(store.KindUser, "", 10)
		_, err16 := tx.Standing("s", []string{u.ID, "another"})
		_, err17 := tx.DelegatedNotBefore()
		_, err18 := tx.AuditMarkBefore(now, store.AuditMark{})
		_, err19 := tx.NewestAudit()
		return errors.Join(err1, err2, err3, err4, err5, err6, err7, err8, err9, err10, err11, err12, err13, err14, err15, err16, err17, err18, err19)
	})
	if err != nil {
		t.Error(err)
	}
}
