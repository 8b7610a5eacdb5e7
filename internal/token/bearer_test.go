package token_test

import (
	"testing"

	"github.com/watchword-auth/watchword/internal/token"
)

func TestBearer(t *testing.T) {
	for name, test := range map[string]struct {
		values []string
		want   string
		ok     bool
	}{
		"one":                  {[]string{"Bearer a.b.c"}, "a.b.c", true},
		"any case":             {[]string{"bEARER a.b.c"}, "a.b.c", true},
		"none":                 {nil, "", false},
		"two":                  {[]string{"Bearer a.b.c", "Bearer a.b.c"}, "", false},
		"another scheme":       {[]string{"Basic a.b.c"}, "a.b.c", false},
		"no scheme":            {[]string{"a.b.c"}, "", false},
		"no token":             {[]string{"Bearer"}, "", false},
		"no token, blanks":     {[]string{"Bearer \t "}, "", false},
		"two spaces":           {[]string{"Bearer  a.b.c"}, "a.b.c", true},
		"many spaces":          {[]string{"Bearer      a.b.c"}, "a.b.c", true},
		"blanks around":        {[]string{" \t Bearer a.b.c\t "}, "a.b.c", true},
		"a tab between":        {[]string{"Bearer\ta.b.c"}, "", false},        // RFC 9110 section 11.4 has spaces alone
		"a tab too":            {[]string{"Bearer \ta.b.c"}, "\ta.b.c", true}, // Parse refuses this token
		"other blanks":         {[]string{"Bearer a.b.c\n"}, "a.b.c\n", true},
		"a space no one knows": {[]string{"Bearer\u00a0a.b.c"}, "", false},
		"a token of any":       {[]string{"Bearer  x y"}, "x y", true},
	} {
		got, ok := token.Bearer(test.values)
		if ok != test.ok || ok && got != test.want {
			t.Errorf("%s: %q, %t", name, got, ok)
		}
	}
}
