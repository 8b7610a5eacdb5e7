package user_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/watchword-auth/watchword/internal/user"
)

func TestParseName(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		given string
		want  user.Name // empty: malformed
	}{
		"plain":                     {"alice", "alice"},
		"upper case":                {"ALICE", "alice"},
		"signs":                     {"a.b-c_d@e:f", "a.b-c_d@e:f"},
		"digits":                    {"0", "0"},
		"full width":                {"ＡＬＩＣＥ", "alice"},
		"sharp s":                   {"STRAßE", "straße"},
		"composed":                  {"Ren\u00e9", "ren\u00e9"},
		"decomposed":                {"Rene\u0301", "ren\u00e9"},
		"Greek":                     {"ΑΛΙΚΗ", "αλικη"},
		"Hebrew, from the right":    {"אליס", "אליס"},
		"longest":                   {strings.Repeat("a", 256), user.Name(strings.Repeat("a", 256))},
		"longest, of wide letters":  {strings.Repeat("é", 128), user.Name(strings.Repeat("é", 128))},
		"empty":                     {"", ""},
		"too long":                  {strings.Repeat("a", 257), ""},
		"too long by its bytes":     {strings.Repeat("é", 129), ""},
		"too long after folding":    {strings.Repeat("Ⱥ", 128), ""}, // 2 bytes each; the small letter has 3
		"space":                     {"alice smith", ""},
		"space at the end":          {"alice ", ""},
		"space alone":               {" ", ""},
		"tab":                       {"a\tb", ""},
		"line break":                {"alice\n", ""},
		"zero byte":                 {"alice\x00", ""},
		"not UTF-8":                 {"alice\xff", ""},
		"zero-width space":          {"ali\u200bce", ""},
		"right-to-left override":    {"\u202ealice", ""},
		"both directions":           {"aliceאליס", ""},
		"emoji":                     {"alice😀", ""},
		"ligature":                  {"ﬁona", ""},
		"accent without its letter": {"\u0301", ""},
	} {
		got, err := user.ParseName(c.given)
		if got != c.want || (err != nil) != (c.want == "") || err != nil && !errors.Is(err, user.ErrMalformed) {
			t.Errorf("%s: %q becomes %q, %v, want %q", name, c.given, got, err, c.want)
		}
	}
}

// A folded name folds to itself, so a name from the database is found under itself.
func TestFoldingANameTwiceChangesNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		once, err := user.ParseName(rapid.String().Draw(t, "name"))
		if err != nil {
			return
		}
		if len(once) > user.MaxNameLength {
			t.Fatalf("%q has %d bytes", once, len(once))
		}
		if twice, err := user.ParseName(string(once)); err != nil || twice != once {
			t.Fatalf("%q folds to %q, %v", once, twice, err)
		}
	})
}

func manyRoles(n int) (roles []string) {
	for i := range n {
		roles = append(roles, fmt.Sprintf("role-%02d", i))
	}
	return roles
}

func TestParseRoles(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		given []string
		want  user.Roles
		ok    bool
	}{
		"none":                {nil, nil, true},
		"sorted":              {[]string{"b", "c", "a"}, user.Roles{"a", "b", "c"}, true},
		"each once":           {[]string{"b", "a", "b", "a"}, user.Roles{"a", "b"}, true},
		"all signs":           {[]string{"a0._:-z"}, user.Roles{"a0._:-z"}, true},
		"longest":             {[]string{strings.Repeat("a", 64)}, user.Roles{strings.Repeat("a", 64)}, true},
		"most":                {manyRoles(32), manyRoles(32), true},
		"most, each repeated": {append(manyRoles(32), manyRoles(32)...), manyRoles(32), true},
		"too many":            {manyRoles(33), nil, false},
		"too long":            {[]string{strings.Repeat("a", 65)}, nil, false},
		"empty":               {[]string{""}, nil, false},
		"upper case":          {[]string{"Admin"}, nil, false},
		"digit first":         {[]string{"0admin"}, nil, false},
		"space":               {[]string{"a b"}, nil, false},
		"line break":          {[]string{"admin\n"}, nil, false},
		"comma":               {[]string{"a,b"}, nil, false},
		"accent":              {[]string{"rené"}, nil, false},
		"good and bad":        {[]string{"a", "B"}, nil, false},
	} {
		given := slices.Clone(c.given)
		got, err := user.ParseRoles(given)
		if !slices.Equal(got, c.want) || (err == nil) != c.ok || err != nil && !errors.Is(err, user.ErrMalformed) {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
		if !slices.Equal(given, c.given) {
			t.Errorf("%s: the caller's slice was changed to %q", name, given)
		}
	}
}
