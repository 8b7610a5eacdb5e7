// Package serving runs a guarded gRPC server as a process: package serving connects to Watchword,
// fetches the keys, serves until a signal, and stops in order.
package serving

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/tokensource"
)

const (
	// startTimeout limits the wait for Watchword's keys. Watchword and this server can be started
	// at the same time.
	startTimeout = time.Minute
	// stopTimeout limits the wait for running calls when the server stops.
	stopTimeout = 5 * time.Second
)

// Config says what to serve, and where.
type Config struct {
	Name          string // the name of the process, which begins each printed line
	PublicMethods string // the pattern for authn.WithPublicMethods

	Addr, AuthAddr, Audience, CAFile string
	ShowRevocations                  bool
}

// Flags defines the flags of c. The values of c are the defaults.
func (c *Config) Flags() {
	flag.StringVar(&c.Addr, "addr", c.Addr, "address to serve on; this example has no TLS, so keep it on loopback")
	flag.StringVar(&c.AuthAddr, "auth-addr", "127.0.0.1:50051", "address of the Watchword server")
	flag.StringVar(&c.Audience, "audience", c.Audience, "audience that tokens must be for")
	flag.StringVar(&c.CAFile, "ca-file", "", "PEM certificates to trust for TLS to Watchword; none: plaintext, on loopback alone")
	flag.BoolVar(&c.ShowRevocations, "show-revocations", false, "print a line when the token of the last call is taken back")
}

// A Server is a guarded gRPC server with the service's part of a stop in order.
type Server struct {
	*grpc.Server
	EndCalls func() // ends long calls before the server waits for the other calls; nil: there are no long calls
	Release  func() // releases what the service uses, after the last call; nil: there is nothing to release
}

// Build makes the server of a process. conn leads to Watchword. opts belong after the options of
// the verifier.
type Build func(conn *grpc.ClientConn, verifier *authn.Verifier, status *health.Server, opts ...grpc.ServerOption) (*Server, error)

// Main serves until a signal. If the server fails, Main prints the error and ends the process with
// status 1.
func Main(c Config, build Build) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, c, build); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %q\n", c.Name, err.Error()) // quoted, because the error may hold text of a server
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, c Config, build Build) error {
	conn, err := dial(c.AuthAddr, c.CAFile)
	if err != nil {
		return fmt.Errorf("connecting to Watchword: %w", err)
	}
	defer conn.Close()

	verifier, err := newVerifier(ctx, conn, c)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil // stopped before the start was complete
	case err != nil:
		return fmt.Errorf("fetching the keys: %w", err)
	}
	defer verifier.Close()

	var opts []grpc.ServerOption
	if c.ShowRevocations {
		w := &revocations{name: c.Name, verifier: verifier}
		defer w.close()
		opts = append(opts, grpc.ChainUnaryInterceptor(w.intercept))
	}
	status := health.NewServer()
	server, err := build(conn, verifier, status, opts...)
	if err != nil {
		return err
	}
	if server.Release != nil {
		defer server.Release()
	}
	listener, err := net.Listen("tcp", c.Addr)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	fmt.Fprintf(os.Stderr, "%s: ready on %s\n", c.Name, listener.Addr())

	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	// First end the long calls: health watches, and the long calls of the service. Then the server
	// waits for the other calls, at most for stopTimeout.
	status.Shutdown()
	if server.EndCalls != nil {
		server.EndCalls()
	}
	impatient := time.AfterFunc(stopTimeout, server.Stop)
	defer impatient.Stop()
	server.GracefulStop()
	return <-failed
}

// dial returns a connection to Watchword. grpc-go connects at the first call.
func dial(addr, caFile string) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if caFile != "" {
		fromFiles, err := authn.TLSFromFiles(authn.TLSFiles{CAFile: caFile})
		if err != nil {
			return nil, err
		}
		creds = fromFiles // reads the file again until the process ends
	}
	return tokensource.Dial(addr, grpc.WithTransportCredentials(creds))
}

// newVerifier returns a verifier with Watchword's keys.
func newVerifier(ctx context.Context, conn *grpc.ClientConn, c Config) (*authn.Verifier, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return authn.NewVerifier(ctx, conn,
		authn.WithAudience(c.Audience),
		authn.WithPublicMethods(c.PublicMethods),
		authn.WithLogger(slog.Default()))
}
