package settings

import (
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// Candidates returns the words that can stand in place of the last word of a command line, for
// the completion of a shell: the commands below the command of the earlier words, the flags of
// that command after a "-", or the values of the flag before. A shell asks the program for the
// candidates at each press of the key Tab.
func (s *Settings) Candidates(words []string) (all []string) {
	node := s.parser.Model.Node
	words = slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "=" }) // bash makes the = of --flag=value a word
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

// flagOf returns the flag with a name, of the command node or of a command above; nil if there is
// no such flag, and also if the name has the flag's value behind it, as in NAME=VALUE.
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
