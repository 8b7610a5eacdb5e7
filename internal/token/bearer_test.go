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
		"one":            {[]string{"Bearer a.b.c"}, "a.b.c", true},
		"any case":       {[]string{"bEARER a.b.c"}, "a.b.c", true},
		"none":           {nil, "", false},
		"two":            {[]string{"Bearer a.b.c", "Bearer a.b.c"}, "", false},
		"another scheme": {[]string{"Basic a.b.c"}, "a.b.c", false},
		"no scheme":      {[]string{"a.b.c"}, "", false},
		"no token":       {[]string{"Bearer"}, "", false},
		"a token of any": {[]string{"Bearer  x y"}, " x y", true},
	} {
		got, ok := token.Bearer(test.values)
		if ok != test.ok || ok && got != test.want {
			t.Errorf("%s: %q, %t", name, got, ok)
		}
	}
}
