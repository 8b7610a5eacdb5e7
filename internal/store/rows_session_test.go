package store

import (
	"encoding/json"
	"slices"
	"testing"
)

func TestParseStrings(t *testing.T) {
	for _, list := range [][]string{
		nil, {}, {""}, {"", ""}, {"internal"}, {"internal", "billing"}, {`a","b`}, {`\`}, {`"`}, {`]`, `["`}, {"a\nb", "<é>"}, {"https://a.example/b?c=d"},
	} {
		array, err := json.Marshal(list)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseStrings(string(array)); err != nil || !slices.Equal(got, list) {
			t.Errorf("%s: %q, %v", array, got, err)
		}
	}
	if got, err := parseStrings(`["a", "b" ]`); err != nil || !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("with spaces: %q, %v", got, err)
	}
	for _, array := range []string{"", "[", `["`, `["]`, `"]`, `["a"`, `{}`, `[1]`} {
		if got, err := parseStrings(array); err == nil {
			t.Errorf("%s: %q", array, got)
		}
	}
}
