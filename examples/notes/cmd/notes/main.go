// Command notes serves a board of notes to the users of a Watchword server.
package main

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
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/tokensource"

	"example.com/notes"
)

const (
	// startTimeout is how long Watchword may take to come up, when both are
	// started together.
	startTimeout = time.Minute
	// stopTimeout is how long calls may take to end.
	stopTimeout = 5 * time.Second
)

type config struct {
	addr, authAddr, audience, caFile string
}

func main() {
	var c config
	flag.StringVar(&c.addr, "addr", "127.0.0.1:50061", "address to serve on; this example has no TLS, so keep it on loopback")
	flag.StringVar(&c.authAddr, "auth-addr", "127.0.0.1:50051", "address of the Watchword server")
	flag.StringVar(&c.audience, "audience", "internal", "the audience that tokens must be for")
	flag.StringVar(&c.caFile, "ca-file", "", "PEM certificates to trust for TLS to Watchword; none: plaintext, on loopback alone")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, c); err != nil {
		fmt.Fprintln(os.Stderr, "notes:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, c config) error {
	conn, err := dial(c.authAddr, c.caFile)
	if err != nil {
		return fmt.Errorf("connecting to Watchword: %w", err)
	}
	defer conn.Close()

	verifier, err := newVerifier(ctx, conn, c.audience)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil // stopped before it began
	case err != nil:
		return fmt.Errorf("fetching the keys: %w", err)
	}
	defer verifier.Close()

	service, status := notes.NewService(), health.NewServer()
	server, err := notes.NewServer(verifier, service, status)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", c.addr)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	fmt.Fprintf(os.Stderr, "notes: ready on %s\n", listener.Addr())

	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	// First whatever lasts: health watches and our own streams. Then the server
	// lets the calls that run finish, for so long.
	status.Shutdown()
	service.Close()
	impatient := time.AfterFunc(stopTimeout, server.Stop)
	defer impatient.Stop()
	server.GracefulStop()
	return <-failed
}

// dial prepares a connection to Watchword; grpc-go makes it at the first call.
func dial(addr, caFile string) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if caFile != "" {
		var err error
		if creds, err = credentials.NewClientTLSFromFile(caFile, ""); err != nil {
			return nil, err
		}
	}
	return tokensource.Dial(addr, grpc.WithTransportCredentials(creds))
}

// newVerifier waits for the keys.
func newVerifier(ctx context.Context, conn *grpc.ClientConn, audience string) (*authn.Verifier, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return authn.NewVerifier(ctx, conn,
		authn.WithAudience(audience),
		authn.WithPublicMethods(notes.PublicMethods),
		authn.WithLogger(slog.Default()))
}
