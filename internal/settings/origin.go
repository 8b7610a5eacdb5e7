package settings

import (
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// commandLine is the text that names where a flag's value comes from, for a value on the
// command line.
const commandLine = "the command line"

// Args returns the arguments of the command line that [Settings.Read] has read.
func (s *Settings) Args() []string { return s.args }

// Given reports whether a flag is on the command line.
func (s *Settings) Given(flag string) bool { return s.origins[flag] == commandLine }

// File returns the file of --config; empty if the command has read no file.
func (s *Settings) File() string { return s.file }

// InFile reports whether the value of a flag comes from the file of --config.
func (s *Settings) InFile(flag string) bool {
	line, set := s.lines[flag]
	return set && s.origins[flag] == lineIn(s.file, line.number)
}

// From returns words to put behind an error text: the words say where the values of the flags
// in the text come from, such as a file. From returns "" for values of the command line, and
// for defaults.
func (s *Settings) From(text string) string {
	var origins []string
	for i, flag := range flagName.FindAllStringSubmatch(text, -1) {
		origin := s.origins[flag[1]]
		if origin == "" || origin == commandLine {
			continue
		}
		from := "from " + origin
		if i > 0 {
			from = flag[0] + " " + from
		}
		if !slices.Contains(origins, from) {
			origins = append(origins, from)
		}
	}
	if origins == nil {
		return ""
	}
	return " (" + strings.Join(origins, "; ") + ")"
}

// Write writes the values in use as a file of --config, with the origin of each value as a
// comment. A flag without a value is left out. show returns what Write is allowed to show of a
// value, which can hold a password.
func (s *Settings) Write(out io.Writer, show func(flag string, value any) any) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, flag := range s.flags {
		origin, set := s.origins[flag.Name]
		if !set {
			origin = "default"
		}
		if flag.Name == "config" || flag.Name == "help" || flag.Name == "version" || !set && flag.Target.IsZero() && !flag.HasDefault {
			continue
		}
		fmt.Fprintf(w, "%s: %s\t# %s\n", flag.Name, yaml(show(flag.Name, flag.Target.Interface())), origin)
	}
	return w.Flush()
}

// yaml returns a value of a flag in YAML.
func yaml(value any) string {
	switch v := value.(type) {
	case string:
		return strconv.Quote(v)
	case []string:
		quoted := make([]string, len(v))
		for i, one := range v {
			quoted[i] = strconv.Quote(one)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	}
	return fmt.Sprint(value)
}

// Changed returns the names of the flags that have another value in `later` than in s, where s and
// `later` were read for the same command line.
func (s *Settings) Changed(later *Settings) (flags []string) {
	for i, flag := range later.flags {
		if !reflect.DeepEqual(flag.Target.Interface(), s.flags[i].Target.Interface()) {
			flags = append(flags, flag.Name)
		}
	}
	return flags
}
