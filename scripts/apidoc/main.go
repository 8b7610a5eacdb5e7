// Command apidoc writes docs/api.md, the manual of the API, from the comments of the proto
// files:
//
//	buf build --as-file-descriptor-set -o - | go run ./scripts/apidoc docs/api.md
//
// The Go code in gen holds no comments, so apidoc reads a FileDescriptorSet with source info
// from standard input.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

const opening = `# The API

<!-- Written by "make api-page" from the comments of the proto files. Change the proto files. -->

This page lists every method, message and enum of the package ` + "`watchword.v1`" + `, with the comments of
the proto files in [proto/watchword/v1](../proto/watchword/v1). A call over gRPC names a method as
` + "`/watchword.v1.AuthService/Login`" + `. An error carries a reason: see [ErrorReason](#errorreason).
`

func main() {
	if err := run(os.Args[1:], os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "apidoc:", err)
		os.Exit(1)
	}
}

func run(args []string, in io.Reader) error {
	if len(args) != 1 {
		return errors.New("give the name of the page to write, such as docs/api.md")
	}
	data, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(data, &set); err != nil {
		return fmt.Errorf("standard input must be the output of buf build: %w", err)
	}
	files, err := protodesc.NewFiles(&set)
	if err != nil {
		return err
	}
	var ours []protoreflect.FileDescriptor
	files.RangeFilesByPackage("watchword.v1", func(file protoreflect.FileDescriptor) bool {
		ours = append(ours, file)
		return true
	})
	if len(ours) == 0 {
		return errors.New("standard input has no file of the package watchword.v1")
	}
	return os.WriteFile(args[0], []byte(page(ours)), 0o644)
}

// writer writes a page.
type writer struct {
	strings.Builder
	inMethod map[protoreflect.FullName]bool // messages that stand with their method
}

// page returns the page for files. The page has the files in the order of their names.
func page(files []protoreflect.FileDescriptor) string {
	slices.SortFunc(files, func(a, b protoreflect.FileDescriptor) int { return strings.Compare(a.Path(), b.Path()) })
	w := writer{inMethod: make(map[protoreflect.FullName]bool)}
	w.WriteString(opening)
	for _, file := range files {
		for i := range file.Services().Len() {
			w.service(file.Services().Get(i))
		}
	}
	w.WriteString("\n## Messages and enums\n")
	for _, file := range files {
		w.messages(file.Messages())
		w.enums(file.Enums())
	}
	return w.String()
}

func (w *writer) service(service protoreflect.ServiceDescriptor) {
	fmt.Fprintf(w, "\n## %s\n\n%s", service.Name(), comment(service, ""))
	for i := range service.Methods().Len() {
		method := service.Methods().Get(i)
		in, out := method.Input(), method.Output()
		fmt.Fprintf(w, "\n### %s/%s\n\nAccess: %s.\n\n%s", service.Name(), method.Name(), callers(method), comment(method, ""))
		w.body("Request", in, method.IsStreamingClient())
		w.body("Response", out, method.IsStreamingServer())
	}
}

// body writes the request or the response of a method. buf lint checks that no other method has the
// message.
func (w *writer) body(kind string, message protoreflect.MessageDescriptor, stream bool) {
	w.inMethod[message.FullName()] = true
	if stream {
		kind += " (a stream)"
	}
	fmt.Fprintf(w, "\n**%s**: `%s`", kind, message.Name())
	if message.Fields().Len() == 0 {
		w.WriteString(", without a field\n")
	} else {
		w.WriteString("\n")
	}
	if text := comment(message, ""); text != "" {
		w.WriteString("\n" + text)
	}
	w.fields(message)
}

// messages writes the messages that stand with no method, and the types inside every message.
func (w *writer) messages(messages protoreflect.MessageDescriptors) {
	for i := range messages.Len() {
		message := messages.Get(i)
		if message.IsMapEntry() {
			continue
		}
		if !w.inMethod[message.FullName()] {
			fmt.Fprintf(w, "\n### %s\n\n%s", title(message), comment(message, ""))
			w.fields(message)
		}
		w.messages(message.Messages())
		w.enums(message.Enums())
	}
}

func (w *writer) fields(message protoreflect.MessageDescriptor) {
	if message.Fields().Len() > 0 {
		w.WriteString("\n")
	}
	for i := range message.Fields().Len() {
		field := message.Fields().Get(i)
		kind := w.kind(field)
		if one := field.ContainingOneof(); one != nil && !one.IsSynthetic() {
			kind += fmt.Sprintf(", one of `%s`", one.Name())
		}
		w.item(field, kind)
	}
}

func (w *writer) enums(enums protoreflect.EnumDescriptors) {
	for i := range enums.Len() {
		enum := enums.Get(i)
		fmt.Fprintf(w, "\n### %s\n\n%s\n", title(enum), comment(enum, ""))
		for j := range enum.Values().Len() {
			value := enum.Values().Get(j)
			w.item(value, fmt.Sprint(value.Number()))
		}
	}
}

// item writes a line of a list for a field or a value of an enum.
func (w *writer) item(of protoreflect.Descriptor, about string) {
	fmt.Fprintf(w, "- `%s` (%s)", of.Name(), about)
	if text := strings.TrimSpace(comment(of, "  ")); text != "" {
		w.WriteString("\n\n  " + text)
	}
	w.WriteString("\n")
}

// kind returns the type of a field, with a link to a message or an enum of this page.
func (w *writer) kind(field protoreflect.FieldDescriptor) string {
	var name string
	switch {
	case field.IsMap():
		return fmt.Sprintf("map of %s to %s", w.kind(field.MapKey()), w.kind(field.MapValue()))
	case field.Message() != nil:
		name = link(field.Message())
	case field.Enum() != nil:
		name = link(field.Enum())
	default:
		name = field.Kind().String()
	}
	switch {
	case field.IsList():
		return "repeated " + name
	case field.HasOptionalKeyword():
		return "optional " + name
	}
	return name
}

func link(of protoreflect.Descriptor) string {
	if of.ParentFile().Package() != "watchword.v1" {
		return string(of.FullName())
	}
	slug := strings.ToLower(strings.ReplaceAll(title(of), ".", ""))
	return fmt.Sprintf("[%s](#%s)", title(of), slug)
}

// title returns the name of a message or an enum, after the names of the messages that contain it.
func title(of protoreflect.Descriptor) string {
	return strings.TrimPrefix(string(of.FullName()), string(of.ParentFile().Package())+".")
}

// callers returns which callers the access rule of a method lets in.
func callers(method protoreflect.MethodDescriptor) string {
	access, _ := proto.GetExtension(method.Options(), watchwordv1.E_Access).(*watchwordv1.Access)
	if access.GetPublic() {
		return "every caller, with or without an access token"
	}
	text := "callers with a valid access token"
	if audience := access.GetAudience(); len(audience) > 0 {
		text += " for " + oneOf("the audience", "one of the audiences", audience)
	}
	if roles := access.GetRoles(); len(roles) > 0 {
		text += " and " + oneOf("the role", "one of the roles", roles)
	}
	return text
}

func oneOf(one, several string, names []string) string {
	quoted := "`" + strings.Join(names, "`, `") + "`"
	if len(names) == 1 {
		return one + " " + quoted
	}
	return several + " " + quoted
}

// comment returns the comment of a descriptor, with an indent before each line that is not empty.
func comment(of protoreflect.Descriptor, indent string) string {
	var text strings.Builder
	for line := range strings.Lines(of.ParentFile().SourceLocations().ByDescriptor(of).LeadingComments) {
		if line = strings.TrimRight(strings.TrimPrefix(line, " "), " \n"); line != "" {
			line = indent + line
		}
		text.WriteString(line + "\n")
	}
	return text.String()
}
