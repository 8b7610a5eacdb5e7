package settings

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/watchword-auth/watchword/internal/durable"
)

// maxConfig bounds the file of --config, in bytes. A file with every flag has some 4 KiB.
const maxConfig = 64 << 10

const wantYAML = "write KEY: VALUE, one a line, and a list as [VALUE, VALUE]"

// line is one line of the file of --config.
type line struct {
	text   string // the value, in the form of a flag's value on the command line
	number int
}

// keys holds the names that the file of --config is allowed to set: the names of the flags of a
// command.
type keys struct {
	program, command string
	names            []string
}

// readConfig reads the file of --config: YAML, with the names of flags as keys. Each value is
// a text, a number or a truth value, or a list of these. readConfig returns every correct line, and
// a text for each fault.
//
// The texts show neither values nor unknown keys: a database URI with a password may stand in
// any place of a file with a mistake.
func readConfig(path string, known keys) (map[string]line, []string) {
	data, err := readOwn(path)
	if errors.Is(err, fs.ErrNotExist) { // the name may be a secret in the wrong place
		return nil, []string{"--config: there is no such file"}
	}
	if err != nil {
		return nil, []string{"--config: " + err.Error()}
	}
	tokens := lexer.Tokenize(string(data))
	if deep := nested(tokens); deep != nil {
		return nil, []string{lineIn(path, deep.Position.Line) + ": a value in a value: " + wantYAML}
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		where := path
		if at := (interface{ GetToken() *token.Token })(nil); errors.As(err, &at) && at.GetToken() != nil {
			where = lineIn(path, at.GetToken().Position.Line)
		}
		return nil, []string{where + ": not YAML: " + wantYAML}
	}
	lines, faults := map[string]line{}, []string(nil)
	for i, document := range file.Docs {
		entries, fault := entriesOf(document.Body)
		if i > 0 && len(entries) > 0 {
			fault = "more than one document"
		}
		if fault != "" {
			return nil, append(faults, path+": "+fault)
		}
		for _, entry := range entries {
			number := entry.Key.GetToken().Position.Line
			key, text, fault := readEntry(entry, known)
			if earlier, twice := lines[key]; fault == "" && twice {
				fault = fmt.Sprintf("%s stands in line %d too", key, earlier.number)
			}
			if fault != "" {
				faults = append(faults, lineIn(path, number)+": "+fault)
				continue
			}
			lines[key] = line{text, number}
		}
	}
	return lines, faults
}

// nested returns the first token of a file that opens a value too deep for settings, or nil. The
// parser needs memory by the square of the depth: without a bound, 200 KB of brackets need 24 GB.
func nested(tokens token.Tokens) *token.Token {
	const deepest = 2 // the depth of a list in a mapping
	depth, row := 0, 0
	for _, t := range tokens {
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth--
		}
		switch t.Type {
		case token.SequenceEntryType, token.MappingKeyType, token.MappingValueType, token.TagType, token.AnchorType:
			row++
		default:
			row = 0
		}
		if depth > deepest || row > deepest {
			return t
		}
	}
	return nil
}

// lineIn names a line of a file.
func lineIn(path string, number int) string { return fmt.Sprintf("%s, line %d", path, number) }

// readOwn reads the file of --config. Errors: an error if another user of the machine is allowed
// to write the file, since the server does whatever the file says.
func readOwn(path string) ([]byte, error) {
	if err := durable.CheckWriters(path); err != nil {
		return nil, err
	}
	data, err := durable.Read(path, maxConfig)
	return data, durable.Denied(path, err)
}

// entriesOf returns the entries (key and value) of a YAML document. An empty document has no
// entries.
func entriesOf(body ast.Node) ([]*ast.MappingValueNode, string) {
	switch node := body.(type) {
	case nil, *ast.NullNode, *ast.CommentGroupNode:
		return nil, ""
	case *ast.MappingNode:
		return node.Values, ""
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{node}, ""
	}
	return nil, "not a list of settings: write KEY: VALUE, one a line"
}

// readEntry returns the key and the value of an entry of the file of --config, or a text that
// says what is wrong with the entry.
func readEntry(entry *ast.MappingValueNode, known keys) (key, text, fault string) {
	key = entry.Key.GetToken().Value
	if !slices.Contains(known.names, key) {
		return key, "", "unknown key" + known.suggestion(key)
	}
	text, ok := scalar(entry.Value)
	if list, isList := entry.Value.(*ast.SequenceNode); isList {
		var parts []string
		for _, value := range list.Values {
			part, isScalar := scalar(value)
			if !isScalar {
				return key, "", key + ": a list has texts alone"
			}
			parts = append(parts, part)
		}
		text, ok = kong.JoinEscaped(parts, ','), true
	}
	switch {
	case !ok:
		return key, "", key + ": write one value, or a list as [VALUE, VALUE]"
	case text == "":
		return key, "", key + ": the value is missing; remove the line for the default"
	}
	return key, text, ""
}

// scalar returns the text of a single value (no list) as the text stands in the file of
// --config: 007 stays 007.
func scalar(node ast.Node) (string, bool) {
	switch node := node.(type) {
	case *ast.StringNode:
		return node.Value, true
	case *ast.LiteralNode:
		return strings.TrimSuffix(node.Value.Value, "\n"), true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return node.GetToken().Value, true
	case *ast.NullNode:
		return "", true
	}
	return "", false
}

// suggestion returns the known key that is most like an unknown key in the file of --config;
// empty if no known key is like the unknown key.
func (k keys) suggestion(key string) string {
	if len(key) > 64 {
		return ""
	}
	key = strings.ReplaceAll(strings.ToLower(strings.TrimLeft(key, "-")), "_", "-")
	key = strings.TrimPrefix(key, k.program+"-")
	best, least := "", 4
	for _, candidate := range k.names {
		if d := distance(key, candidate); d < least {
			best, least = candidate, d
		}
	}
	if best == "" {
		return fmt.Sprintf(": the keys are the names of the flags of `%s %s`, without --", k.program, k.command)
	}
	return "; did you mean " + best + "?"
}
