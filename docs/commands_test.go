package docs_test

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// commands has a value for each block of commands in the documents: the test that runs the
// blocks and knows their number, or the reason why no test runs them. The key names a document,
// or a document and a heading.
var commands = map[string]string{
	"README.md#Try every kind of call in five minutes":                 "TestWalk",
	"README.md#Administer users at the command line":                   "TestCommandsOfTheDocuments",
	"README.md#Call a method of your service":                          "TestCommandsOfTheDocuments",
	"README.md#Set the rule of each method":                            "TestRulesFromTheReadme",
	"README.md#Generate the Go code with protoc":                       "TestRulesFromTheReadme",
	"docs/configuration.md":                                            "TestCommandsOfTheDocuments",
	"docs/first-week.md":                                               "TestCommandsOfTheDocuments",
	"docs/keys.md":                                                     "TestCommandsOfTheDocuments",
	"docs/migrations.md#Finish an upgrade":                             "TestCommandsOfTheDocuments",
	"docs/monitoring.md#Guarded services":                              "lines of Go; TestSlowPrometheusRaisesAlarms of deploy/check runs them",
	"docs/postgresql.md#Try two replicas on your own machine":          "TestTwoReplicasOfThePage",
	"docs/postgresql.md#Try TLS":                                       "TestCommandsOfTheDocuments",
	"docs/recovery.md":                                                 "TestCommandsOfTheDocuments",
	"docs/restore.md#Make a backup":                                    "TestCommandsOfTheDocuments",
	"docs/restore.md#After restoring a backup, or promoting a standby": "TestCommandsOfTheDocuments",
	"docs/services.md":                                                 "TestCommandsOfTheDocuments",

	"README.md#Run several replicas":                 "needs PostgreSQL under the name of another machine",
	"CONTRIBUTING.md":                                "runs a test of the repository",
	"clients/node/README.md":                         "installs packages from the network",
	"clients/python/README.md":                       "installs packages from the network; `make test-python` generates and tests",
	"docs/container.md":                              "needs a container engine",
	"docs/deploy.md":                                 "needs a container engine, a cluster or systemd",
	"docs/monitoring.md#Traces":                      "variables and lines of Go; TestTraces exports spans with both",
	"docs/ext-authz.md":                              "needs certificates and a running server; TestExtAuthz runs the program with these flags",
	"docs/federation.md":                             "the server would fetch keys from other machines; TestBothWays runs such commands, and TestSlowSPIRE of internal/e2e those of SPIRE",
	"docs/verify.md":                                 "installs packages from the network",
	"docs/postgresql.md#Start the first replica":     "needs PostgreSQL under the name of another machine",
	"docs/tools.md":                                  "the tools are built by make test-slow; TestBufCurl and TestSlowOtherTools run each line",
	"docs/proxies.md":                                "the server has the reader's certificate and address; TestSlowBehindAProxy runs such a server behind each proxy",
	"docs/restore.md#Move from SQLite to PostgreSQL": "needs PostgreSQL under the name of another machine; TestMoveUnderLoad of internal/e2e moves a database",
	"examples/notes/README.md":                       "needs several terminals",
}

var (
	heading = regexp.MustCompile("^#+ (.*)$")
	fence   = regexp.MustCompile("^ *```([a-z]*)$")
	command = regexp.MustCompile(`^ {4,}(?:export|\.bin/[\w-]+|watchword|docker|kubectl|curl|make|go|sudo|systemctl|psql|npm|node) `)
)

// A block of commands, fenced or indented, is run by a test or listed with a reason.
func TestCommandsAreRunOrListed(t *testing.T) {
	tests := ""
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		tests += read(t, filepath.Join("docs", file))
	}
	used := make(map[string]bool)
	for _, path := range documents(t) {
		if path == "CHANGELOG.md" || strings.HasPrefix(path, "docs/decisions/") {
			continue
		}
		for _, under := range headingsOfCommands(read(t, path)) {
			key := path
			if _, listed := commands[key]; !listed {
				key += "#" + under
			}
			if _, listed := commands[key]; !listed {
				t.Errorf("%s: let a test run the commands, or list the commands here with a reason", key)
			}
			used[key] = true
		}
	}
	for key, by := range commands {
		if !used[key] {
			t.Errorf("%s has no commands any more", key)
		}
		if strings.HasPrefix(by, "Test") && !strings.Contains(tests, "\nfunc "+by+"(t ") {
			t.Errorf("%s: there is no test %s", key, by)
		}
	}
}

// headingsOfCommands returns the heading above each block of commands.
func headingsOfCommands(text string) (under []string) {
	var last string
	fenced := false
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if m := fence.FindStringSubmatch(line); m != nil {
			if fenced = !fenced; fenced && slices.Contains([]string{"", "bash", "console", "sh", "shell"}, m[1]) {
				under = append(under, last)
			}
			continue
		}
		if fenced {
			continue
		}
		if m := heading.FindStringSubmatch(line); m != nil {
			last = m[1]
		} else if command.MatchString(line) {
			under = append(under, last)
		}
	}
	return under
}

// Every flag that a document gives to a command of watchword is a flag of the command.
func TestFlagsInCommandsExist(t *testing.T) {
	program := filepath.Join(t.TempDir(), "watchword")
	if out, err := exec.Command("go", "build", "-o", program, "../cmd/watchword").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	helps := make(map[string]string) // the output of --help, by command; empty for what is no command
	help := func(words []string) string {
		name := strings.Join(words, " ")
		if text, known := helps[name]; known {
			return text
		}
		out, err := exec.Command(program, append(slices.Clone(words), "--help")...).CombinedOutput()
		if err != nil {
			out = nil
		}
		helps[name] = string(out)
		return helps[name]
	}
	called := regexp.MustCompile("(?m)(?:`|^ *)(?:\\.bin/)?watchword ([a-z][a-z-]*(?: [a-z][a-z-]*)?)([^`\n#|]*)")
	flag := regexp.MustCompile(`(?:^| )--([a-z-]+)`)
	checked := 0
	for _, path := range documents(t) {
		if path == "CHANGELOG.md" || strings.HasPrefix(path, "docs/decisions/") {
			continue
		}
		for _, m := range called.FindAllStringSubmatch(read(t, path), -1) {
			flags := flag.FindAllStringSubmatch(m[2], -1)
			if len(flags) == 0 {
				continue
			}
			words := strings.Fields(m[1])
			text := help(words)
			if text == "" {
				text = help(words[:1])
			}
			if text == "" {
				t.Errorf("%s: there is no command %s", path, m[0])
			}
			for _, f := range flags {
				checked++
				if !regexp.MustCompile(`--` + f[1] + `\b[^-]`).MatchString(text) {
					t.Errorf("%s: %s has no flag --%s", path, m[0], f[1])
				}
			}
		}
	}
	if checked < 50 {
		t.Errorf("%d flags were found, want those of every document", checked)
	}
}
