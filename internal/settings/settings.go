// Package settings reads a command line: the command, its arguments and its flags. The value of
// a flag comes from the command line, or else from the environment variable of the flag, or
// else from the file of --config, or else from the default. An empty variable counts as not
// set.
//
// One error names everything that is wrong on the command line, in the variables and in the
// file, so that an operator can mend all of it at once. The text of the error shows no
// argument, no value and no unknown key: each can be a password in the wrong place, and
// terminals and CI keep what they show.
//
// The commands are fields with the tags of the parser kong, and only settings imports kong. A
// command may have three methods. Help returns a text for --help. Validate returns the faults of
// the flags. AfterApply gets the *[Settings] after Validate, and returns further faults.
//
// kong finds the methods of a command by names that are known only at run time. A call of such
// code makes Go's linker keep every exported method of every type in the program. So settings
// calls only those parts of kong that look no method up: see
// docs/decisions/2026-11-29-no-method-by-name.md.
//
// [Settings.Main] does what the main function of every program does: reads the command line, ends
// the command after a signal, and returns the exit status. [Log] holds the flags about the log of a
// program that serves.
package settings

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"
)

// Program holds the commands of a program, and says which flags the file of --config sets.
type Program struct {
	Name, Description, Version string

	// Commands points to a struct that embeds [EveryCommand]. A field with the tag cmd is a
	// command.
	Commands any
	Out, Err io.Writer // get the texts of --help and --version
	Exit     func(int) // ends the process after --help and --version; nil: [os.Exit]

	// KeysOf names a command, such as serve: the file of --config can set the flags of this
	// command. The commands in TakeAll use every key of the file, and each other command uses
	// the keys in Shared. KeysOf names a command at the top level, below no other command.
	KeysOf          string
	TakeAll, Shared []string
}

// EveryCommand holds the flags of every command.
type EveryCommand struct {
	Config  string `type:"path" placeholder:"FILE" help:"File with settings of serve, YAML: the keys are the names of the flags. Flags and variables count before the file."`
	Version bool   `env:"-" help:"Print the version and exit."`
}

// Settings holds what [Settings.Read] has read from the command line, the environment variables
// and the file of --config. Settings is not safe for concurrent use.
type Settings struct {
	program Program
	parser  *kong.Kong
	known   keys // the keys that the file of --config can have

	args    []string
	command *kong.Node   // nil after a fault
	flags   []*kong.Flag // of the command and of the commands above
	unknown bool         // the command line has an unknown flag, so the meaning of later arguments is uncertain

	file    string            // the file of --config; empty without a file
	lines   map[string]line   // the value of each flag in the file
	origins map[string]string // where the value of each flag comes from; a flag with the default has no entry
	wrong   []string          // flags with a value that cannot be read
	faults  []string
}

// New returns a Settings for a program; [Settings.Read] then reads the command line. Errors:
// those of kong, for a wrong tag of a command; an error if there is no command KeysOf.
func New(p Program) (*Settings, error) {
	s := &Settings{program: p, known: keys{program: p.Name, command: p.KeysOf}}
	options := []kong.Option{
		kong.Name(p.Name), kong.Description(p.Description), kong.Writers(p.Out, p.Err),
		kong.TypeMapper(reflect.TypeFor[time.Duration](), kong.MapperFunc(durations)),
		kong.DefaultEnvars(strings.ReplaceAll(strings.ToUpper(p.Name), "-", "_")), kong.ValueFormatter(withVariable),
		kong.Resolvers(kong.ResolverFunc(s.resolve)),
	}
	if p.Exit == nil {
		s.program.Exit = os.Exit
	}
	var err error
	if s.parser, err = kong.New(p.Commands, options...); err != nil {
		return nil, err
	}
	for _, flag := range allFlags(s.parser.Model.Node) {
		flag.Mapper = tolerant{s, flag.Mapper}
		flag.Tag.Envs = nil // for kong an empty variable is a value; see resolve
	}
	at := slices.IndexFunc(s.parser.Model.Children, func(n *kong.Node) bool { return n.Name == p.KeysOf })
	if at < 0 {
		return nil, fmt.Errorf("there is no command %q", p.KeysOf)
	}
	for _, flag := range s.parser.Model.Children[at].Flags {
		s.known.names = append(s.known.names, flag.Name)
	}
	return s, nil
}

// withVariable returns the text of --help about a flag, with the variable that [New] hides from
// kong.
func withVariable(value *kong.Value) string {
	shown, tag := *value, *value.Tag
	if value.Flag != nil {
		tag.Envs = value.Flag.Envs
	}
	shown.Tag = &tag
	return kong.DefaultHelpValueFormatter(&shown)
}

// allFlags returns the flags of a command and of all commands below.
func allFlags(node *kong.Node) []*kong.Flag {
	flags := slices.Clone(node.Flags)
	for _, child := range node.Children {
		flags = append(flags, allFlags(child)...)
	}
	return flags
}

// Read reads a command line, the environment variables and the file of --config into the
// commands. --help and --version print their text, and end the process.
//
// Errors: an error with a line for each fault.
func (s *Settings) Read(args []string) error {
	*s = Settings{program: s.program, parser: s.parser, known: s.known, args: args, origins: map[string]string{}}
	command, understood := s.trace(args)
	s.flags = command.Flags()
	for _, p := range command.Path {
		if p.Flag == nil {
			continue
		}
		if p.Flag.Name == "help" || p.Flag.Name == "version" {
			return s.inform(command, p.Flag.Name)
		}
		s.origins[p.Flag.Name] = commandLine
	}
	s.readFile(command)
	if !understood {
		_ = command.Resolve() // adds the faults of the variables and of the file; tolerant returns no error
		return s.fault()
	}
	if err := s.apply(command); err != nil {
		s.addRules(err)
	} else {
		s.command = command.Selected()
	}
	return s.fault()
}

// inform prints the text of --help or of --version, and ends the process. After a fault, inform
// returns the fault instead.
func (s *Settings) inform(command *kong.Context, flag string) error {
	if len(s.faults) > 0 {
		return s.fault()
	}
	if flag == "version" {
		fmt.Fprintln(s.program.Out, s.program.Version)
	} else if err := command.PrintUsage(false); err != nil {
		return err
	}
	s.program.Exit(0)
	return nil
}

// apply sets the flags and the arguments of a command, which are fields of the command. Errors:
// faults against the rules of the tags, and errors of the command's methods.
func (s *Settings) apply(command *kong.Context) error {
	if err := command.Reset(); err != nil {
		return err
	}
	if err := command.Resolve(); err != nil {
		return err
	}
	if _, err := command.Apply(); err != nil {
		return err
	}
	if err := command.Validate(); err != nil {
		return err
	}
	if c, ok := command.Selected().Target.Addr().Interface().(interface{ AfterApply(*Settings) error }); ok {
		return c.AfterApply(s)
	}
	return nil
}

// fault returns one error that names every fault found so far, or nil.
func (s *Settings) fault() error {
	if len(s.faults) == 0 {
		return nil
	}
	return errors.New(strings.Join(s.faults, "\n"))
}

// add adds a fault, unless the same fault was added before: kong reads a command line again
// without an unknown flag.
func (s *Settings) add(text string) {
	if !slices.Contains(s.faults, text) {
		s.faults = append(s.faults, text)
	}
}

// Command returns a pointer to the command that [Settings.Read] has read: to a field of
// Program.Commands.
func (s *Settings) Command() any { return s.command.Target.Addr().Interface() }

// trace returns the command that the command line names, without the unknown flags. trace
// returns false if kong cannot read the rest of the command line.
func (s *Settings) trace(args []string) (command *kong.Context, understood bool) {
	kept, removed := append([]string{}, args...), 0
	for {
		command, _ = kong.Trace(s.parser, kept) // the error is in command.Error, too
		if command.Error == nil {
			return command, true
		}
		at := len(kept) - len(command.Path[len(command.Path)-1].Remainder())
		isFlag := strings.HasPrefix(command.Error.Error(), "unknown flag ") && at < len(kept)
		if !isFlag && s.unknown { // the error may come from what was taken for the value of the unknown flag
			return command, false
		}
		s.add(misplaced(command.Error, at+removed+1, len(args)))
		if !isFlag {
			return command, false
		}
		s.unknown = true
		n := 1
		if !strings.Contains(kept[at], "=") && at+1 < len(kept) && !strings.HasPrefix(kept[at+1], "-") {
			n = 2 // the flag and the flag's value
		}
		kept, removed = slices.Delete(kept, at, at+n), removed+n
	}
}

var (
	// misplacing matches kong's errors about an argument in the wrong place, which begin with
	// these words and then repeat the argument.
	misplacing = regexp.MustCompile(`^(unexpected argument|unknown flag) `)
	// candidates matches the end of an error of kong about an unknown word: suggested names of
	// commands or flags.
	candidates = regexp.MustCompile(`, did you mean (?:one of )?"[a-z-]+"(?:, "[a-z-]+")*\?$`)
)

// misplaced returns the text for kong's error about an argument that means nothing, by the number
// of the argument. The text does not repeat the argument, which may be a secret.
func misplaced(err error, number, of int) string {
	words := misplacing.FindString(err.Error())
	if words == "" {
		return withoutValue(err.Error())
	}
	text := fmt.Sprintf("%s(argument %d of %d) is not shown, because it may be a secret%s", words, number, of, candidates.FindString(err.Error()))
	if words == "unknown flag " {
		text += "; put -- before an argument that begins with -, such as an id"
	}
	return text
}

// withoutValue returns an error text of kong up to the value of a flag, which can be a secret.
func withoutValue(text string) string {
	rule, _, _ := strings.Cut(text, " but got ")
	return rule
}

// readFile reads the file of --config, if the command has flags that the file may set.
func (s *Settings) readFile(command *kong.Context) {
	usable := s.program.Shared
	if node := command.Selected(); node != nil && slices.Contains(s.program.TakeAll, node.Path()) {
		usable = s.known.names
	}
	if !slices.ContainsFunc(s.flags, func(f *kong.Flag) bool { return slices.Contains(usable, f.Name) }) {
		return
	}
	for _, flag := range s.flags {
		if flag.Name != "config" {
			continue
		}
		if s.file = os.Getenv(variableOf(flag)); s.Given("config") {
			s.file, _ = command.FlagValue(flag).(string)
		}
	}
	if s.file == "" {
		return
	}
	lines, faults := readConfig(s.file, s.known)
	for _, fault := range faults {
		s.add(fault)
	}
	s.lines = lines
	for key := range s.lines {
		if !slices.Contains(usable, key) {
			delete(s.lines, key)
		}
	}
}

// resolve gives kong the value of a flag that is not on the command line: the variable, or the
// value in the file of --config.
func (s *Settings) resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	if name := variableOf(flag); name != "" {
		s.origins[flag.Name] = "the environment variable " + name
		return os.Getenv(name), nil
	}
	if line, set := s.lines[flag.Name]; set {
		s.origins[flag.Name] = lineIn(s.file, line.number)
		return line.text, nil
	}
	return nil, nil
}

// The patterns match the words that kong puts before an error of a command's method Validate,
// and a flag in a text.
var (
	commandName = regexp.MustCompile(`^[a-z -]+: --`)
	flagName    = regexp.MustCompile(`--([a-z][a-z-]*[a-z])`)
)

// addRules adds the faults that apply has found, such as two flags that exclude each
// other, one a line. addRules leaves out faults about a flag with a value that could not be
// read.
func (s *Settings) addRules(err error) {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if prefix := commandName.FindString(line); prefix != "" {
			line = line[len(prefix)-2:]
		}
		mentioned := flagName.FindAllStringSubmatch(line, -1)
		if slices.ContainsFunc(mentioned, func(m []string) bool { return slices.Contains(s.wrong, m[1]) }) {
			continue
		}
		if s.unknown && len(mentioned) == 0 { // an error such as a missing argument may come from the unknown flag
			continue
		}
		s.add(withoutValue(line) + s.From(line))
	}
}
