package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/watchword-auth/watchword/internal/version"
)

// completionCmd prints a script for a shell. The script runs `watchword complete` at each
// Tab, so the script stays right when commands change.
type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"The shell: bash, zsh or fish."`
}

// Help returns the second part of --help.
func (c *completionCmd) Help() string {
	return `For bash, write into ~/.bashrc:  source <(watchword completion bash)
For zsh, write into ~/.zshrc after compinit:  source <(watchword completion zsh)
For fish:  watchword completion fish > ~/.config/fish/completions/watchword.fish`
}

// completions holds the script of each shell. bash splits a word at "=", and complete joins
// the parts. Without a candidate, the shells complete the names of files.
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

// Run prints the script.
func (c *completionCmd) Run(t Terminal) error {
	_, err := fmt.Fprint(t.Out, completions[c.Shell])
	return err
}

// completeCmd prints the candidates for the last of the words, one a line.
type completeCmd struct {
	Words []string `arg:"" optional:"" help:"The words of the command line, without the name of the program."`
}

// Run prints the candidates.
func (c *completeCmd) Run(t Terminal, k *kong.Kong) error {
	for _, candidate := range candidatesFor(k.Model.Node, c.Words) {
		fmt.Fprintln(t.Out, candidate)
	}
	return nil
}

// candidatesFor returns what may stand in place of the last word: the commands below the command
// of the earlier words, its flags after a "-", or the values of the flag before.
func candidatesFor(node *kong.Node, words []string) (all []string) {
	words = slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "=" }) // of bash
	last := ""
	if len(words) > 0 {
		last, words = words[len(words)-1], words[:len(words)-1]
	}
	var valued *kong.Flag // the flag before, if its value follows
	for _, word := range words {
		if name, isFlag := strings.CutPrefix(word, "--"); isFlag {
			flag := flagOf(node, name)
			if valued = flag; flag != nil && flag.IsBool() {
				valued = nil
			}
			continue
		}
		if i := slices.IndexFunc(node.Children, func(n *kong.Node) bool { return n.Name == word }); valued == nil && i >= 0 {
			node = node.Children[i]
		}
		valued = nil
	}
	switch {
	case valued != nil:
		all = slices.DeleteFunc(valued.EnumSlice(), func(value string) bool { return value == "" })
	case strings.HasPrefix(last, "-"):
		for n := node; n != nil; n = n.Parent {
			for _, flag := range n.Flags {
				if !flag.Hidden {
					all = append(all, "--"+flag.Name)
				}
			}
		}
	default:
		for _, child := range node.Children {
			if !child.Hidden {
				all = append(all, child.Name)
			}
		}
		for _, argument := range node.Positional {
			all = append(all, argument.EnumSlice()...)
		}
	}
	all = slices.DeleteFunc(all, func(candidate string) bool { return !strings.HasPrefix(candidate, last) })
	slices.Sort(all)
	return slices.Compact(all)
}

// flagOf returns the flag with a name, of a command or of a command above; nil without one,
// and for a flag with its value in the same word.
func flagOf(node *kong.Node, name string) *kong.Flag {
	for n := node; n != nil; n = n.Parent {
		for _, flag := range n.Flags {
			if flag.Name == name {
				return flag
			}
		}
	}
	return nil
}

type versionCmd struct{}

// Run prints the version.
func (c *versionCmd) Run(t Terminal) error {
	_, err := fmt.Fprintln(t.Out, version.String())
	return err
}
