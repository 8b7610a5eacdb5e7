// Command search serves a search in texts, guarded by tokens of a Watchword server.
package main

import (
	"flag"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"github.com/watchword-auth/watchword/authn"

	"example.com/notes/internal/serving"
	"example.com/notes/search"
)

func main() {
	c := serving.Config{Name: "search", Addr: "127.0.0.1:50062", Audience: "search", PublicMethods: search.PublicMethods}
	c.Flags()
	flag.Parse()
	serving.Main(c, func(_ *grpc.ClientConn, verifier *authn.Verifier, status *health.Server, opts ...grpc.ServerOption) (*serving.Server, error) {
		server, err := search.NewServer(verifier, status, opts...)
		return &serving.Server{Server: server}, err
	})
}
