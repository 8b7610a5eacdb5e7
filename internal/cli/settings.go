package cli

import (
	"context"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// settings reads a command line: the value of a flag comes from the command line, or else from
// the environment variable of the flag, or else from the file of --config. settings collects
// every fault of the three, so that an operator mends all of them at once.
type settings struct {
	args    []string
	parser  *kong.Kong
	serve   *serveCmd    // the flags of serve, as read
	flags   []*kong.Flag // of the command and of the commands above
	unknown bool         // the command line has an unknown flag, so the meaning of later arguments is uncertain

	file    string            // of --config; empty without one
	values  map[string]string // flag → value from the file
	origins map[string]string // flag → where the value comes from; for a flag with the default none
	wrong   []string          // flags with a value that cannot be read
	faults  []string
}

// shared are the flags that other commands take from the file of --config: the flags that mean
// the same for the command as for `watchword serve`.
var shared = []string{"datastore-uri", "master-key-file", "min-password-length", "password-list"}

// usageFaults holds every fault of a command line, of the environment variables and of the file
// of --config, one a line.
type usageFaults []string

func (f usageFaults) Error() string { return strings.Join(f, "\n") }

// newSettings returns settings that have read nothing yet, for a command line of these arguments.
func newSettings(ctx context.Context, t Terminal, args []string) (*settings, error) {
	all, alone := &root{}, &serveRoot{}
	s, commands := &settings{serve: &all.Serve}, any(all)
	if len(args) > 0 && args[0] == "serve" {
		s.serve, commands = &alone.Serve, alone
	}
	var err error
	s.parser, err = newParser(ctx, t, s, commands)
	return s, err
}

// read reads a command line. Errors: [usageFaults].
func (s *settings) read(args []string) (*kong.Context, error) {
	*s = settings{parser: s.parser, serve: s.serve, args: args, values: map[string]string{}, origins: map[string]string{}}
	command, kept := s.trace(args)
	for _, p := range command.Path {
		s.flags = append(s.flags, p.Flags...)
		if p.Flag != nil && len(s.faults) > 0 && (p.Flag.Name == "help" || p.Flag.Name == "version") {
			return nil, usageFaults(s.faults) // kong would print the help and exit with status 0
		}
	}
	s.collect(command)
	var parsed *kong.Context
	if kept != nil {
		var err error
		if parsed, err = s.parser.Parse(s.withoutWrong(kept)); err != nil {
			s.addRules(err)
		}
	}
	if len(s.faults) > 0 {
		return nil, usageFaults(s.faults)
	}
	return parsed, nil
}

// add adds a fault, unless the same fault was added before.
func (s *settings) add(text string) {
	if !slices.Contains(s.faults, text) {
		s.faults = append(s.faults, text)
	}
}

// trace finds the command, and the arguments without the flags that cannot be read. The
// arguments are nil if they make no command.
func (s *settings) trace(args []string) (*kong.Context, []string) {
	kept, numbers := append([]string{}, args...), make([]int, len(args)) // numbers in args
	for i := range args {
		numbers[i] = i + 1
	}
	for {
		command, err := kong.Trace(s.parser, kept)
		if err == nil {
			err = command.Error
		}
		if err == nil {
			return command, kept
		}
		at, n := s.misread(command, err, kept)
		if n == 0 && s.unknown { // perhaps because of what was taken for the value of the unknown flag
			return command, nil
		}
		number := 0
		if at < len(numbers) {
			number = numbers[at]
		}
		s.add(wrongUsage(err, number, len(args)))
		if n == 0 {
			return command, nil
		}
		kept, numbers = slices.Delete(kept, at, at+n), slices.Delete(numbers, at, at+n)
	}
}

// withoutWrong returns the arguments without the flags that have a wrong value, so that kong
// finds the faults of the other flags.
func (s *settings) withoutWrong(args []string) []string {
	for _, flag := range s.wrong {
		for at := indexOf(args, "--"+flag); at >= 0; at = indexOf(args, "--"+flag) {
			args = slices.Delete(args, at, at+length(args, at))
		}
	}
	return args
}

// indexOf returns the place of a flag in arguments; negative if the flag is not there. What
// stands behind -- is no flag.
func indexOf(args []string, flag string) int {
	if end := slices.Index(args, "--"); end >= 0 {
		args = args[:end]
	}
	return slices.IndexFunc(args, func(arg string) bool {
		name, _, _ := strings.Cut(arg, "=")
		return name == flag
	})
}

// length returns the number of arguments that a flag takes: one, or two with its value.
func length(args []string, at int) int {
	if !strings.Contains(args[at], "=") && at+1 < len(args) && !strings.HasPrefix(args[at+1], "-") {
		return 2
	}
	return 1
}

// leadingFlag matches the flag at the beginning of a text.
var leadingFlag = regexp.MustCompile(`^--([a-z][a-z-]*)`)

// misread returns the place and the number of the arguments that caused an error. n is zero if
// the error is not of one flag.
func (s *settings) misread(command *kong.Context, err error, args []string) (at, n int) {
	if len(command.Path) == 0 {
		return 0, 0
	}
	at = max(0, len(args)-len(command.Path[len(command.Path)-1].Remainder()))
	switch match := leadingFlag.FindStringSubmatch(err.Error()); {
	case match != nil:
		if at = indexOf(args, match[0]); at < 0 {
			return 0, 0
		}
		s.wrong = append(s.wrong, match[1])
	case strings.HasPrefix(err.Error(), "unknown flag ") && at < len(args):
		s.unknown = true
	default:
		return at, 0
	}
	return at, length(args, at)
}

// collect finds the value of each flag that is not on the command line, and tries the value.
func (s *settings) collect(command *kong.Context) {
	given := map[*kong.Flag]bool{}
	for _, p := range command.Path {
		if p.Flag != nil {
			given[p.Flag] = true
		}
	}
	file := s.readFile(command, given)
	for _, flag := range s.flags {
		line, inFile := file[flag.Name]
		switch variable := variableOf(flag); {
		case given[flag]:
			s.origins[flag.Name] = "the command line"
			s.check(flag, command.FlagValue(flag))
		case slices.Contains(s.wrong, flag.Name): // on the command line
		case variable != "":
			s.origins[flag.Name] = "the environment variable " + variable
			if !s.try(flag, os.Getenv(variable)) {
				flag.Envs, flag.Value.Tag.Envs = nil, nil // kong would read the variable again
			}
		case inFile:
			s.origins[flag.Name] = lineIn(s.file, line.line)
			if s.try(flag, line.text) {
				s.values[flag.Name] = line.text
			}
		}
	}
}

// readFile reads the file of --config, if the command has flags that the file may set.
func (s *settings) readFile(command *kong.Context, given map[*kong.Flag]bool) map[string]setting {
	var known []string
	serve := slices.IndexFunc(s.parser.Model.Children, func(n *kong.Node) bool { return n.Name == "serve" })
	for _, flag := range s.parser.Model.Children[serve].Flags {
		known = append(known, flag.Name)
	}
	usable := shared
	if path := command.Selected(); path != nil && (path.Name == "serve" || path.Path() == "config check") {
		usable = known
	}
	if !slices.ContainsFunc(s.flags, func(f *kong.Flag) bool { return slices.Contains(usable, f.Name) }) {
		return nil
	}
	for _, flag := range s.flags {
		switch variable := variableOf(flag); {
		case flag.Name != "config":
		case given[flag]:
			s.file, _ = command.FlagValue(flag).(string)
		case variable != "":
			s.file = os.Getenv(variable)
		}
	}
	if s.file == "" {
		return nil
	}
	file, faults := readConfig(s.file, known)
	for _, fault := range faults {
		s.add(fault)
	}
	for key := range file {
		if !slices.Contains(usable, key) {
			delete(file, key)
		}
	}
	return file
}

// variableOf returns the name of the environment variable that sets a flag; empty if none is
// set. An empty variable counts as not set.
func variableOf(flag *kong.Flag) string {
	for _, name := range flag.Envs {
		if os.Getenv(name) != "" {
			return name
		}
	}
	return ""
}

// try reports whether a text is a value of a flag, and adds a fault if not.
func (s *settings) try(flag *kong.Flag, text string) bool {
	target := reflect.New(flag.Target.Type()).Elem()
	if err := flag.Parse(kong.ScanFromTokens(kong.Token{Type: kong.FlagValueToken, Value: text}), target); err != nil {
		rule, _, _ := strings.Cut(err.Error(), " but got ") // which repeats the value
		s.wrong = append(s.wrong, flag.Name)
		s.add(rule + s.from(flag.Name))
		return false
	}
	return s.check(flag, target.Interface())
}

// check reports whether a value is one of the values that a flag allows.
func (s *settings) check(flag *kong.Flag, value any) bool {
	if flag.Enum == "" || slices.Contains(flag.EnumSlice(), fmt.Sprint(value)) {
		return true
	}
	s.wrong = append(s.wrong, flag.Name)
	var allowed []string
	for _, one := range flag.EnumSlice() {
		allowed = append(allowed, fmt.Sprintf("%q", one))
	}
	s.add("--" + flag.Name + " must be one of " + strings.Join(allowed, ",") + s.from(flag.Name))
	return false
}

// from says where the value of a flag comes from, as the end of a text; empty for the command
// line and for a default.
func (s *settings) from(flag string) string {
	if origin := s.origins[flag]; origin != "" && origin != "the command line" {
		return " (from " + origin + ")"
	}
	return ""
}

// Words of kong before the faults of [server.Config.Validate], and a flag in a text.
var (
	commandName = regexp.MustCompile(`^[a-z -]+: --`)
	flagName    = regexp.MustCompile(`--([a-z][a-z-]*[a-z])`)
)

// addRules adds the faults of Parse: broken rules of the command, one a line. A rule about a
// flag that could not be read says nothing.
func (s *settings) addRules(err error) {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if prefix := commandName.FindString(line); prefix != "" {
			line = line[len(prefix)-2:]
		}
		mentioned := flagName.FindAllStringSubmatch(line, -1)
		if slices.ContainsFunc(mentioned, func(m []string) bool { return slices.Contains(s.wrong, m[1]) }) {
			continue
		}
		if s.unknown && len(mentioned) == 0 { // such as a missing argument
			continue
		}
		line, _, _ = strings.Cut(line, " but got ") // which repeats a value
		s.add(line + s.fromAll(mentioned))
	}
}

// fromAll says where the values of the flags in a text come from.
func (s *settings) fromAll(mentioned [][]string) string {
	var origins []string
	for i, m := range mentioned {
		from := strings.Trim(s.from(m[1]), " ()")
		if i > 0 && from != "" {
			from = m[0] + " " + from
		}
		if from != "" && !slices.Contains(origins, from) {
			origins = append(origins, from)
		}
	}
	if origins == nil {
		return ""
	}
	return " (" + strings.Join(origins, "; ") + ")"
}

// Resolve gives kong the value of a flag from the file of --config.
func (s *settings) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	if text, set := s.values[flag.Name]; set {
		return text, nil
	}
	return nil, nil
}

// Validate is for kong. readConfig has checked the file.
func (s *settings) Validate(*kong.Application) error { return nil }
