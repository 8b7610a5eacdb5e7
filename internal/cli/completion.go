package cli

import (
	"context"
	"fmt"

	"github.com/watchword-auth/watchword/internal/settings"
	"github.com/watchword-auth/watchword/internal/version"
)

// completionCmd prints a script with which a shell completes the words of a command line. The
// script runs `watchword complete` at each Tab, so the script stays right when commands change.
type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"The shell: bash, zsh or fish."`
}

// Help returns the text that --help prints below the first sentence about the command.
func (c *completionCmd) Help() string {
	return `For bash, write into ~/.bashrc:  source <(watchword completion bash)
For zsh, write into ~/.zshrc after compinit:  source <(watchword completion zsh)
For fish:  watchword completion fish > ~/.config/fish/completions/watchword.fish`
}

// completions holds the completion script of each shell. bash splits a word of the command line
// at "=", and `watchword complete` joins the parts of the word. If `watchword complete` prints
// no candidate, the shells complete the names of files.
var completions = map[string]string{
	"bash": `_watchword() {
	local IFS=$'\n'
	COMPREPLY=($(watchword complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _watchword watchword
`,
	"zsh": `_watchword() {
	local -a candidates
	candidates=(${(f)"$(watchword complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
	if (( $#candidates )); then compadd -- $candidates; else _files; fi
}
compdef _watchword watchword
`,
	"fish": `complete -c watchword -a '(watchword complete -- (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'
`,
}

// Run prints the completion script of the shell.
func (c *completionCmd) Run(_ context.Context, t Terminal) error {
	_, err := fmt.Fprint(t.Out, completions[c.Shell])
	return err
}

// completeCmd prints the words that can stand in place of the last word of a command line, one
// a line.
type completeCmd struct {
	Words []string `arg:"" optional:"" help:"The words of the command line, without the name of the program."`
}

// RunBy prints the words that can complete the command line, one a line.
func (c *completeCmd) RunBy(_ context.Context, set *settings.Settings, t Terminal) error {
	for _, candidate := range set.Candidates(c.Words) {
		fmt.Fprintln(t.Out, candidate)
	}
	return nil
}

type versionCmd struct{}

// Run prints the version of this program.
func (c *versionCmd) Run(_ context.Context, t Terminal) error {
	_, err := fmt.Fprintln(t.Out, version.String())
	return err
}
