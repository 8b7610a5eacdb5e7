// Command notes serves a board of notes, guarded by tokens of a Watchword server. With
// --search-addr notes calls the service search on behalf of its callers.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/tokensource"

	"example.com/notes"
	searchv1 "example.com/notes/gen/search/v1"
	"example.com/notes/internal/serving"
)

// searching says how to call the service search.
type searching struct {
	addr, audience, assertionFile string
}

func main() {
	c := serving.Config{Name: "notes", Addr: "127.0.0.1:50061", Audience: "internal", PublicMethods: notes.PublicMethods}
	c.Flags()
	var s searching
	flag.StringVar(&s.addr, "search-addr", "", "address of the service search, in plaintext; none: without search")
	flag.StringVar(&s.audience, "search-audience", "search", "audience of the service search")
	flag.StringVar(&s.assertionFile, "assertion-file", "", "file with the token of the platform, by which notes signs in at Watchword")
	flag.Parse()
	if s.addr != "" && s.assertionFile == "" {
		fmt.Fprintln(os.Stderr, "notes: --search-addr needs --assertion-file too")
		os.Exit(2)
	}
	serving.Main(c, s.build)
}

// build makes the server.
func (s searching) build(authConn *grpc.ClientConn, verifier *authn.Verifier, status *health.Server, opts ...grpc.ServerOption) (*serving.Server, error) {
	search, stop, err := s.connect(authConn)
	if err != nil {
		return nil, fmt.Errorf("connecting to search: %w", err)
	}
	service := notes.NewService(search)
	server, err := notes.NewServer(verifier, service, status, opts...)
	if err != nil {
		return nil, errors.Join(err, stop())
	}
	return &serving.Server{Server: server, EndCalls: service.Close, Release: func() { _ = stop() }}, nil
}

// connect returns a client of search that calls on behalf of the caller of a handler; nil without
// --search-addr. stop closes what the client uses.
func (s searching) connect(authConn *grpc.ClientConn) (client searchv1.SearchServiceClient, stop func() error, err error) {
	if s.addr == "" {
		return nil, func() error { return nil }, nil
	}
	source, err := tokensource.Workload(authConn, tokensource.File(s.assertionFile))
	if err != nil {
		return nil, nil, err
	}
	conn, err := grpc.NewClient(s.addr, append(tokensource.OnBehalfOf(source, authConn, s.audience),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...) // search listens on loopback
	if err != nil {
		return nil, nil, errors.Join(err, source.Close())
	}
	return searchv1.NewSearchServiceClient(conn), func() error { return errors.Join(conn.Close(), source.Close()) }, nil
}
