package storetest

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

// newIssuer returns an issuer's row with the present time.
func newIssuer(name string) *store.Issuer {
	now := time.Now().UTC().Truncate(time.Microsecond)
	return &store.Issuer{
		Name: name, Issuer: "https://" + name, Jwks: `{"keys":[]}`, CAPEM: "pem", MaxLifetime: time.Hour, AllowPrivate: true,
		CreatedAt: now, UpdatedAt: now,
	}
}

// newBinding returns a binding's row with the present time.
func newBinding(id, issuer, userID string) *store.Binding {
	return &store.Binding{
		ID: id, Issuer: issuer, Subject: "subject", UserID: userID, CreatedAt: time.Now().UTC().Truncate(time.Microsecond),
		Claims: []store.BoundClaim{{Path: []string{"a/b", "ü"}, Value: `"text"`}, {Path: []string{"n"}, Value: 1.5e300}, {Path: []string{"t"}, Value: true}},
	}
}

func testIssuers(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	a, b := newIssuer("a-b"), newIssuer("ab")
	b.Jwks, b.JwksURI = "", "https://keys"
	write(t, s, func(tx *store.Tx) error { return errors.Join(tx.InsertIssuer(b), tx.InsertIssuer(a)) })
	write(t, s, func(tx *store.Tx) error {
		sameName, sameIssuer := newIssuer("ab"), newIssuer("c")
		sameName.Issuer, sameIssuer.Issuer = "https://other", b.Issuer
		for _, taken := range []*store.Issuer{sameName, sameIssuer} {
			if err := tx.InsertIssuer(taken); !errors.Is(err, store.ErrExists) {
				t.Errorf("a taken name or issuer: %v", err)
			}
		}
		return nil
	})
	a.Jwks, a.Discovery, a.CAPEM, a.MaxLifetime, a.AllowPrivate, a.UpdatedAt = "", true, "", time.Minute, false, a.UpdatedAt.Add(1)
	a.UpdatedAt = a.UpdatedAt.Add(time.Microsecond).Truncate(time.Microsecond)
	write(t, s, func(tx *store.Tx) error { return tx.UpdateIssuer(a) })
	read(t, s, func(tx *store.Tx) error {
		byName, err1 := tx.Issuer("a-b")
		all, err2 := tx.Issuers("", 10)
		page, err3 := tx.Issuers("a-b", 1)
		n, err4 := tx.CountIssuers(1)
		if !reflect.DeepEqual(byName, a) || n != 1 || !reflect.DeepEqual(all, []*store.Issuer{a, b}) || !reflect.DeepEqual(page, []*store.Issuer{b}) {
			t.Errorf("%+v, %+v, %+v, %d; want %+v and %+v", byName, all, page, n, a, b)
		}
		return errors.Join(err1, err2, err3, err4)
	})
	write(t, s, func(tx *store.Tx) error { return tx.DeleteIssuer("ab") })
	read(t, s, func(tx *store.Tx) error {
		if _, err := tx.Issuer("ab"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a deleted issuer: %v", err)
		}
		return nil
	})
}

func testBindings(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	one, two, three := newBinding("1", "i", "u"), newBinding("2", "i", "v"), newBinding("3", "j", "u")
	two.Claims, three.Subject = []store.BoundClaim{}, "other"
	write(t, s, func(tx *store.Tx) error {
		return errors.Join(tx.InsertBinding(three), tx.InsertBinding(two), tx.InsertBinding(one))
	})
	read(t, s, func(tx *store.Tx) error {
		for _, c := range []struct {
			f     store.BindingFilter
			after string
			limit int
			want  []*store.Binding
		}{
			{store.BindingFilter{}, "", 10, []*store.Binding{one, two, three}},
			{store.BindingFilter{}, "1", 1, []*store.Binding{two}},
			{store.BindingFilter{Issuer: "i"}, "", 10, []*store.Binding{one, two}},
			{store.BindingFilter{UserID: "u"}, "", 10, []*store.Binding{one, three}},
			{store.BindingFilter{UserID: "u"}, "1", 10, []*store.Binding{three}},
			{store.BindingFilter{UserID: "u", Issuer: "i"}, "", 10, []*store.Binding{one}},
			{store.BindingFilter{UserID: "v", Issuer: "j"}, "", 10, nil},
		} {
			if got, err := tx.Bindings(c.f, c.after, c.limit); err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("%+v after %q: %+v, %v", c.f, c.after, got, err)
			}
		}
		got, err1 := tx.Binding("1")
		of, err2 := tx.BindingsOfSubject("i", "subject", 10)
		none, err3 := tx.BindingsOfSubject("j", "subject", 10)
		slices.SortFunc(of, func(a, b *store.Binding) int { return int(a.ID[0]) - int(b.ID[0]) })
		if !reflect.DeepEqual(got, one) || !reflect.DeepEqual(of, []*store.Binding{one, two}) || len(none) > 0 {
			t.Errorf("%+v, %+v, %+v", got, of, none)
		}
		n, err4 := tx.CountBindings(store.BindingFilter{Issuer: "i"}, 10)
		m, err5 := tx.CountBindings(store.BindingFilter{UserID: "u"}, 1)
		if n != 2 || m != 1 {
			t.Errorf("counted %d and %d", n, m)
		}
		return errors.Join(err1, err2, err3, err4, err5)
	})
	write(t, s, func(tx *store.Tx) error { return tx.DeleteBinding("1") })
	read(t, s, func(tx *store.Tx) error {
		if _, err := tx.Binding("1"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a deleted binding: %v", err)
		}
		return nil
	})
}

// RaiseUsersByID raises the users of an issuer in steps of 100 users; the last step of this test
// has fewer users.
func testRaiseUsersByID(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	var ids []string
	write(t, s, func(tx *store.Tx) (err error) {
		for i := range 230 {
			u := newUser(fmt.Sprintf("user%03d", i), fmt.Sprint("name", i))
			u.Version = int64(i)
			binding := newBinding(fmt.Sprint(i), "i", u.ID)
			if i == 229 {
				binding.Issuer = "other"
			}
			again := newBinding(fmt.Sprint("again", i), binding.Issuer, u.ID)
			err = errors.Join(err, tx.InsertUser(u), tx.InsertBinding(binding), tx.InsertBinding(again))
		}
		return errors.Join(err, tx.InsertBinding(newBinding("gone", "i", "gone")))
	})
	var raised []*store.Raised
	write(t, s, func(tx *store.Tx) (err error) {
		if ids, err = tx.UsersOfIssuer("i"); err == nil {
			raised, err = tx.RaiseUsersByID(ids, 100)
		}
		return err
	})
	if len(ids) != 230 || len(raised) != 229 || ids[0] != "gone" || ids[229] != "user228" {
		t.Fatalf("%d bound users, %d raised", len(ids), len(raised))
	}
	read(t, s, func(tx *store.Tx) error {
		for _, r := range raised {
			u, err := tx.User(r.UserID)
			before, _ := strconv.ParseInt(r.UserID[len("user"):], 10, 64)
			if want := max(100, before+1); err != nil || r.Version != want || u.Version != want || u.RevokedBelow != want {
				t.Errorf("%+v, %+v, %v; want version %d", r, u, err, want)
			}
		}
		other, err := tx.User("user229")
		if err != nil || other.Version != 229 || other.RevokedBelow != 0 {
			t.Errorf("a user of another issuer: %+v, %v", other, err)
		}
		return nil
	})
}
