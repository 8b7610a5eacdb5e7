package main

import (
	"bytes"
	"context"

	"google.golang.org/grpc"
	testv1 "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/protobuf/proto"
)

// answering returns the same answer for every call.
type answering struct {
	testv1.UnimplementedTestServiceServer
	answer *testv1.SimpleResponse
}

func (s *answering) UnaryCall(context.Context, *testv1.SimpleRequest) (*testv1.SimpleResponse, error) {
	return s.answer, nil
}

// register adds the service that comes with grpc-go; its answers have size bytes.
func register(server *grpc.Server, size int) {
	answer := &testv1.SimpleResponse{Payload: &testv1.Payload{}}
	for proto.Size(answer) < size {
		answer.Payload.Body = bytes.Repeat([]byte{'x'}, len(answer.Payload.Body)+1)
	}
	testv1.RegisterTestServiceServer(server, &answering{answer: answer})
}
