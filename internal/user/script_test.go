package user_test

import (
	"errors"
	"testing"

	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

func TestNewNamesMixNoScripts(t *testing.T) {
	eachEngine(t, func(t *testing.T, f *fixture) {
		renamed := f.create(t, "renamed")
		for what, c := range map[string]struct {
			name user.Name
			ok   bool
		}{
			"Latin":                            {"ren\u00e9.smith-7", true},
			"Latin with a combining accent":    {"n\u0308am", true},
			"Cyrillic":                         {"\u0430\u043b\u0438\u0441\u0430_1", true},
			"Greek":                            {"\u03b1\u03bb\u03b9\u03ba\u03b7", true},
			"Hebrew":                           {"\u05d0\u05dc\u05d9\u05e1", true},
			"Japanese with Latin":              {"ken\u5065\u3051\u3093\u30b1\u30fc", true},
			"Chinese with Latin":               {"li\u674e\u3127", true},
			"Korean with Latin":                {"kim\uae40\u91d1", true},
			"signs alone":                      {"7.7", true},
			"Cyrillic a for a Latin a":         {"\u0430dmin", false},
			"Latin a in a Cyrillic name":       {"\u0430\u043b\u0438\u0441a", false},
			"Greek iota for a Latin i":         {"adm\u03b9n", false},
			"Latin letters with a Cherokee":    {"\uab79alice", false},
			"Hangul and Hiragana":              {"\uae40\u3051", false},
			"Bopomofo and Katakana":            {"\u3127\u30b1", false},
			"Han and Cyrillic":                 {"\u5065\u0430", false},
			"letters of the same form, Coptic": {"\u2c81dmin", false},
		} {
			t.Run(what, func(t *testing.T) {
				name, err := user.ParseName(string(c.name))
				if err != nil || name != c.name {
					t.Fatalf("%q folds to %q, %v", c.name, name, err)
				}
				_, err = f.Update(t.Context(), operator, renamed.ID, user.Change{Name: &name})
				if (err == nil) != c.ok || err != nil && !errors.Is(err, user.ErrMalformed) {
					t.Errorf("renaming: %v, want success: %t", err, c.ok)
				}
				if got := user.Name(f.row(t, renamed.ID).Username); (got == name) != c.ok {
					t.Errorf("the name is %q now", got)
				}
				if _, err := f.Update(t.Context(), operator, renamed.ID, user.Change{Name: ptr(user.Name("renamed"))}); err != nil {
					t.Fatal(err)
				}
				_, err = f.Create(t.Context(), operator, name, nil, parse(t, "open sesame, please"))
				if (err == nil) != c.ok || err != nil && !errors.Is(err, user.ErrMalformed) {
					t.Errorf("creating: %v, want success: %t", err, c.ok)
				}
			})
		}
	})
}

func ptr[T any](v T) *T { return &v }

// A user who has such a name from before the rule keeps it, and can be changed.
func TestAnOldNameOfMixedScriptsStays(t *testing.T) {
	eachEngine(t, func(t *testing.T, f *fixture) {
		const old user.Name = "\u0430dmin"
		var row *store.User
		if err := f.store.Write(t.Context(), func(tx *store.Tx) (err error) {
			row, err = user.Insert(tx, old, nil, "hash")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if found, err := f.GetByName(t.Context(), old); err != nil || found.ID != row.ID {
			t.Fatalf("by the old name: %v, %v", found, err)
		}
		roles, fresh := user.Roles{"reader"}, user.Name("alice")
		for _, change := range []user.Change{{Name: ptr(old), Roles: &roles}, {Name: &fresh}} {
			if _, err := f.Update(t.Context(), operator, row.ID, change); err != nil {
				t.Errorf("%+v: %v", change, err)
			}
		}
		if got := f.row(t, row.ID); got.Username != "alice" || len(got.Roles) != 1 {
			t.Errorf("%+v", got)
		}
	})
}
