package cli_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestCompletion checks which words the completion offers for the last word of a command line.
func TestCompletion(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"us":                        "user",
		"user set-":                 "set-password set-roles",
		"key rotate --alg ":         "ES256 EdDSA RS256",
		"key rotate --alg = E":      "ES256 EdDSA",
		"serve --log-f":             "--log-format",
		"serve --log-format ":       "json text",
		"serve --insecure --log-fo": "--log-format",
		"user list --addr x --js":   "--json",
		"user list --addr user --j": "--json",
		"completion z":              "zsh",
		"user no-such ":             "create delete disable enable list rename set-password set-roles show",
		"backup ":                   "",
		"comp":                      "completion", // complete is hidden
	} {
		out := done(t, "", append([]string{"complete", "--"}, strings.Split(line, " ")...)...)
		if got := strings.Join(strings.Fields(out), " "); got != want {
			t.Errorf("watchword %s[Tab] offers %q, want %q", line, got, want)
		}
	}
	if all := strings.Fields(done(t, "", "complete", "--", "")); !slices.Contains(all, "serve") || slices.Contains(all, "complete") {
		t.Errorf("watchword [Tab] offers %q", all)
	}
	if text := done(t, "", "version"); strings.TrimSpace(text) == "" {
		t.Error("version prints nothing")
	}
	fails(t, 2, "<shell>", "", "completion", "tcsh")
}

// Each shell that this machine has takes its script, and bash completes.
func TestCompletionInShells(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	for _, shell := range []string{"bash", "zsh", "fish"} {
		script := filepath.Join(folder, shell)
		if err := os.WriteFile(script, []byte(done(t, "", "completion", shell)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := exec.LookPath(shell); err != nil {
			t.Logf("%s is not checked: %v", shell, err)
			continue
		}
		if out, err := exec.Command(shell, "-n", script).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", shell, err, out)
		}
	}
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip(err)
	}
	// watchword is a function here: it shows the words that it gets, one a line.
	cmd := exec.Command(bash, "-c", `watchword() { printf '%s\n' "$@"; }; source "$1"; COMP_WORDS=(watchword user "set-pass"); COMP_CWORD=2; _watchword; printf '%s|' "${COMPREPLY[@]}"`, "bash", filepath.Join(folder, "bash"))
	cmd.Env = append(os.Environ(), "LC_ALL=C") // bash warns of a locale that the machine lacks
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "complete|--|user|set-pass|" {
		t.Errorf("%v: %s", err, out)
	}
}
