package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// The page of the repository has every method, message and enum, each with a comment.
func TestPageIsComplete(t *testing.T) {
	data, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	page, services := string(data), 0
	protoregistry.GlobalFiles.RangeFilesByPackage("watchword.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			services++
			for j := range service.Methods().Len() {
				method := service.Methods().Get(j)
				want := "\n### " + string(service.Name()) + "/" + string(method.Name()) + "\n\nAccess: " + callers(method) + ".\n\n" + string(method.Name()) + " "
				if !strings.Contains(page, want) {
					t.Errorf("the page lacks %q", want)
				}
			}
		}
		for i := range file.Messages().Len() {
			name := string(file.Messages().Get(i).Name())
			if !strings.Contains(page, "\n### "+name+"\n\n"+name+" ") && !strings.Contains(page, "**: `"+name+"`") {
				t.Errorf("the page lacks the message %s", name)
			}
		}
		return true
	})
	if services != 7 {
		t.Errorf("%d services are registered, want 7", services)
	}
}

// TestPageOfAFile makes the page of a file with a rule with several names, a stream and
// comments, which no proto file of this repository has together.
func TestPageOfAFile(t *testing.T) {
	options := &descriptorpb.MethodOptions{}
	proto.SetExtension(options, watchwordv1.E_Access, &watchwordv1.Access{Roles: []string{"a", "b"}, Audience: []string{"c", "d"}})
	set := &descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{{
		Name: proto.String("x.proto"), Package: proto.String("watchword.v1"), Syntax: proto.String("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{
			{Name: proto.String("In"), Field: []*descriptorpb.FieldDescriptorProto{{
				Name: proto.String("all"), JsonName: proto.String("all"), Number: proto.Int32(1), TypeName: proto.String(".watchword.v1.Other"),
				Type: descriptorpb.FieldDescriptorProto_TYPE_MESSAGE.Enum(), Label: descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum(),
			}}},
			{Name: proto.String("Out")},
			{Name: proto.String("Other")},
		},
		Service: []*descriptorpb.ServiceDescriptorProto{{Name: proto.String("S"), Method: []*descriptorpb.MethodDescriptorProto{{
			Name: proto.String("M"), InputType: proto.String(".watchword.v1.In"), OutputType: proto.String(".watchword.v1.Out"),
			ServerStreaming: proto.Bool(true), Options: options,
		}}}},
		SourceCodeInfo: &descriptorpb.SourceCodeInfo{Location: []*descriptorpb.SourceCodeInfo_Location{
			{Path: []int32{6, 0, 2, 0}, Span: []int32{1, 0, 1}, LeadingComments: proto.String(" M works:\n\n  1. once\n")},
			{Path: []int32{4, 0, 2, 0}, Span: []int32{2, 0, 1}, LeadingComments: proto.String(" All\n of them.\n")},
		}},
	}}}
	image, err := proto.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "api.md")
	if err := run([]string{file}, strings.NewReader(string(image))); err != nil {
		t.Fatal(err)
	}
	shown, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := opening + `
## S


### S/M

Access: callers with a valid access token for one of the audiences ` + "`c`, `d`" + ` and one of the roles ` + "`a`, `b`" + `.

M works:

 1. once

**Request**: ` + "`In`" + `

- ` + "`all`" + ` (repeated [Other](#other))

  All
  of them.

**Response (a stream)**: ` + "`Out`" + `, without a field

## Messages and enums

### Other

`
	if string(shown) != want {
		t.Errorf("the page is\n%s\nwant\n%s", shown, want)
	}
	if err := run([]string{file}, strings.NewReader("")); err == nil {
		t.Error("an empty image was accepted, and the page would be empty")
	}
}
